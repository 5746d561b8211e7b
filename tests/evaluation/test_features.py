import hashlib
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vesselgan.config.compose import compose
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.errors import DataError, UsageError
from vesselgan.evaluation.features import (
    Extractor,
    Preprocessing,
    features_of,
    network_input,
    open_extractor,
    patch_hashes,
)
from vesselgan.formats.shards import ShardSet
from vesselgan.models.medicalnet import ResNet10, init_weights_randomly

from ..conftest import Canary, flip_bit, write_set

CPU = torch.device("cpu")


def opened(*words: str) -> Extractor:
    image = compose("evaluate", ["evaluate=image", "name=x", "out=x", *words]).image
    return open_extractor(image.extractor, image.weights, image.weights_sha256, image.seed)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    network = ResNet10()
    init_weights_randomly(network, 3)
    return {f"module.{name}": value for name, value in network.state_dict().items()}


def test_weights_come_from_a_hashed_file(tmp_path, state):
    path = tmp_path / "resnet_10.pth"
    torch.save({"state_dict": state}, path)
    extractor = opened(f"image.weights={path}")
    assert (extractor.sha256, extractor.is_checked, extractor.is_comparable) == (sha256_of(path), False, True)
    assert torch.equal(extractor.network.conv1.weight, state["module.conv1.weight"])
    assert not extractor.network.training
    known = opened(f"image.weights={path}", f"image.weights_sha256={sha256_of(path).upper()}")
    assert known.is_checked
    with pytest.raises(DataError, match=f"{sha256_of(path)}.*0000"):
        opened(f"image.weights={path}", f"image.weights_sha256='{'0' * 64}'")
    save_file(state, tmp_path / "resnet_10.safetensors")
    other = opened(f"image.weights={tmp_path}/resnet_10.safetensors")
    assert torch.equal(other.network.conv1.weight, state["module.conv1.weight"])
    # MedicalNet's file is as old as PyTorch 1.0, which had another container.
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    old = opened(f"image.weights={path}")
    assert torch.equal(old.network.conv1.weight, state["module.conv1.weight"])


