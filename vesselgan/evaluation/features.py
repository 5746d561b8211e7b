"""Features of the patches in shards, by MedicalNet or, with image.extractor=random, by a seeded random network.

N patches, X Y Z voxels, F features
"""

import hashlib
import json
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.numpy import save
from tqdm import tqdm

from vesselgan.core.atomic_io import PartialFile, describe, sha256_of
from vesselgan.core.console import log
from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.formats.intensities import from_stored
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.models.medicalnet import NUM_FEATURES, ResNet10, init_weights_randomly, load_weights

RANDOM_TITLE = "random features, not comparable"
CACHE_VERSION = 4
EXTRACTORS = ("medicalnet", "random")
BACKGROUNDS = ("noise", "zero")


@dataclass(frozen=True)
class Extractor:
    """A feature network and where its weights come from."""

    network: ResNet10
    title: str
    sha256: str
    """Of the weights' file, or of the random weights."""
    is_checked: bool
    """Whether the sha256 was compared with image.weights_sha256."""
    is_comparable: bool
    """False for random weights."""

    @property
    def record(self) -> dict[str, Any]:
        """For a result."""
        return {"title": self.title, "sha256": self.sha256, "is_checked": self.is_checked}


@dataclass(frozen=True)
class Preprocessing:
    """How a patch becomes the network's input."""

    background: str
    """Replaces voxels of 0: `noise` N(0, 1), as in the authors' code, or `zero`, the noise's mean."""
    seed: int
    """Of the noise, together with the patch's digest: equal patches get equal noise, others share none."""
    scaling: str
    """`volume` or `patch`, as in formats.intensities."""


@dataclass(frozen=True)
class Extracted:
    """Features of every patch of a set, in its order."""

    features_NF: np.ndarray
    """float32"""
    zero_share: float
    """Share of voxels of value 0, which `background` fills."""
    num_constant: int
    """Patches whose voxels above 0 have one value; their z-score is 0."""
    num_duplicates: int
    """Patches whose image equals an earlier one voxel for voxel."""


def open_extractor(name: str, weights: str | Path | None, weights_sha256: str | None, seed: int) -> Extractor:
    """Returns the network `medicalnet`, with its weights' file, or `random`, with weights drawn from `seed`.

    Raises UsageError for another name, DataError if the weights are missing, unexpected, unsafe to read or another
    network's.
    """
    if name not in EXTRACTORS:
        raise UsageError(f"extractor={name!r} is not one of {', '.join(EXTRACTORS)}")
    network = ResNet10().eval().requires_grad_(False)
    if name == "random":
        if weights is not None:
            raise UsageError("image.extractor=random draws its weights; leave out image.weights or image.extractor")
        init_weights_randomly(network, seed)
        return Extractor(network, RANDOM_TITLE, _digest(network), True, False)
    if weights is None:
        raise DataError(
            "image.weights=FILE is missing: download MedicalNet's resnet_10_23dataset.pth and name it; "
            "image.extractor=random runs without it, but its scores compare with no others"
        )
    path = Path(weights)
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise DataError(f"image.weights={path}: cannot be read ({error.strerror}); name MedicalNet's file") from error
    if weights_sha256 is not None and sha256 != weights_sha256.lower():
        raise DataError(
            f"image.weights={path}: its sha256 is {sha256}, expected {weights_sha256} "
            "(image.weights_sha256): another or a damaged file; get it again"
        )
    load_weights(network, read_weights(path), str(path))
    return Extractor(network, "MedicalNet ResNet-10", sha256, weights_sha256 is not None, True)


def read_weights(path: Path) -> object:
    """Returns the content of a .pth or .safetensors file without running code in it; raises DataError otherwise."""
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: holds more than tensors, which could run code when read; get the file from MedicalNet's authors, "
            "or save its tensors alone as .safetensors"
        ) from error
    except Exception as error:  # a damaged archive raises many kinds
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
    """Returns the features of every patch of a set, from the cache if it has them.

    The cache's key is the shards' content, the weights, the preprocessing and the kind of device, so an entry never
    goes stale. A damaged entry is computed again, with a message.
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
        log.info(f"{shards.folder}: features from {path}")
        return cached
    images = tqdm(range(len(shards)), unit="patch", desc=f"features of {shards.folder.name}", disable=None)
    try:
        extracted = extract(map(shards.stored_image, images), extractor, preprocessing, device, batch_size)
    except DataError as error:
        raise DataError(f"{shards.folder}: {error}") from error
    _write_cache(path, extracted, key)
    return extracted


def network_input(image_XYZ: np.ndarray, background: str, seed: tuple[int, int]) -> tuple[np.ndarray, bool]:
    """Returns (float32 [X, Y, Z]: z-score over the voxels above 0, the others filled by `background`; is_constant).

    As in the authors' code, except that the noise is seeded and a constant patch gives 0 instead of 0/0.
    """
    is_tissue = image_XYZ > 0
    values_V = image_XYZ[is_tissue].astype(np.float64)
    sd = float(values_V.std()) if values_V.size else 0.0
    is_constant = sd <= 1e-9
    if background == "noise":
        input_XYZ = np.random.default_rng(seed).standard_normal(image_XYZ.shape, dtype=np.float32)
    else:
        input_XYZ = np.zeros(image_XYZ.shape, np.float32)
    input_XYZ[is_tissue] = 0 if is_constant else (values_V - values_V.mean()) / sd
    return input_XYZ, is_constant


def patch_hashes(shards: ShardSet) -> dict[bytes, int]:
    """Digest of each patch's stored image -> its index, without constant patches, which identify nobody."""
    hashes = {}
    for index in tqdm(range(len(shards)), unit="patch", desc="hashes", disable=None):
        stored_XYZ = shards.stored_image(index)
        if stored_XYZ.min() != stored_XYZ.max():
            hashes[_patch_digest(stored_XYZ)] = index
    return hashes


