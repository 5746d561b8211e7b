"""The time of scoring: bAVD of a whole volume against brute force, FID and PRD at the paper's size."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from data_prep.phantom import generate_subject
from vesselgan.config.schema import Benchmark
from vesselgan.metrics.frechet import frechet_distance
from vesselgan.metrics.prd import prd_curve
from vesselgan.metrics.surface import balanced_average_hausdorff
from vesselgan.tools.benchmark.interleave import interleave
from vesselgan.tools.benchmark.loader import SPACING_MM, shape_of

ROWS = 500
"""Voxels whose distances brute force computes; its time is in proportion to them."""
NUM_FEATURES, DIMENSION, NUM_CLUSTERS = 2350, 512, 10


def run(config: Benchmark) -> dict[str, Any]:
    """CPU seconds of bAVD and of brute force (extrapolated from ROWS voxels) between a phantom label and the same label
    moved by a voxel, and their ratio; seconds of FID and of PRD with 10 runs on 2,350 against 2,350 features."""
    _, label_XYZ, _, _ = generate_subject(config.seed, shape_of(config.shape), SPACING_MM)
    truth_XYZ = label_XYZ.astype(bool)
    moved_XYZ = np.roll(truth_XYZ, 1, axis=0)
    truth, moved = np.argwhere(truth_XYZ), np.argwhere(moved_XYZ)
    generator = np.random.default_rng(config.seed)
    rows = truth[generator.choice(len(truth), min(ROWS, len(truth)), replace=False)]
    timings = interleave(
        {
            "ours": lambda number: balanced_average_hausdorff(truth_XYZ, moved_XYZ),
            "brute_force": lambda number: cdist(rows, moved).min(1),
        },
        config.repeats,
    )
    brute_s = timings["brute_force"].cpu_s * (len(truth) + len(moved)) / len(rows)
    features = [generator.standard_normal((NUM_FEATURES, DIMENSION)) for _ in range(2)]
    return {
        "shape": list(config.shape),
        "vessel_voxels": len(truth),
        "bavd": {
            "ours_s": timings["ours"].cpu_s,
            "brute_force_s": brute_s,
            "ratio_cpu": brute_s / timings["ours"].cpu_s,
        },
        "features": [NUM_FEATURES, DIMENSION],
        "fid_s": _seconds(lambda: frechet_distance(*features)),
        "prd_s": _seconds(lambda: prd_curve(*features, num_clusters=NUM_CLUSTERS, num_runs=10)),
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
