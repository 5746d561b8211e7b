"""Features of the patches in shards: MedicalNet's, or a seeded random network's where that is asked by name.

N patches, X Y Z voxels, F features
"""

import hashlib
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.numpy import save
from torch import Tensor
from tqdm import tqdm

from vesselgan.config.schema import ImageScores
from vesselgan.core.atomic_io import PartialFile, describe, sha256_of
from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.formats.shards import ShardSet, content_hash, intensities
from vesselgan.models.medicalnet import NUM_FEATURES, ResNet10, init_weights_randomly, load_weights

RANDOM_TITLE = "random features, not comparable"
CACHE_VERSION = 3


@dataclass(frozen=True)
class Extractor:
    """A network and what a reader of its numbers must know of it."""

    network: ResNet10
    title: str
    sha256: str
    """Of the weights' file, or of the drawn weights."""
    is_checked: bool
    """Whether the sha256 is the one that the user expected."""
    is_comparable: bool
    """False for random weights."""


@dataclass(frozen=True)
class Preprocessing:
    """How a patch becomes the network's input."""

    background: str
    """What stands in for voxels of 0: `noise` N(0, 1), as in the authors' code, or `zero`, the noise's mean."""
    seed: int
    """Of the noise, with the patch's own digest: equal patches have equal noise, others share none."""
    scaling: str
    """`volume` or `patch`, as shards are read."""


@dataclass(frozen=True)
class Extracted:
    """Every patch of a set, in its order."""

    features_NF: np.ndarray
    """float32"""
    zero_share: float
    """Voxels of value 0, which `background` fills, of all."""
    num_constant: int
    """Patches whose voxels above 0 are all alike: nothing to scale by, so those are 0."""
    num_copies: int
    """Patches whose image is, voxel for voxel, that of an earlier one."""


def open_extractor(settings: ImageScores) -> Extractor:
    """The network that `settings.extractor` names.

    DataError: weights missing, not those expected, not safe to read or another network's. UsageError: weights given
    for a network that is random.
    """
    network = ResNet10().eval().requires_grad_(False)
    if settings.extractor == "random":
        if settings.weights is not None:
            raise UsageError("image.extractor=random draws its weights; leave image.weights out, or the extractor")
        init_weights_randomly(network, settings.seed)
        return Extractor(network, RANDOM_TITLE, _digest(network), True, False)
    if settings.weights is None:
        raise DataError(
            "image.weights=FILE is missing: MedicalNet's resnet_10_23dataset.pth, which you download yourself; "
            "image.extractor=random runs without, and its numbers compare with no others"
        )
    path = Path(settings.weights)
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise DataError(f"image.weights={path}: cannot be read ({error.strerror}); name MedicalNet's file") from error
    if settings.weights_sha256 is not None and sha256 != settings.weights_sha256.lower():
        raise DataError(
            f"image.weights={path}: its sha256 is {sha256}, expected {settings.weights_sha256} "
            "(image.weights_sha256): another or a damaged file; get it again"
        )
    load_weights(network, read_weights(path), str(path))
    return Extractor(network, "MedicalNet ResNet-10", sha256, settings.weights_sha256 is not None, True)


def read_weights(path: Path) -> object:
    """What a .pth or .safetensors file holds, without running anything in it. DataError for what cannot be read so."""
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: holds more than tensors, which could run code when read, so it is refused; get the file from "
            "MedicalNet's authors, or save its tensors alone as .safetensors"
        ) from error
    except Exception as error:  # a damaged archive answers with many exceptions
        raise DataError(f"{path}: cannot be read as weights ({_first_line(error)}); get it again") from error


def features_of(
    shards: ShardSet,
    extractor: Extractor,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    batch_size: int,
    cache_dir: Path,
) -> Extracted:
    """Features of every patch of a set, from the cache where it holds them, with progress where not.

    The cache is keyed by the shards' content, the weights, the preprocessing and the kind of device, so nothing in it
    grows old; a damaged file in it is made anew, and told.
    """
    key = {
        "version": CACHE_VERSION,
        "shards": content_hash(shards.folder),
        "extractor": extractor.sha256,
        "background": preprocessing.background,
        "noise_seed": preprocessing.seed if preprocessing.background == "noise" else None,
        "scaling": preprocessing.scaling,
        "device": device.type,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_dir / f"{name}.safetensors"
    if (cached := _read_cache(path, len(shards))) is not None:
        print(f"{shards.folder}: features from {path}", flush=True)
        return cached
    try:
        extracted = _extract(shards, extractor, preprocessing, device, batch_size)
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"{device}: no memory for {batch_size} patches of {list(shards.patch_shape)} at a time; take a smaller "
            "image.batch_size"
        ) from error
    _write_cache(path, extracted, key)
    return extracted


