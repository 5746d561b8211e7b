"""What a private variant may not be combined with: each rule says why and what to set instead.

Exit codes of what is refused for the sake of privacy, here and elsewhere:

    2  what the configuration alone tells, before a file is read: spectral or batch normalisation, a gradient penalty,
       half precision, batches that are not Poisson, no noise; a batch of everybody
    4  a checkpoint that no run may go on from: without accountant, with one behind the weights, of another number of
       units, rate, noise, clipping or delta, with a key that is lost or was known; another run's weights
    7  a step that a rule forbids although the settings are sound: a batch released twice, releases made again
       otherwise, patients that cannot be told apart, a delta or target that means nothing for these data

n_critic steps on one batch are no setting: every step draws a batch of its own, and a second use is a 7.
"""

from typing import Any

from vesselgan.core.errors import UsageError

REMEDY = "variant=dpgan has settings that hold"


def check_accountable(variant: Any) -> None:
    """UsageError for settings under which the accountants' epsilon would not be true; `variant` has `dp`."""
    for is_broken, key, rule in _rules(variant):
        if is_broken:
            raise UsageError(f"{key}: {rule} ({REMEDY})")


def _rules(variant: Any) -> list[tuple[bool, str, str]]:
    dp = variant.dp
    return [
        (
            variant.critic_norm == "spectral",
            "variant.critic_norm=spectral with variant.dp",
            "a layer whose weight is made with buffers has no gradient per unit in Opacus; set critic_norm=instance",
        ),
        (
            variant.generator_norm == "batch",
            "variant.generator_norm=batch with variant.dp",
            "batch normalisation mixes the samples of a batch, whose size here is drawn by chance and may be 0 or 1; "
            "set generator_norm=group",
        ),
        (
            variant.penalty_weight != 0,
            f"variant.penalty_weight={variant.penalty_weight} with variant.dp",
            "gradients per unit have no second derivatives under Opacus, so there is no gradient penalty; set "
            "penalty_weight=0, dp.weight_clip bounds the critic",
        ),
        (
            variant.precision != "fp32",
            f"variant.precision={variant.precision} with variant.dp",
            "clipping and noise must not be rounded, nor steps skipped by a loss scale; set precision=fp32",
        ),
        (
            dp.noise_multiplier is None and dp.target_epsilon is None,
            "variant.dp.noise_multiplier=null",
            "give a noise multiplier, or a dp.target_epsilon that one is found for",
        ),
    ]
