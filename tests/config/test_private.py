"""What a private variant may not be combined with."""

import pytest

from vesselgan.config.compose import compose
from vesselgan.core.errors import UsageError


@pytest.mark.parametrize(
    ("word", "rule"),
    [
        ("variant.critic_norm=spectral", "set critic_norm=instance"),
        ("variant.generator_norm=batch", "set generator_norm=group"),
        ("variant.penalty_weight=10", "set penalty_weight=0"),
        ("variant.precision=fp16", "set precision=fp32"),
        ("variant.precision=bf16", "set precision=fp32"),
        ("variant.dp.noise_multiplier=null", "dp.target_epsilon"),
        ("variant.dp.noise_multiplier=0", "must be above 0"),
        ("variant.dp.unit=volume", "must be one of patch, patient"),
        ("variant.dp.delta=0", "must lie between 0 and 1"),
        ("variant.dp.weight_clip=0", "must be above 0"),
    ],
)
def test_settings_that_no_epsilon_would_be_true_of_are_refused(word: str, rule: str) -> None:
    compose("train_gan", ["variant=dpgan"])
    with pytest.raises(UsageError) as raised:
        compose("train_gan", ["variant=dpgan", word])
    assert raised.value.exit_code == 2
    assert rule in str(raised.value) and word.split("=")[0].split(".")[-1] in str(raised.value)


def test_to_use_one_batch_for_several_steps_is_no_setting() -> None:
    with pytest.raises(UsageError, match="no setting"):
        compose("train_gan", ["variant=dpgan", "variant.dp.steps_per_batch=5"])


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
