"""Settings that a private variant excludes, with the reason and what to set instead.

Exit codes of refusals for privacy, here and elsewhere:

    2  the configuration alone: spectral or batch normalisation, a gradient penalty, half precision, no noise; a batch
       of everybody
    4  a checkpoint that no run may resume from: without accountant, with one behind the weights, of another number of
       units, rate, noise, clipping or delta, with a key that is lost or was known; another run's weights
    7  a step that a rule forbids although the settings are valid: a batch released twice, other releases under the same
       noise, patients that cannot be distinguished, a delta or target that means nothing for these data
"""

from typing import Any

from vesselgan.core.errors import UsageError

PROTECTS_NOBODY = 10.0
"""Epsilon from which there is no differential privacy to speak of: an attacker's odds may grow by e^10 = 22,000."""
REMEDY = "variant=dpgan and variant=dp_flow have settings that hold"


def check_accountable(variant: Any) -> None:
    """Raises UsageError for settings under which the accountants' epsilon is not true; `variant` has `dp`."""
    for is_broken, key, rule in _rules(variant):
        if is_broken:
            raise UsageError(f"{key}: {rule} ({REMEDY})")


def _rules(variant: Any) -> list[tuple[bool, str, str]]:
    dp = variant.dp
    return [
        (
            variant.critic_norm == "spectral",
            "variant.critic_norm=spectral with variant.dp",
            "a layer whose weight depends on buffers has no gradient per unit in Opacus; set critic_norm=instance",
        ),
        (
            variant.generator_norm == "batch",
            "variant.generator_norm=batch with variant.dp",
            "batch normalisation mixes the samples of a batch, whose size is random and may be 0 or 1; "
            "set generator_norm=group",
        ),
        (
            variant.flow is None and variant.penalty_weight != 0,
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
            "set a noise multiplier, or a dp.target_epsilon that one is computed for",
        ),
    ]
