"""What a private variant may not be combined with."""

import pytest

from vesselgan.config.compose import compose
from vesselgan.core.errors import UsageError


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("variant.critic_norm=spectral", "critic_norm=instance"),
        ("variant.generator_norm=batch", "generator_norm=group"),
        ("variant.penalty_weight=10", "penalty_weight=0"),
        ("variant.precision=fp16", "precision=fp32"),
        ("variant.precision=bf16", "precision=fp32"),
        ("variant.dp.noise_multiplier=null", "dp.target_epsilon"),
        ("variant.dp.noise_multiplier=0", "dp.noise_multiplier"),
        ("variant.dp.unit=volume", "patch, patient"),
        ("variant.dp.delta=0", "dp.delta"),
        ("variant.dp.weight_clip=0", "dp.weight_clip"),
        *((f"variant.dp.noise_multiplier={noise}", "dp.noise_multiplier") for noise in ("inf", "nan", "1e-300", "1e9")),
        *((f"variant.dp.target_epsilon={target}", "dp.target_epsilon") for target in ("inf", "nan", "1e30")),
        *((f"variant.dp.clip_norm={norm}", "dp.clip_norm") for norm in ("inf", "1e-37")),
        ("variant.dp.delta=1e-300", "dp.delta"),
        ("variant.dp.steps_per_batch=5", "dp.steps_per_batch"),  # one batch is released once
    ],
)
def test_settings_that_break_privacy_are_refused(word: str, named: str) -> None:
    with pytest.raises(UsageError) as raised:
        compose("train_gan", ["variant=dpgan", word])
    assert raised.value.exit_code == 2
    assert named in str(raised.value) and word.split("=")[0].split(".")[-1] in str(raised.value)


def test_the_preset_is_the_papers_appendix_b() -> None:
    variant = compose("train_gan", ["variant=dpgan"]).variant
    assert (variant.width, variant.n_critic, variant.learning_rate_critic, variant.learning_rate_generator) == (
        256, 5, 1e-4, 1e-4,
    )  # fmt: skip
    assert (variant.dp.clip_norm, variant.dp.weight_clip, variant.dp.unit) == (1.0, 0.01, "patch")


def test_other_variants_have_no_privacy_to_set() -> None:
    assert compose("train_gan", ["variant=sn"]).variant.dp is None
    with pytest.raises(UsageError, match=r"variant\.dp\.unit"):
        compose("train_gan", ["variant=sn", "variant.dp.unit=patient"])