def test_random_features_must_be_asked_for(tmp_path):
    with pytest.raises(DataError, match="image.weights"):
        opened()
    with pytest.raises(DataError, match="nowhere.pth"):
        opened(f"image.weights={tmp_path}/nowhere.pth")
    drawn = opened("image.extractor=random")
    assert not drawn.is_comparable and "not comparable" in drawn.title
    assert drawn.sha256 == opened("image.extractor=random").sha256
    assert drawn.sha256 != opened("image.extractor=random", "image.seed=1").sha256
    with pytest.raises(UsageError, match="image.weights"):
        opened("image.extractor=random", f"image.weights={tmp_path}/x.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_would_run_code_is_refused(tmp_path, name):
    canary, singer = tmp_path / "canary", tmp_path / "singer"
    pickle.loads(pickle.dumps(Canary(singer)))
    assert singer.exists()  # the trap works
    path = tmp_path / name
    torch.save({"state_dict": {}, "extra": Canary(canary)}, path)
    with pytest.raises(DataError, match=name):
        opened(f"image.weights={path}")
    path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(DataError, match=name):
        opened(f"image.weights={path}")
    assert not canary.exists()


def test_damaged_and_foreign_weights_are_named(tmp_path, state):
    path = tmp_path / "cut.pth"
    torch.save({"state_dict": state}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="cut.pth"):
        opened(f"image.weights={path}")
    torch.save({"state_dict": {"fc.weight": torch.zeros(3, 3)}}, path)
    with pytest.raises(DataError, match="72 missing .conv1.weight.*fc.weight"):
        opened(f"image.weights={path}")


def test_the_input_is_the_foregrounds_z_score():
    image = np.zeros((2, 2, 2), np.float32)
    image[0] = [[10, 20], [30, 40]]
    found, is_constant = network_input(image, "zero", (0, 0))
    spread = np.sqrt((15**2 + 5**2 + 5**2 + 15**2) / 4)
    assert found[0].ravel() == pytest.approx(np.array([-15, -5, 5, 15]) / spread)
    assert not is_constant and not found[1].any() and found.dtype == np.float32
    noisy, _ = network_input(image, "noise", (0, 0))
    assert np.array_equal(noisy[0], found[0]) and noisy[1].all()
    assert np.array_equal(noisy, network_input(image, "noise", (0, 0))[0])
    assert not np.array_equal(noisy[1], network_input(image, "noise", (0, 1))[0][1])  # each patch has its own
    large, _ = network_input(np.zeros((40, 40, 40), np.float32), "noise", (1, 1))
    # 64,000 draws: the mean's own spread is 0.004, the deviation's 0.003.
    assert (float(large.mean()), float(large.std())) == pytest.approx((0, 1), abs=0.02)


def test_a_patch_without_spread_is_zero():
    flat, is_constant = network_input(np.full((3, 3, 3), 7, np.float32), "noise", (0, 0))
    assert is_constant and not flat.any()
    air, is_constant = network_input(np.zeros((3, 3, 3), np.float32), "zero", (0, 0))
    assert is_constant and not air.any()


def test_features_are_single_patches_and_cached(tmp_path, capsys):
    shards = ShardSet(write_set(tmp_path / "set", range(5), ["sub-1"]))
    extractor = opened("image.extractor=random")
    how = Preprocessing("noise", 11, "volume")

    def features(preprocessing: Preprocessing = how, batch_size: int = 2) -> np.ndarray:
        made = features_of(
            shards, extractor, preprocessing, device=CPU, batch_size=batch_size, cache_dir=tmp_path / "features"
        )
        assert made.zero_share == 8 / 16**3
        return made.features_NF

    first = features()
    for i in range(5):
        digest = hashlib.blake2b(shards.stored_image(i), digest_size=16).digest()
        image, _ = network_input(shards.image(i), "noise", (11, int.from_bytes(digest)))
        alone = extractor.network(torch.from_numpy(image)[None, None])[0].numpy()
        assert np.allclose(first[i], alone, rtol=1e-4, atol=1e-5)  # another batch size may take another kernel
    (cached,) = (tmp_path / "features").iterdir()
    assert "features from" not in capsys.readouterr().out
    assert np.array_equal(features(), first)
    assert "features from" in capsys.readouterr().out
    flip_bit(cached, -10)
    assert np.array_equal(features(), first)
    assert "damaged (wrong checksum)" in capsys.readouterr().err
    # Anything that changes a feature has a file of its own; what does not, has not.
    assert not np.array_equal(features(Preprocessing("noise", 12, "volume")), first)
    still = features(Preprocessing("zero", 11, "volume"))
    assert np.array_equal(features(Preprocessing("zero", 12, "volume")), still)
    features(Preprocessing("zero", 11, "patch"))
    assert len(list((tmp_path / "features").iterdir())) == 4


def test_noise_is_the_patchs_own(tmp_path):
    """By place, real and synthetic patch i would share their noise, and FID would fall for it."""

    def make(seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Nearly all air: what differs between features is the noise in it."""
        image = np.zeros((16, 16, 16), np.float32)
        image[0, 0, :2] = [40, 40 + seed]
        return image, np.zeros((16, 16, 16), np.uint8)

    def features(name: str, seeds: list[int]) -> np.ndarray:
        shards = ShardSet(write_set(tmp_path / name, seeds, ["sub-1"], make=make))
        extractor = opened("image.extractor=random")
        how = {"device": CPU, "batch_size": 4, "cache_dir": tmp_path / "features"}
        return features_of(shards, extractor, Preprocessing("noise", 11, "volume"), **how).features_NF

    first, turned, other = features("a", [1, 2, 3, 4]), features("b", [4, 3, 2, 1]), features("c", [5, 6, 7, 8])
    assert np.array_equal(turned, first[::-1])  # a set is the same in any order
    away = np.linalg.norm(first[:, None] - other[None], axis=2)
    assert np.diag(away).min() > 0.5 * away.mean()  # by place these four were 0


def test_equal_patches_have_equal_hashes(tmp_path):
    def make(seed: int) -> tuple[np.ndarray, np.ndarray]:
        image = np.full((16, 16, 16), 40, np.float32)
        image[0, 0, 0] += seed
        return image, np.zeros((16, 16, 16), np.uint8)

    first = patch_hashes(ShardSet(write_set(tmp_path / "a", [0, 1, 2], ["sub-1"], make=make)))
    second = patch_hashes(ShardSet(write_set(tmp_path / "b", [2, 3], ["sub-2"], make=make)))
    assert sorted(first.values()) == [1, 2]
    (shared,) = set(first) & set(second)
    assert (first[shared], second[shared]) == (2, 0)
