"""The audit of whole heads, on volumes: replayed, mirrored, of the label alone, and nobody's."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from vesselgan.config.compose import compose
from vesselgan.core.errors import DataError, PrivacyError, UsageError
from vesselgan.evaluation.audit import audit
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.synthetic_volumes import KINDS, SETTINGS, SyntheticVolumes
from vesselgan.formats.volumes import write_volume

from ..conftest import write_set, write_subject

SHAPE, SPACING_MM = (26, 28, 20), (4.0, 4.0, 4.5)
NUM_PEOPLE = 12  # on either side
Head = tuple[np.ndarray, np.ndarray]


def make_head(seed: int, shape: tuple[int, int, int] = SHAPE) -> Head:
    """(image, label): a tree of bent branches in noise, no two alike."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for _ in range(5):
        walk = ndimage.gaussian_filter1d(np.cumsum(rng.normal(size=(60, 3)), 0), 3, axis=0)
        place = rng.uniform(0.3, 0.7, 3) * shape + 1.2 * walk
        inside = place[((place >= 2) & (place < np.array(shape) - 2)).all(1)].astype(int)
        label[tuple(inside.T)] = 1
    label = ndimage.binary_dilation(label).astype(np.uint8)
    tissue = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    image = 80 + 20 * tissue / tissue.std() + 5 * rng.normal(size=shape) + 90 * label
    return np.clip(image, 1, 255).astype(np.float32), label


def replay(seed: int) -> Head:
    """A training head, mirrored for odd seeds, on a larger grid, darker and under new noise."""
    image, label = make_head(seed % NUM_PEOPLE)
    image = 0.7 * image + 4 * np.random.default_rng(9000 + seed).normal(size=SHAPE)
    image, label = (array[::-1] if seed % 2 else array for array in (image, label))
    wide = ((1, 2), (2, 0), (0, 3))
    return np.pad(np.clip(image, 1, 255), wide).astype(np.float32), np.pad(label, wide)


def replay_label(seed: int) -> Head:
    return make_head(7000 + seed, replay(seed)[1].shape)[0], replay(seed)[1]


def write_head(head: Head, paths: dict[str, Path]) -> None:
    affine = np.diag([*SPACING_MM, 1.0])
    arrays = {"images": head[0], "labels": head[1], "masks": np.ones_like(head[1])}
    for kind, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, arrays[kind], affine)


