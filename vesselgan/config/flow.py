"""Settings of a GAN that a flow does not have: refused where they are set, so that none is accepted and ignored."""

from typing import Any

from vesselgan.core.errors import UsageError

UNUSED = {
    "critic_norm": None,
    "generator_norm": None,
    "latent_size": 128,
    "penalty_weight": 10.0,
    "penalty_reduction": "sample",
    "n_critic": 1,
    "learning_rate_critic": 4e-4,
    "dp": None,
}
"""Of variants with `flow`: setting -> value in configs/variant, which nothing reads."""


def check_networks(variant: Any) -> None:
    """Raises UsageError for a mixture of a GAN and a flow; `variant` is config.training_schema.Variant."""
    if variant.flow is None:
        for key in ("critic_norm", "generator_norm"):
            if getattr(variant, key) is None:
                raise UsageError(f"variant.{key}=null: a GAN needs one; only a variant with `flow` has none")
        return
    for key, value in UNUSED.items():
        if getattr(variant, key) != value:
            reason = "gradients per unit of a flow are not built" if key == "dp" else "there is no critic"
            raise UsageError(f"variant.{key} with variant.flow: {reason}; leave it out")
