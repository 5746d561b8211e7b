"""One pair, ready for the GAN: from shards, checksums on, against gzipped .npy files read as the authors do."""

# X Y Z voxels, C channel

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep import patches
from data_prep.phantom import generate_subject
from vesselgan.config.schema import Benchmark
from vesselgan.data.patches import ShardDataset
from vesselgan.formats.intensities import intensity_limits, scale_to_255
from vesselgan.formats.shards import Record, ShardSet, write_manifest, write_shard
from vesselgan.tools.benchmark.interleave import interleave

SPACING_MM = (0.5, 0.5, 0.7)
PERCENTILES = (0.0, 99.995)
GZIP_LEVEL = 9  # gzip's own default, which the authors use
Pair = tuple[np.ndarray, np.ndarray]


def run(config: Benchmark) -> dict[str, Any]:
    """Milliseconds per pair and their ratio, for a scanner's integer counts and for preprocessed intensities.

    gzip unpacks integers faster than what denoising and N4 leave; shards do not depend on the content. One reader in
    this process, files in the page cache, patches not cached.
    """
    torch.set_num_threads(1)
    image_XYZ, label_XYZ, _, _ = generate_subject(config.seed, shape_of(config.shape), SPACING_MM)
    contents = {"counts": image_XYZ.astype(np.float32), "preprocessed": _smoothly_scaled(image_XYZ)}
    result: dict[str, Any] = {"pairs_per_round": config.num_patches, "patch_shape": list(config.patch_shape)}
    for name, content_XYZ in contents.items():
        result[name] = _compare(content_XYZ, label_XYZ, config)
    return result


def _compare(image_XYZ: np.ndarray, label_XYZ: np.ndarray, config: Benchmark) -> dict[str, Any]:
    pairs, corners_N3 = cut_pairs(image_XYZ, label_XYZ, config)
    with TemporaryDirectory() as folder:
        npy, shards = Path(folder) / "npy", Path(folder) / "shards"
        _write_as_the_authors(npy, pairs)
        dataset = _sharded(shards, pairs, corners_N3, intensity_limits(image_XYZ, PERCENTILES))
        candidates = {
            "authors": lambda number: _read_all(lambda i: read_as_the_authors(npy, i), len(pairs)),
            "shards": lambda number: _read_all(lambda i: dataset.read([i]), len(pairs)),
        }
        timings = interleave(candidates, config.repeats)
        num_bytes = [sum(file.stat().st_size for file in path.iterdir()) for path in (npy, shards)]
    per_pair = {
        name: {
            "cpu_ms": round(1e3 * t.cpu_s / len(pairs), 3),
            "wall_ms": round(1e3 * t.wall_s / len(pairs), 3),
            "bytes": n,
        }
        for (name, t), n in zip(timings.items(), num_bytes, strict=True)
    }
    authors, ours = timings["authors"], timings["shards"]
    ratios = {"ratio_cpu": round(authors.cpu_s / ours.cpu_s, 2), "ratio_wall": round(authors.wall_s / ours.wall_s, 2)}
    return {**per_pair, **ratios}


def shape_of(voxels: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = voxels
    return x, y, z


def phantom_dataset(folder: Path, config: Benchmark) -> ShardDataset:
    """config.num_patches pairs of a phantom in shards in `folder`, as training reads them."""
    image_XYZ, label_XYZ, _, _ = generate_subject(config.seed, shape_of(config.shape), SPACING_MM)
    return _sharded(folder, *cut_pairs(image_XYZ, label_XYZ, config), intensity_limits(image_XYZ, PERCENTILES))


def cut_pairs(image_XYZ: np.ndarray, label_XYZ: np.ndarray, config: Benchmark) -> tuple[list[Pair], np.ndarray]:
    """Pairs around vessels, and their corners."""
    corners_N3 = patches.vessel_corners(
        label_XYZ, config.patch_shape, config.num_patches, seed=config.seed, subject="sub-01", purpose="benchmark"
    )
    shape = config.patch_shape
    pairs = [(patches.cut(image_XYZ, at, shape), patches.cut(label_XYZ, at, shape)) for at in corners_N3]
    return pairs, corners_N3


def read_as_the_authors(folder: Path, number: int) -> Tensor:
    """float32 [2, X, Y, Z]: unpack both files, scale the image by its own extremes to [-1, 1], stack."""
    with gzip.open(folder / f"{number}-image.npy.gz", "rb") as file:
        image_XYZ = np.load(file, allow_pickle=False)
    with gzip.open(folder / f"{number}-label.npy.gz", "rb") as file:
        label_XYZ = np.load(file, allow_pickle=False)
    low, high = image_XYZ.min(), image_XYZ.max()
    scaled_XYZ = 2 * (image_XYZ - low) / (high - low) - 1
    return torch.from_numpy(np.stack([scaled_XYZ, label_XYZ.astype(np.float32)]))


def _write_as_the_authors(folder: Path, pairs: list[Pair]) -> None:
    folder.mkdir()
    for number, pair in enumerate(pairs):
        for kind, array_XYZ in zip(("image", "label"), pair, strict=True):
            with gzip.open(folder / f"{number}-{kind}.npy.gz", "wb", compresslevel=GZIP_LEVEL) as file:
                np.save(file, array_XYZ)


def _sharded(folder: Path, pairs: list[Pair], corners_N3: np.ndarray, limits: tuple[float, float]) -> ShardDataset:
    shape = shape_of(pairs[0][0].shape)
    records = [
        Record(scale_to_255(image, limits), label, "sub-01", tuple(corner), "vessel", limits, 0)
        for (image, label), corner in zip(pairs, corners_N3.tolist(), strict=True)
    ]
    info = write_shard(folder / "shard-00000.h5", records, patch_shape=shape, origin="real")
    write_manifest(
        folder,
        shards=[info],
        patch_shape=shape,
        origin="real",
        subjects={"sub-01": {"spacing_mm": list(SPACING_MM), "affine": np.eye(4).tolist()}},
        spacing_mm=SPACING_MM,
        percentiles=PERCENTILES,
        extra={},
    )
    return ShardDataset(ShardSet(folder), cache_bytes=0)


def _smoothly_scaled(image_XYZ: np.ndarray) -> np.ndarray:
    """The image times a field that changes slowly, as after N4: float32 without a pattern in its last bits."""
    x = np.linspace(0.9, 1.1, image_XYZ.shape[0], dtype=np.float32)[:, None, None]
    y = np.linspace(1.05, 0.95, image_XYZ.shape[1], dtype=np.float32)[None, :, None]
    return image_XYZ.astype(np.float32) * x * y


def _read_all(read: Callable[[int], object], count: int) -> None:
    for i in range(count):
        read(i)