def write_visits(folder: Path, make: Callable[[int], Head], *, splits: tuple[str, ...]) -> Path:
    """A cohort of heads, NUM_PEOPLE in each split, with shards of noise, which hold the subjects' ids."""
    subjects, affine = {}, np.diag([*SPACING_MM, 1.0])
    for i, split in enumerate(np.repeat(splits, NUM_PEOPLE).tolist()):
        arrays = dict(zip(("image", "label"), make(i), strict=True))
        subjects[f"sub-{i:02d}"] = write_subject(folder / "nifti" / str(i), split, arrays, affine)
    Cohort("phantom", (0.0, 99.99), subjects).write(folder)
    for split in splits:
        names = [name for name, subject in subjects.items() if subject.split == split]
        write_set(folder / "shards/gan" / split, range(100 * len(split), 100 * len(split) + len(names)), names)
    return folder


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 12 training and 12 held-out heads and the shards cut from it; read, not changed."""
    folder = tmp_path_factory.mktemp("volumes") / "phantom"
    return write_visits(folder, make_head, splits=("train", "validation"))


@pytest.fixture
def work(tmp_path: Path, cohort: Path) -> Path:
    (tmp_path / "phantom").symlink_to(cohort)
    return tmp_path


def write_heads(folder: Path, seeds: range | list[int], make: Callable[[int], Head]) -> Path:
    volumes = SyntheticVolumes(folder)
    for seed in seeds:
        write_head(make(seed), {kind: volumes.path(kind, f"synthetic-{seed:04d}") for kind in KINDS})
    (folder / SETTINGS).write_text(json.dumps({"run": folder.name, "trained_on": None}))
    return folder


def run(work: Path, *folders: Path, record: str = "true", extractor: str = "null", words: Sequence[str] = ()) -> dict:
    out = work / "results" / "audit.json"
    always = [f"work_dir={work}", f"out={out}", f"record_only={record}", f"image.extractor={extractor}"]
    audit(compose("audit", [*always, f"synthetic=[{','.join(map(str, folders))}]", *words]))
    return json.loads(out.read_text())


def test_replayed_and_mirrored_heads_fail(work):
    result = run(work, write_heads(work / "heads", range(10), replay), extractor="random")
    assert (result["verdict"], result["samples"]) == ("fail", "volumes")
    assert result["count"]["training"] == result["count"]["held_out_people"] == NUM_PEOPLE
    assert result["spaces"]["features"]["copies"]["below"] >= 5  # noise hides more of them
    for name in ("image", "label", "centreline"):
        space = result["spaces"][name]
        assert space["copies"]["below"] >= 9, space["copies"]
        assert {one["patient"] for one in space["patients"][:10]} == {f"sub-{i:02d}" for i in range(10)}
        assert space["patients"][0]["rank"] == 1 and space["patients"][0]["of"] == NUM_PEOPLE + 1
        assert all(pair["synthetic"] == pair["training"] for pair in space["nearest"][:9])
    assert "10 synthetic volumes" in result["sentence"]


def test_somebodys_tree_below_another_image_fails(work):
    result = run(work, write_heads(work / "heads", range(10), replay_label))
    assert result["verdict"] == "fail" and result["spaces"]["image"]["copies"]["below"] < 4
    assert result["spaces"]["label"]["copies"]["below"] >= 9
    assert result["spaces"]["centreline"]["copies"]["chance"] < 1e-3


def test_one_head_of_the_training_set_fails(work):
    heads = write_heads(work / "heads", [3, *range(500, 504)], make_head)
    result = run(work, heads, write_heads(work / "others", range(704, 708), make_head))
    assert (result["verdict"], result["count"]["verbatim"]) == ("fail", 1)
    assert [one["verdict"] for one in result["synthetic"]] == ["fail", "cannot conclude"]
    assert result["inputs"]["synthetic volumes"][0] == SyntheticVolumes(heads).content_hash()


def test_nobodys_heads_are_too_few_to_pass(work):
    heads = write_heads(work / "heads", range(500, 512), make_head)
    with pytest.raises(PrivacyError, match="cannot conclude: copies of 1% .* synthetic volumes"):
        run(work, heads, record="false")
    result = json.loads((work / "results" / "audit.json").read_text())
    planted = {one["kind"]: one["share_found"] for one in result["planted"]}
    assert min(planted.values()) >= 0.95, planted
    for space in result["spaces"].values():
        auc = space["attacks"]["distance"]["sample"]["auc"]
        assert auc["interval"][0] < 0.5 < auc["interval"][1]


def test_second_visits_lead_through_replayed_heads(work):
    later = write_visits(work / "later", lambda i: replay(2 * NUM_PEOPLE + i), splits=("test",))
    heads = write_heads(work / "heads", range(12), replay)
    found = run(work, heads, words=[f"second_visits={later}"])["linkage"]["centreline"]
    assert found["patients"] == NUM_PEOPLE == found["linked"] and found["control"] < 6 and found["p"] < 0.01


def test_heads_that_cannot_be_audited_are_refused(work):
    heads = write_heads(work / "heads", range(500, 502), make_head)
    names = [f"synthetic-{i}" for i in range(4)]
    patches = write_set(work / "patches", range(300, 304), names, kind="synthetic")
    with pytest.raises(UsageError, match="patches and volumes"):
        run(work, heads, patches)
    (heads / "labels" / "synthetic-0500.nii.gz").unlink()
    with pytest.raises(DataError, match=r"synthetic-0500.*missing"):
        run(work, heads)
    (heads / SETTINGS).unlink()
    with pytest.raises(DataError, match=SETTINGS):
        run(work, heads)
