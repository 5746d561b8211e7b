"""The paper's tables as numbers, for orientation beside ours (Subramaniam et al., Medical Image Analysis 2022).

Mean and standard deviation over patients. bAVD in voxels. The cohorts are the paper's own, which nobody else has:
its numbers say what to expect, not what to reproduce to the digit.
"""

from typing import NamedTuple

VARIANTS = {"gp": "GP", "sn": "SN", "sn_mp": "SN-MP", "c_sn_mp": "c-SN-MP"}
"""Our configuration's name -> the paper's row."""
CITATION = "Subramaniam et al., Medical Image Analysis 2022"
COHORTS = ("PEGASUS", "1000Plus")
"""Whose patients the numbers are of: the cohort that was trained on, and a foreign one."""
GAN_2D_DICE = 0.848
"""A U-Net trained on a 2D GAN's patches, intracranial vessels (Kossen 2021, quoted in the paper's discussion)."""


class Score(NamedTuple):
    mean: float
    sd: float


class Scores(NamedTuple):
    """One row of Tables 3, A.1 and B.1: test volumes of the cohort that was trained on, and of a foreign one."""

    pegasus_dice: Score
    pegasus_bavd: Score
    plus_dice: Score
    """1000Plus"""
    plus_bavd: Score


def _scores(*numbers: float) -> Scores:
    return Scores(*(Score(mean, sd) for mean, sd in zip(numbers[::2], numbers[1::2], strict=True)))


TABLE_1 = {  # model: (FID, PRD-AUC); MedicalNet features, images without labels
    "GP": (0.0381, 0.80),
    "SN": (0.0322, 0.82),
    "SN-MP": (0.0206, 0.87),
    "c-SN-MP": (0.0244, 0.86),
}

TABLE_2_DEVICE = "TITAN RTX"
PATCH_SHAPE = [128, 128, 64]
NUM_EPOCHS, NUM_PATCHES, BATCH_SIZE = 100, 2350, 4
NUM_STEPS = NUM_EPOCHS * (NUM_PATCHES // BATCH_SIZE)
"""587 whole batches an epoch; the paper does not say what became of the last two patches."""
TABLE_2 = {  # model: (trainable parameters in millions, memory in MB, time in hours); TITAN RTX, batch 4, 100 epochs
    "GP": (145, 15085, 78),
    "SN": (145, 14333, 77),
    "SN-MP": (145, 9013, 77),
    "c-SN-MP": (308, 21351, 192),
}

_REAL_ALL = _scores(0.906, 0.016, 0.339, 0.139, 0.883, 0.023, 0.554, 0.221)
_REAL_INTRACRANIAL = _scores(0.901, 0.019, 0.294, 0.077, 0.880, 0.024, 0.507, 0.126)

TABLE_3 = {  # U-Net trained on synthetic pairs alone (label threshold 0.3; SN 0.2), tested on real volumes
    "all": {
        "GP": _scores(0.793, 0.024, 2.648, 1.189, 0.807, 0.030, 1.895, 1.061),
        "SN": _scores(0.804, 0.019, 2.425, 1.505, 0.796, 0.029, 1.855, 0.929),
        "SN-MP": _scores(0.782, 0.020, 2.334, 1.122, 0.778, 0.032, 1.746, 0.894),
        "c-SN-MP": _scores(0.820, 0.017, 1.859, 1.038, 0.809, 0.031, 0.858, 0.910),
        "real": _REAL_ALL,
    },
    "intracranial": {
        "GP": _scores(0.827, 0.015, 0.639, 0.132, 0.829, 0.019, 0.701, 0.195),
        "SN": _scores(0.833, 0.013, 0.606, 0.141, 0.811, 0.023, 0.716, 0.213),
        "SN-MP": _scores(0.804, 0.020, 0.784, 0.125, 0.785, 0.027, 0.822, 0.211),
        "c-SN-MP": _scores(0.841, 0.016, 0.508, 0.083, 0.817, 0.028, 0.611, 0.180),
        "real": _REAL_INTRACRANIAL,
    },
}

# The text of the paper's section 3 quotes other values for 1000Plus than its Table 3; the table is the reference.
TABLE_3_TEXT_1000PLUS = {  # (region, source): (Dice, bAVD); None where the text gives none
    ("all", "GP"): (0.810, None),
    ("all", "c-SN-MP"): (0.810, 1.301),
    ("all", "real"): (0.887, 0.622),
    ("intracranial", "GP"): (0.830, None),
    ("intracranial", "c-SN-MP"): (None, 0.639),
    ("intracranial", "real"): (None, 0.541),
}

TABLE_A1 = {  # U-Net trained on real and synthetic pairs together
    "all": {
        "real + GP": _scores(0.902, 0.046, 0.333, 0.151, 0.862, 0.029, 0.650, 0.271),
        "real + SN": _scores(0.906, 0.016, 0.385, 0.145, 0.878, 0.021, 0.558, 0.199),
        "real + SN-MP": _scores(0.903, 0.013, 0.359, 0.133, 0.883, 0.020, 0.511, 0.145),
        "real + c-SN-MP": _scores(0.907, 0.012, 0.399, 0.204, 0.891, 0.020, 0.564, 0.222),
        "real": _REAL_ALL,
    },
    "intracranial": {
        "real + GP": _scores(0.897, 0.018, 0.323, 0.073, 0.855, 0.029, 0.626, 0.199),
        "real + SN": _scores(0.905, 0.017, 0.318, 0.075, 0.874, 0.022, 0.546, 0.148),
        "real + SN-MP": _scores(0.900, 0.017, 0.328, 0.078, 0.877, 0.020, 0.518, 0.121),
        "real + c-SN-MP": _scores(0.905, 0.016, 0.306, 0.091, 0.884, 0.020, 0.557, 0.129),
        "real": _REAL_INTRACRANIAL,
    },
}

PRIVATE = ("dpgan", "patch")
"""The variant of the next table's rows, and what their budgets protect."""
NOISE = {0.5: "epsilon 1e2", 0.3: "epsilon 1e3", 0.1: "epsilon 1e6"}
"""Noise multiplier -> the next table's row."""
TABLE_B1 = {  # DPGAN by epsilon (delta 1/2350); label thresholds 0.6, 0.6, 0.7
    "all": {
        "epsilon 1e2": _scores(0.085, 0.012, 4.509, 0.903, 0.083, 0.016, 4.116, 0.743),
        "epsilon 1e3": _scores(0.562, 0.050, 6.307, 2.406, 0.567, 0.041, 4.624, 1.608),
        "epsilon 1e6": _scores(0.581, 0.048, 5.050, 2.267, 0.568, 0.041, 3.962, 1.591),
    },
    "intracranial": {
        "epsilon 1e2": _scores(0.081, 0.013, 4.770, 1.081, 0.077, 0.015, 4.595, 0.878),
        "epsilon 1e3": _scores(0.586, 0.045, 3.141, 0.514, 0.569, 0.045, 2.698, 0.604),
        "epsilon 1e6": _scores(0.604, 0.048, 2.201, 0.413, 0.572, 0.048, 2.001, 0.445),
    },
}
