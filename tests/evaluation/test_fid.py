"""Features and FID of one's own images: those of the same shards, with the network named."""

import numpy as np
import pytest
import torch

from vesselgan.core.errors import DataError, UsageError
from vesselgan.evaluation.features import Preprocessing, features_of, open_extractor
from vesselgan.evaluation.fid import fid, image_features
from vesselgan.formats.shards import ShardSet
from vesselgan.metrics.frechet import frechet_distance

from ..conftest import write_set

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*samples of:RuntimeWarning")]
RANDOM = {"extractor": "random", "batch_size": 2, "device": "cpu"}


def test_own_images_have_the_features_of_shards(tmp_path):
    shards = ShardSet(write_set(tmp_path / "set", range(3), ["sub-1"]))
    extractor = open_extractor("random", None, None, 990)
    how = {"device": torch.device("cpu"), "batch_size": 2, "cache_dir": tmp_path / "features"}
    expected = features_of(shards, extractor, Preprocessing("noise", 990, "volume"), **how).features_NF
    images = [shards.image(i) for i in range(3)]
    features = image_features(images, **RANDOM)
    np.testing.assert_array_equal(features.values_NF, expected)
    other = (np.asfortranarray(image).astype(">f4") for image in images)
    np.testing.assert_array_equal(image_features(other, **RANDOM).values_NF, expected)
    distance = fid(image_features(np.stack(images), **RANDOM), image_features(images[:2], **RANDOM))
    assert distance.value == frechet_distance(expected, expected[:2])
    assert (distance.num_real, distance.num_generated) == (3, 2)


def test_random_features_say_so():
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 8))
    with pytest.raises(DataError, match="weights"):
        image_features(images)
    features = image_features(images, **RANDOM)
    distance = fid(features, features)
    assert not distance.is_comparable and "not comparable" in repr(distance)
    assert "not comparable" in repr(features) and len(distance.weights_sha256) == 64
    with pytest.raises(DataError, match="extractor"):
        fid(features, image_features(images, **RANDOM, seed=1))


@pytest.mark.parametrize("images", [[], np.zeros((4, 4, 4)), [np.full((4, 4, 4), 256.0)], [np.full((4, 4, 4), np.nan)],
                                    [np.zeros((4, 4, 4)), np.zeros((4, 4, 5))], [np.array(["a"])]])  # fmt: skip
def test_what_are_no_images_is_refused(images):
    with pytest.raises(DataError):
        image_features(images, **RANDOM)


@pytest.mark.parametrize("setting", [{"extractor": "vgg"}, {"background": "mean"}, {"batch_size": 0}, {"seed": -1}])
def test_settings_out_of_their_choices_are_refused(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        image_features([np.zeros((4, 4, 4))], **(RANDOM | setting))
