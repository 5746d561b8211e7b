"""What a GAN's variant must have, and a flow's must not; what a generator may be given; a flow's optimizer."""

from typing import Any

from vesselgan.core.errors import UsageError


def check_networks(variant: Any) -> None:
    """Raises UsageError for a mixture of a GAN and a flow; `variant` is config.training_schema.Variant."""
    for key in ("critic_norm", "generator_norm"):
        if (getattr(variant, key) is None) != (variant.flow is not None):
            raise UsageError(f"variant.{key}={getattr(variant, key)}: a GAN needs one, a variant with `flow` has none")
    if variant.flow is not None and variant.n_critic != 1:
        raise UsageError("variant.n_critic with variant.flow: there is no critic; leave it out")
    if variant.condition is not None and variant.dp is not None and variant.flow is None:
        raise UsageError(
            f"variant.condition={variant.condition} with variant.dp: a GAN's generator would be given patients' labels "
            "without noise; take a flow, as variant=dp_flow_label"
        )
    if variant.condition is not None and variant.critic_norm == "instance":
        raise UsageError(
            f"variant.condition={variant.condition} with variant.critic_norm=instance: the critic that finds labels in "
            "images has spectral normalisation; set critic_norm=spectral, as variant=gan_label"
        )
    if variant.condition is not None and variant.generator_norm == "batch":
        raise UsageError(
            f"variant.condition={variant.condition} with variant.generator_norm=batch: the generator that is given "
            "labels has group normalisation; set generator_norm=group, as variant=gan_label"
        )
    if variant.dp is not None and (variant.dp.weight_clip is None) != (variant.flow is not None):
        raise UsageError(
            f"variant.dp.weight_clip={variant.dp.weight_clip}: a GAN's private critic needs one, a flow has none"
        )


def knows_place(variant: Any) -> bool:
    """Whether its network is given the patch's place in the head."""
    return variant.condition is not None if variant.flow is None else variant.flow.position


def takes_muon(variant: Any) -> bool:
    """Whether it can train with Muon: ZeRO, of half precision, cuts matrices; differential privacy has Adam."""
    return variant.flow is not None and variant.dp is None and variant.precision == "fp32"


def muon_learning_rate(variant: Any) -> float | None:
    """Muon's rate; None: with Adam alone."""
    return variant.muon_learning_rate if takes_muon(variant) else None