def network_input(image_XYZ: np.ndarray, background: str, seed: tuple[int, int]) -> tuple[np.ndarray, bool]:
    """(float32 [X, Y, Z]: the z-score over the voxels above 0, the others by `background`; whether it is constant).

    As in the authors' code, but the noise has a seed, and a patch without spread gives 0 and not 0/0.
    """
    is_tissue = image_XYZ > 0
    values_V = image_XYZ[is_tissue].astype(np.float64)
    spread = float(values_V.std()) if values_V.size else 0.0
    is_constant = spread <= 1e-9
    if background == "noise":
        made_XYZ = np.random.default_rng(seed).standard_normal(image_XYZ.shape, dtype=np.float32)
    else:
        made_XYZ = np.zeros(image_XYZ.shape, np.float32)
    made_XYZ[is_tissue] = 0 if is_constant else (values_V - values_V.mean()) / spread
    return made_XYZ, is_constant


def patch_hashes(shards: ShardSet) -> dict[bytes, int]:
    """Digest of each patch's stored image -> its number; patches of one value identify nobody and are left out."""
    hashes = {}
    for number in tqdm(range(len(shards)), unit="patch", desc="hashes", disable=None):
        stored_XYZ, _ = shards.stored_pair(number, label_threshold=0.5)
        if stored_XYZ.min() != stored_XYZ.max():
            hashes[_patch_digest(stored_XYZ)] = number
    return hashes


def _patch_digest(stored_XYZ: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(stored_XYZ), digest_size=16).digest()


def _extract(
    shards: ShardSet, extractor: Extractor, preprocessing: Preprocessing, device: torch.device, batch_size: int
) -> Extracted:
    network = extractor.network.to(device)
    features_NF = np.empty((len(shards), NUM_FEATURES), np.float32)
    zeros = constants = 0
    seen: set[bytes] = set()
    bar = tqdm(total=len(shards), unit="patch", desc=f"features of {shards.folder.name}", disable=None)
    with bar, torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
        for numbers, batch, num_zeros, num_constant in _batches(shards, preprocessing, batch_size, seen):
            made = network(batch.to(device)).float().cpu().numpy()
            features_NF[numbers] = made[: len(numbers)]
            zeros, constants = zeros + num_zeros, constants + num_constant
            bar.update(len(numbers))
    if not np.isfinite(features_NF).all():
        bad = np.flatnonzero(~np.isfinite(features_NF).all(axis=1))
        raise DataError(f"{shards.folder}: the features of patches {bad[:5].tolist()} are not finite; are its weights?")
    zero_share = zeros / (len(shards) * int(np.prod(shards.patch_shape)))
    return Extracted(features_NF, zero_share, constants, len(shards) - len(seen))


def _batches(
    shards: ShardSet, preprocessing: Preprocessing, batch_size: int, seen: set[bytes]
) -> Iterator[tuple[list[int], Tensor, int, int]]:
    """(patches' numbers, input [batch_size, 1, X, Y, Z], zero voxels, constant patches); `seen` gets every digest.

    The last batch is filled up by repetition: kernels are chosen by batch size, and features should not depend on how
    many patches there are.
    """
    for first in range(0, len(shards), batch_size):
        numbers = list(range(first, min(first + batch_size, len(shards))))
        inputs, zeros, constants = [], 0, 0
        for number in numbers:
            stored_XYZ, _ = shards.stored_pair(number, label_threshold=0.5)
            digest = _patch_digest(stored_XYZ)
            seen.add(digest)
            image_XYZ = intensities(stored_XYZ, preprocessing.scaling)
            # By its place, patch i of either set would have the same noise, which draws the two sets together.
            seed = (preprocessing.seed, int.from_bytes(digest))
            made_XYZ, is_constant = network_input(image_XYZ, preprocessing.background, seed)
            inputs.append(torch.from_numpy(made_XYZ))
            zeros, constants = zeros + int(np.count_nonzero(image_XYZ == 0)), constants + is_constant
        inputs += [inputs[-1]] * (batch_size - len(inputs))
        yield numbers, torch.stack(inputs).unsqueeze(1), zeros, constants


def _read_cache(path: Path, count: int) -> Extracted | None:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            features_NF, facts = file.get_tensor("features"), file.metadata()
        if features_NF.shape == (count, NUM_FEATURES) and facts["sha256"] == _sha256(features_NF):
            counts = int(facts["num_constant"]), int(facts["num_copies"])
            return Extracted(features_NF, float(facts["zero_share"]), *counts)
        problem = "its contents are not what was written"
    except FileNotFoundError:
        return None
    except Exception as error:  # safetensors and a damaged file: many exceptions
        problem = _first_line(error)
    print(f"{path}: damaged ({problem}), the features are made anew", flush=True)
    return None


def _write_cache(path: Path, extracted: Extracted, key: dict[str, object]) -> None:
    facts = {"sha256": _sha256(extracted.features_NF), "zero_share": repr(extracted.zero_share)}
    facts |= {"num_constant": str(extracted.num_constant), "num_copies": str(extracted.num_copies)}
    facts["key"] = json.dumps(key, sort_keys=True)
    try:
        partial = PartialFile(path)
    except BlockingIOError:  # another process writes the same bytes
        return
    except OSError as error:
        raise ResourceError(f"{path}: cannot be created ({error.strerror}); choose another work_dir") from error
    try:
        partial.write(save({"features": extracted.features_NF}, facts))
        if partial.error is not None:
            raise ResourceError(f"{path}: {describe(partial.error)}; make room and start again")
        partial.publish()
    finally:
        partial.discard()


def _digest(network: ResNet10) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]
