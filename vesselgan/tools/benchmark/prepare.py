"""Building shards of phantom volumes on two ranks against one, and what a volume costs by stage."""

# X Y Z voxels, N patches

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import data_prep
from data_prep import patches
from data_prep.check import sha256_of_voxels
from data_prep.phantom import generate_subject
from vesselgan.config.schema import Benchmark
from vesselgan.core.errors import ResourceError
from vesselgan.formats import volumes
from vesselgan.formats.shards import Record, write_shard
from vesselgan.tools.benchmark.interleave import interleave
from vesselgan.tools.benchmark.loader import SPACING_MM, UPPER_PERCENTILE

RANKS = (1, 2)


def run(config: Benchmark) -> dict[str, Any]:
    """Seconds of a whole build by ranks and their ratio; milliseconds of one volume by stage, whole and halved."""
    mpiexec = _mpiexec()
    with TemporaryDirectory() as folder:
        root = Path(folder) / "nifti"
        for number in range(config.num_subjects):
            _write_subject(root / f"sub-{number:02d}", tuple(config.shape), config.seed + number)
        builds = {
            str(ranks): lambda number, ranks=ranks: _build(mpiexec, ranks, root, Path(folder), config)
            for ranks in RANKS
        }
        costs = interleave(builds, config.repeats)
        halves = [max(n // 2, size) for n, size in zip(config.shape, config.patch_shape, strict=True)]
        small = Path(folder) / "small"
        _write_subject(small, tuple(halves), config.seed)
        stages = {"whole": _stages(root / "sub-00", config), "small": _stages(small, config)}
    return {
        "subjects": config.num_subjects,
        "shape": list(config.shape),
        "patches_per_subject": 2 * config.num_patches + len(patches.grid_corners(config.shape, config.patch_shape)),
        "ranks": {name: {"wall_s": round(c.wall_s, 3), "cpu_s": round(c.cpu_s, 3)} for name, c in costs.items()},
        "ratio_wall": round(costs["1"].wall_s / costs["2"].wall_s, 2),
        "ratio_cpu": round(costs["1"].cpu_s / costs["2"].cpu_s, 2),
        "stages_ms": stages,
        "small_shape": halves,
        "growth": _growth(stages, math.prod(config.shape) / math.prod(halves)),
    }


def _mpiexec() -> Path:
    """The environment's own, else the one on PATH."""
    beside, elsewhere = Path(sys.executable).with_name("mpiexec"), shutil.which("mpiexec")
    if beside.exists():
        return beside
    if elsewhere is None:
        raise ResourceError("target=prepare needs mpiexec: pip install 'vesselgan[mpich]', or load the site's MPI")
    return Path(elsewhere)


def _write_subject(folder: Path, shape: tuple[int, int, int], seed: int) -> None:
    image_XYZ, label_XYZ, mask_XYZ, affine = generate_subject(seed, shape, SPACING_MM)
    for name, array_XYZ in (("image", image_XYZ), ("vessel", label_XYZ), ("brain_mask", mask_XYZ)):
        volumes.write_volume(folder / f"{name}.nii.gz", array_XYZ, affine)


def _build(mpiexec: Path, ranks: int, root: Path, folder: Path, config: Benchmark) -> None:
    """One build from nothing, in processes of its own."""
    out = folder / "built"
    shutil.rmtree(out, ignore_errors=True)
    patch_shape = ",".join(map(str, config.patch_shape))
    words = [str(mpiexec), "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", "data_prep.build_shards"]
    words += ["data=phantom_paper", f"data.root={root}", f"data.cohort_dir={out}"]
    words += [f"data.prepare.patch_shape=[{patch_shape}]", f"data.prepare.num_vessel_patches_gan={config.num_patches}"]
    words += [f"data.prepare.num_vessel_patches_unet={config.num_patches}", "data.prepare.pairs_per_shard=16"]
    words += ["data.prepare.split.validation=0", "data.prepare.split.test=0"]
    words += ["data.prepare.max_clipped_vessel_share=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(data_prep.__file__).resolve().parents[1],
        check=False,
    )
    if done.returncode != 0:
        raise ResourceError(f"the build on {ranks} ranks failed (exit {done.returncode}): {done.stderr.strip()[-400:]}")


def _stages(folder: Path, config: Benchmark) -> dict[str, float]:
    """Milliseconds of CPU of each stage of one volume, in this process."""
    spent: dict[str, float] = {}

    def timed(stage: str, call: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = call()
        spent[stage] = round(1e3 * (time.process_time() - begin), 2)
        return result

    image = timed("read image", lambda: volumes.read_image(folder / "image.nii.gz"))
    label = timed("read label", lambda: volumes.read_label(folder / "vessel.nii.gz"))
    timed("hash", lambda: [sha256_of_voxels(v.data_XYZ) for v in (image, label)])
    limits = timed("limits", lambda: volumes.intensity_limits(image.data_XYZ, UPPER_PERCENTILE))
    scaled_XYZ = timed("scale", lambda: volumes.scale_to_255(image.data_XYZ, limits))
    pairs = timed("cut", lambda: _cut(scaled_XYZ, label.data_XYZ, config))
    records = [Record(*pair, "sub", corner, "vessel", limits, 0) for *pair, corner in pairs]
    shape = tuple(config.patch_shape)
    timed("write", lambda: write_shard(folder / "shard.h5", records, patch_shape=shape, origin="real"))
    return spent


def _cut(image_XYZ: np.ndarray, label_XYZ: np.ndarray, config: Benchmark) -> list[tuple[np.ndarray, np.ndarray, Any]]:
    corners_N3 = patches.vessel_corners(
        label_XYZ, config.patch_shape, config.num_patches, seed=config.seed, subject="sub", purpose="benchmark"
    )
    return [
        (*(patches.cut(volume, corner, config.patch_shape) for volume in (image_XYZ, label_XYZ)), tuple(corner))
        for corner in corners_N3.tolist()
    ]


def _growth(stages: dict[str, dict[str, float]], ratio: float) -> dict[str, float]:
    """Stage -> exponent: 1 for a cost in proportion to the voxels, 0 for one that does not depend on them."""
    pairs = {stage: (stages["whole"][stage], stages["small"][stage]) for stage in stages["whole"]}
    return {
        stage: round(math.log(whole / small) / math.log(ratio), 2)
        for stage, (whole, small) in pairs.items()
        if whole > 0 and small > 0 and ratio > 1
    }