def _patch_digest(stored_XYZ: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(stored_XYZ).data, digest_size=16).digest()


def extract(
    stored_images: Iterable[np.ndarray],
    extractor: Extractor,
    preprocessing: Preprocessing,
    device: torch.device,
    batch_size: int,
) -> Extracted:
    """Features of images [X, Y, Z] as shards store them (uint16), read once in their order.

    Raises DataError for no images, and for features that are not finite; ResourceError if memory runs out.
    """
    network, images = extractor.network.to(device), iter(stored_images)
    features: list[np.ndarray] = []
    digests: set[bytes] = set()
    num_images = num_voxels = num_zeros = num_constant = 0
    with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
        while stored := list(islice(images, batch_size)):
            inputs = []
            for stored_XYZ in stored:
                input_XYZ, zeros, is_constant, digest = _prepare(stored_XYZ, preprocessing)
                inputs.append(torch.from_numpy(input_XYZ))
                digests.add(digest)
                num_zeros, num_constant = num_zeros + zeros, num_constant + is_constant
                num_voxels += stored_XYZ.size
            # Filled by repetition: kernels are chosen by batch size, and features must not depend on their number.
            inputs += [inputs[-1]] * (batch_size - len(inputs))
            try:
                features_BF = network(torch.stack(inputs).unsqueeze(1).to(device)).float().cpu().numpy()
            except torch.OutOfMemoryError as error:
                raise ResourceError(
                    f"{device}: out of memory with {batch_size} patches of {list(stored[0].shape)} per batch; take a "
                    "smaller image.batch_size"
                ) from error
            features.append(features_BF[: len(stored)])
            num_images += len(stored)
    if not features:
        raise DataError("there are no images to score")
    features_NF = np.concatenate(features)
    if not np.isfinite(features_NF).all():
        bad = np.flatnonzero(~np.isfinite(features_NF).all(axis=1))
        raise DataError(f"the features of patches {bad[:5].tolist()} are not finite; check the weights")
    return Extracted(features_NF, num_zeros / num_voxels, num_constant, num_images - len(digests))


def _prepare(stored_XYZ: np.ndarray, preprocessing: Preprocessing) -> tuple[np.ndarray, int, bool, bytes]:
    """(the network's input, zero voxels, whether the patch is constant, its digest)."""
    digest = _patch_digest(stored_XYZ)
    image_XYZ = from_stored(stored_XYZ, preprocessing.scaling)
    # Seeded by index, patch i of both sets would share its noise, which draws the two sets together.
    seed = (preprocessing.seed, int.from_bytes(digest))
    input_XYZ, is_constant = network_input(image_XYZ, preprocessing.background, seed)
    return input_XYZ, int(np.count_nonzero(image_XYZ == 0)), is_constant, digest


def _read_cache(path: Path, count: int) -> Extracted | None:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            features_NF, metadata = file.get_tensor("features"), file.metadata()
        if features_NF.shape == (count, NUM_FEATURES) and metadata["sha256"] == _sha256(features_NF):
            counts = int(metadata["num_constant"]), int(metadata["num_duplicates"])
            return Extracted(features_NF, float(metadata["zero_share"]), *counts)
        problem = "wrong checksum"
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file raises many kinds
        problem = _first_line(error)
    log.warning(f"{path}: damaged ({problem}); computing the features again")
    return None


def _write_cache(path: Path, extracted: Extracted, key: dict[str, object]) -> None:
    metadata = {
        "sha256": _sha256(extracted.features_NF),
        "zero_share": repr(extracted.zero_share),
        "num_constant": str(extracted.num_constant),
        "num_duplicates": str(extracted.num_duplicates),
        "key": json.dumps(key, sort_keys=True),
    }
    try:
        partial = PartialFile(path)
    except BlockingIOError:  # another process is writing the same bytes
        return
    except OSError as error:
        raise ResourceError(f"{path}: cannot be created ({error.strerror}); choose another work_dir") from error
    try:
        partial.write(save({"features": extracted.features_NF}, metadata))
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
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]
