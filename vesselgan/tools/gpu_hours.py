"""How long a run takes on one GPU that nobody has measured: its operations over a share of the card's rate."""

from vesselgan.config.compose import compose
from vesselgan.config.schema import Plan, Variant
from vesselgan.report import paper

CARDS = {  # 10^12 dense operations per second by the makers' data sheets: half with float32 sums, float32 without TF32
    "T4": (65.0, 8.1),
    "V100": (125.0, 15.7),
    "A100": (312.0, 19.5),
    "H100": (989.0, 67.0),
    "L4": (121.0, 30.3),
    "L40S": (362.0, 91.6),
    "RTX 3090": (71.0, 35.6),
    "RTX 4090": (165.0, 82.6),
}
NO_BF16 = ("T4", "V100")
WIDE = 1024
GAN_SHARES = {False: 0.08, True: 0.115}
"""Of the data sheet's rate that a full-size step reaches, by whether the network has WIDE channels. Measured on an
H100, batch 4, fp16: 59 ms for 4.6 TFLOP of SN-MP, 159 ms for 18.1 of c-SN-MP; 0.10 and 0.15 of its measured matmul
rate.
"""
FLOW_SHARES = {False: 0.013, True: 0.1}
"""The same of a flow, by whether it trains in float32.

Measured on an H100, 64x64x32, batch 16, width 48, 0.88 TFLOP: 70 ms in fp16, 129 ms in fp32 with Muon.
"""
NOTE = """hours of the whole run on one GPU, estimated: a step reaches {shares} of the card's data sheet rate, as it
does on an H100 (a GAN in fp16, a flow in its precision); other cards were not measured. To measure yours, there:
vesselgan benchmark target=machine machine_file=configs/machine/NAME.yaml, then plan with machine=NAME"""


def share_of_peak(variant: Variant) -> float:
    """The share that is assumed for a variant."""
    if variant.flow is not None:
        return FLOW_SHARES[variant.precision == "fp32"]
    return GAN_SHARES[variant.width >= WIDE]


def hours_by_card(variant: Variant, *, tflop_per_step: float, steps: int) -> dict[str, float | None]:
    """Card -> estimated hours of `steps` steps; None where the card has not this precision."""
    hours: dict[str, float | None] = {}
    for card, (half, single) in CARDS.items():
        peak = single if variant.precision == "fp32" else half
        is_missing = variant.precision == "bf16" and card in NO_BF16
        hours[card] = None if is_missing else steps * tflop_per_step / (peak * share_of_peak(variant)) / 3600
    return hours


def paper_hours(config: Plan, *, steps: int) -> int | None:
    """The paper's hours on a TITAN RTX; None for another network, patch, batch or number of steps than its own."""
    if (name := paper.VARIANTS.get(config.variant.name)) is None:
        return None
    cost = (config.variant, config.patch_shape, config.train.batch_size, steps)
    named = compose("plan", [f"variant={config.variant.name}"]).variant
    papers = (named, paper.PATCH_SHAPE, paper.BATCH_SIZE, paper.NUM_STEPS)
    return paper.TABLE_2[name][2] if cost == papers else None
