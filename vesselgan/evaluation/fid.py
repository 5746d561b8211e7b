"""Features and the Frechet distance of one's own images, with the network and its weights named in the result.

N images, X Y Z voxels, F features
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vesselgan.core.errors import DataError, UsageError
from vesselgan.evaluation.features import BACKGROUNDS, Preprocessing, extract, open_extractor
from vesselgan.formats.intensities import to_stored
from vesselgan.metrics.frechet import frechet_distance
from vesselgan.metrics.masks import as_array
from vesselgan.runtime.distributed import choose_device

Images = Iterable[np.ndarray]
"""Arrays [X, Y, Z] of one shape in [0, 255], as `ShardSet.image` gives them, or one array [N, X, Y, Z]."""


@dataclass(frozen=True)
class ImageFeatures:
    """The features of some images."""

    values_NF: np.ndarray = field(repr=False)
    """float32"""
    extractor: str
    """The network; of random weights it says so."""
    weights_sha256: str
    is_comparable: bool
    """Whether distances may be compared with others of the same weights: not for random ones."""


@dataclass(frozen=True)
class Fid:
    """A Frechet distance between the features of real and generated images."""

    value: float
    num_real: int
    num_generated: int
    extractor: str
    weights_sha256: str
    is_comparable: bool


def image_features(
    images: Images,
    *,
    weights: str | Path | None = None,
    extractor: str = "medicalnet",
    weights_sha256: str | None = None,
    background: str = "noise",
    seed: int = 990,
    batch_size: int = 8,
    device: str = "auto",
) -> ImageFeatures:
    """The features of evaluate=image, of images that lie in no shards.

    extractor: `medicalnet`, with `weights` its file resnet_10_23dataset.pth, or `random`, with weights drawn from the
    seed. background: `noise` or `zero`, in place of voxels of 0.
    Raises DataError for missing weights and for arrays that are no images, UsageError for a setting out of its choices.
    """
    if background not in BACKGROUNDS:
        raise UsageError(f"background={background!r} is not one of {', '.join(BACKGROUNDS)}")
    if batch_size < 1 or seed < 0:
        raise UsageError(f"batch_size={batch_size}, seed={seed}: must be 1 or more, and 0 or more")
    network = open_extractor(extractor, weights, weights_sha256, seed)
    preprocessing = Preprocessing(background, seed, "volume")
    extracted = extract(_stored(images), network, preprocessing, choose_device(device, 0), batch_size)
    return ImageFeatures(extracted.features_NF, network.title, network.sha256, network.is_comparable)


def fid(real: ImageFeatures, generated: ImageFeatures) -> Fid:
    """The Frechet distance (Heusel 2017) of two sets of images.

    It depends on the numbers of images: compare only distances of equal numbers and weights. Raises DataError for
    features of different networks or weights.
    """
    if real.weights_sha256 != generated.weights_sha256:
        raise DataError(
            f"features of {real.extractor} and of {generated.extractor}, of other weights: use one extractor"
        )
    distance = frechet_distance(real.values_NF, generated.values_NF)
    numbers = len(real.values_NF), len(generated.values_NF)
    return Fid(distance, *numbers, real.extractor, real.weights_sha256, real.is_comparable)


def _stored(images: Images) -> Iterator[np.ndarray]:
    """Every image as shards store it, so that features equal those of the same patch in a shard."""
    shape = None
    for number, image in enumerate(images):
        image_XYZ = np.ascontiguousarray(as_array(image, f"image {number}"), np.float32)
        shape = shape or image_XYZ.shape
        if image_XYZ.ndim != 3 or image_XYZ.shape != shape or not image_XYZ.size:
            raise DataError(f"image {number} has shape {image_XYZ.shape}: expected [X, Y, Z], the same for all images")
        try:
            yield to_stored(image_XYZ)
        except DataError as error:
            raise DataError(f"image {number}: {error}") from error
