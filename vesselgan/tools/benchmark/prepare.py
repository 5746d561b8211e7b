"""Building shards of phantom volumes on two ranks against one, and the time of a volume by stage."""

# X Y Z voxels, N patches

import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_prep import patches
from data_prep.phantom import generate_subject
from vesselgan.config.schema import Benchmark
from vesselgan.core.errors import ResourceError
from vesselgan.formats import volumes
from vesselgan.formats.intensities import intensity_limits, scale_to_255
from vesselgan.formats.shards import Record, write_shard
from vesselgan.tools.benchmark.interleave import interleave, run_process
from vesselgan.tools.benchmark.loader import PERCENTILES, SPACING_MM, cut_pairs, shape_of

RANKS = (1, 2)


def run(config: Benchmark) -> dict[str, Any]:
    """Seconds of a build by number of ranks, and their ratio; milliseconds of a whole and a halved volume by stage."""
    mpiexec = _mpiexec()
    with TemporaryDirectory() as folder:
        root = Path(folder) / "nifti"
        for number in range(config.num_subjects):
            _write_subject(root / f"sub-{number:02d}", shape_of(config.shape), config.seed + number)
        builds = {
            str(ranks): lambda number, ranks=ranks: _build(mpiexec, ranks, root, Path(folder), config)
            for ranks in RANKS
        }
        timings = interleave(builds, config.repeats)
        small_shape = [max(n // 2, size) for n, size in zip(config.shape, config.patch_shape, strict=True)]
        small = Path(folder) / "small"
        _write_subject(small, shape_of(small_shape), config.seed)
        stages = {"whole": _stages(root / "sub-00", config), "small": _stages(small, config)}
    return {
        "subjects": config.num_subjects,
        "shape": list(config.shape),
        "patches_per_subject": 2 * config.num_patches + len(patches.grid_corners(config.shape, config.patch_shape)),
        "ranks": {name: {"wall_s": round(t.wall_s, 3), "cpu_s": round(t.cpu_s, 3)} for name, t in timings.items()},
        "ratio_wall": round(timings["1"].wall_s / timings["2"].wall_s, 2),
        "ratio_cpu": round(timings["1"].cpu_s / timings["2"].cpu_s, 2),
        "stages_ms": stages,
        "small_shape": small_shape,
        "growth": _growth(stages, math.prod(config.shape) / math.prod(small_shape)),
    }


def _mpiexec() -> Path:
    """The environment's own, else the one on PATH."""
    own, on_path = Path(sys.executable).with_name("mpiexec"), shutil.which("mpiexec")
    if own.exists():
        return own
    if on_path is None:
        raise ResourceError("target=prepare needs mpiexec: pip install 'vesselgan[mpich]', or load the site's MPI")
    return Path(on_path)


def _write_subject(folder: Path, shape: tuple[int, int, int], seed: int) -> None:
    image_XYZ, label_XYZ, mask_XYZ, affine = generate_subject(seed, shape, SPACING_MM)
    for name, array_XYZ in (("image", image_XYZ), ("vessel", label_XYZ), ("brain_mask", mask_XYZ)):
        volumes.write_volume(folder / f"{name}.nii.gz", array_XYZ, affine)


def _build(mpiexec: Path, ranks: int, root: Path, folder: Path, config: Benchmark) -> None:
    """One build from nothing, in processes of its own."""
    out = folder / "built"
    shutil.rmtree(out, ignore_errors=True)
    patch_shape = ",".join(map(str, config.patch_shape))
    command = [str(mpiexec), "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", "data_prep.build_shards"]
    command += ["data=phantom_paper", f"data.root={root}", f"data.cohort_dir={out}"]
    command += [f"data.prepare.patch_shape=[{patch_shape}]"]
    command += [f"data.prepare.num_vessel_patches_gan={config.num_patches}"]
    command += [f"data.prepare.num_vessel_patches_unet={config.num_patches}", "data.prepare.pairs_per_shard=16"]
    command += ["data.prepare.split.validation=0", "data.prepare.split.test=0"]
    command += ["data.prepare.max_clipped_vessel_share=1"]
    run_process(f"the build on {ranks} ranks", command, threads=1)


def _stages(folder: Path, config: Benchmark) -> dict[str, float]:
    """CPU milliseconds of each stage of one volume, in this process."""
    stage_ms: dict[str, float] = {}

    def timed(stage: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = call()
        stage_ms[stage] = round(1e3 * (time.process_time() - start), 2)
        return result

    image_volume = timed("read image", lambda: volumes.read_image(folder / "image.nii.gz"))
    label_volume = timed("read label", lambda: volumes.read_label(folder / "vessel.nii.gz"))
    timed("hash", lambda: [volumes.sha256_of_voxels(v.data_XYZ) for v in (image_volume, label_volume)])
    limits = timed("limits", lambda: intensity_limits(image_volume.data_XYZ, PERCENTILES))
    scaled_XYZ = timed("scale", lambda: scale_to_255(image_volume.data_XYZ, limits))
    pairs, corners_N3 = timed("cut", lambda: cut_pairs(scaled_XYZ, label_volume.data_XYZ, config))
    records = [
        Record(image, label, "sub-01", tuple(corner), "vessel", limits, 0)
        for (image, label), corner in zip(pairs, corners_N3.tolist(), strict=True)
    ]
    shape = shape_of(config.patch_shape)
    timed("write", lambda: write_shard(folder / "shard.h5", records, patch_shape=shape, origin="real"))
    return stage_ms


def _growth(stages: dict[str, dict[str, float]], ratio: float) -> dict[str, float]:
    """Stage -> exponent: 1 for a time in proportion to the voxels, 0 for one that does not depend on them."""
    pairs = {stage: (stages["whole"][stage], stages["small"][stage]) for stage in stages["whole"]}
    return {
        stage: round(math.log(whole / small) / math.log(ratio), 2)
        for stage, (whole, small) in pairs.items()
        if whole > 0 and small > 0 and ratio > 1
    }
