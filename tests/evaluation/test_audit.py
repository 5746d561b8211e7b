"""The audit, through the command's own function, on shards: replayed, partly replayed and new patches."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from vesselgan.config.compose import compose
from vesselgan.core.errors import DataError, PrivacyError, UsageError, exit_on_error
from vesselgan.evaluation.audit import audit
from vesselgan.evaluation.audit_samples import patients_hash
from vesselgan.evaluation.features import RANDOM_TITLE
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.shards import ShardSet, content_hash, read_manifest, write_manifest
from vesselgan.privacy.attacks.linkage import NOT_APPLICABLE

from ..conftest import flip_bit, write_set

SHAPE = (8, 6, 8)
NUM_TRAINING, NUM_HELD_OUT = 48, 800
ENOUGH = 2000  # beside which 800 held-out patches are
TRAINING_PEOPLE = [f"sub-{i}" for i in range(12)]
PEOPLE = [f"sub-held{i}" for i in range(12)]
Patch = tuple[np.ndarray, np.ndarray]


@functools.cache
def make_patch(seed: int) -> Patch:
    """Noise with a random piece of vessel, no two alike."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1)
    label = (field >= np.quantile(field, 0.7)).astype(np.uint8)
    return np.clip(110 + 22 * rng.normal(size=SHAPE) + 40 * label, 0, 255).astype(np.float32), label


def move(patch: Patch, seed: int) -> Patch:
    """Mirrored, shifted by a voxel along some axes, darker, and under noise of a tenth of its standard deviation."""
    rng = np.random.default_rng(10_000 + seed)
    axes, shift = [axis for axis in range(3) if rng.integers(2)], rng.integers(-1, 2, 3)
    image, label = (ndimage.shift(np.flip(array, axes), shift, order=0, mode="nearest") for array in patch)
    image = 0.6 * image + 20 + 0.06 * image.std() * rng.normal(size=SHAPE)
    return np.clip(image, 0, 255).astype(np.float32), np.ascontiguousarray(label)


def replay(seed: int) -> Patch:
    return move(make_patch(seed % NUM_TRAINING), seed)


def replay_label(seed: int) -> Patch:
    """A new image with a training patch's label."""
    return make_patch(30_000 + seed)[0], replay(seed)[1]


def mixed(seed: int) -> Patch:
    """Copies for seeds below 1000, else new."""
    return replay(seed) if seed < 1000 else make_patch(seed)


@pytest.fixture(scope="session")
def real_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training patches of 12 people, held-out ones of 12 others; read, not changed."""
    shards = tmp_path_factory.mktemp("audit") / "shards"
    write_set(shards / "gan" / "train", range(NUM_TRAINING), TRAINING_PEOPLE, make=make_patch)
    write_set(shards / "unet" / "validation", range(5000, 5000 + NUM_HELD_OUT), PEOPLE, make=make_patch)
    return shards


@pytest.fixture
def road(tmp_path: Path, real_shards: Path) -> Path:
    """A work folder with them, where either set may be replaced."""
    for name in ("gan/train", "unet/validation"):
        (tmp_path / "phantom" / "shards" / name).parent.mkdir(parents=True)
        (tmp_path / "phantom" / "shards" / name).symlink_to(real_shards / name)
    return tmp_path


@pytest.fixture
def few_held_out(road: Path) -> Path:
    """As `road`, with 60 held-out patches, which is quick."""
    return replaced(road, "unet/validation", range(5000, 5060), PEOPLE)


def replaced(road: Path, name: str, seeds: range, people: list[str]) -> Path:
    folder = road / "phantom" / "shards" / name
    folder.unlink()
    write_set(folder, seeds, people, make=make_patch)
    return road


def write_synthetic(road: Path, seeds: range | list[int], patch: Callable[[int], Patch]) -> Path:
    names = [f"synthetic-{i}" for i in range(len(seeds))]
    return write_set(road / "synthetic", seeds, names, kind="synthetic", make=patch)


def run(road: Path, *words: str) -> dict:
    out = road / "results" / "audit.json"
    always = [f"work_dir={road}", f"out={out}", "image.extractor=null"]
    audit(compose("audit", [*always, f"synthetic=[{road / 'synthetic'}]", *words]))
    return json.loads(out.read_text())


RECORD = "record_only=true"
FEATURES = "image.extractor=random"


def planted(result: dict) -> dict[str, dict]:
    return {one["kind"]: one for one in result["planted"]}


def test_an_audit_names_the_cohort_it_read(few_held_out):
    write_synthetic(few_held_out, range(20_000, 20_020), make_patch)
    Cohort("clinic", (0.0, 99.99), {}).write(few_held_out / "phantom")
    assert run(few_held_out, RECORD)["cohort"] == "clinic"


@pytest.mark.soak
def test_new_patches_pass(road, capsys):
    made = write_synthetic(road, range(20_000, 20_000 + ENOUGH), make_patch)
    result = run(road, FEATURES)
    assert (result["job"], result["name"], result["verdict"], result["reasons"]) == ("audit", "tiny", "pass", [])
    count = {"synthetic": ENOUGH, "training": NUM_TRAINING, "held_out": NUM_HELD_OUT, "verbatim": 0}
    assert result["count"] == count | {"training_people": 12, "held_out_people": 12}
    for space in result["spaces"].values():
        auc = space["attacks"]["distance"]["sample"]["auc"]
        assert auc["interval"][0] < 0.5 < auc["interval"][1]
        assert all(control[0] < 0.5 < control[1] for control in (auc["control_members"], auc["control_others"]))
        assert len(space["patients"]) == 12 and space["patients"][0]["of"] == 13
    assert all(one["share_found"] >= 0.95 and one["power"]["0.01"] >= 0.95 for one in result["planted"])
    assert result["resolution"]["smallest_false_positive_rate"] == {"sample": 1 / NUM_HELD_OUT, "patient": 1 / 12}
    shards = road / "phantom" / "shards"
    folders = {"reference": shards / "unet/validation", "training": shards / "gan/train"}
    assert result["inputs"] == {f"{name} shards": content_hash(folder) for name, folder in folders.items()} | {
        "synthetic shards": [content_hash(made)],
        "training patients": patients_hash(ShardSet(folders["training"])),
    }
    said = capsys.readouterr().out
    assert "distance of image" in said and f"{ENOUGH} synthetic patches" in said and "pass: nothing was found" in said


def test_a_replaying_generator_fails(few_held_out):
    write_synthetic(few_held_out, range(96), replay)
    result = run(few_held_out, RECORD, FEATURES)
    assert result["extractor"]["title"] == RANDOM_TITLE
    assert result["spaces"]["features"]["copies"]["median"] < result["spaces"]["features"]["copies"]["median_held_out"]
    auc = result["spaces"]["image"]["attacks"]["distance"]["sample"]["auc"]
    assert result["verdict"] == "fail" and auc["value"] > 0.9 and auc["control_members"][1] < auc["value"]
    assert result["resolution"]["patients_pointed_at"] == 12
    assert all(one["rank"] == 1 for one in result["spaces"]["image"]["patients"])
    assert all(pair["synthetic"] % NUM_TRAINING == pair["training"] for pair in result["spaces"]["image"]["nearest"])


def test_an_exact_copy_fails_alone(few_held_out):
    write_synthetic(few_held_out, [7, *range(20_000, 20_050)], make_patch)
    result = run(few_held_out, RECORD)
    assert (result["verdict"], result["count"]["verbatim"]) == ("fail", 1)
    assert "1 of 51" in result["reasons"][0]


def test_replayed_labels_alone_fail(few_held_out):
    write_synthetic(few_held_out, range(96), replay_label)
    result = run(few_held_out, RECORD)
    assert result["verdict"] == "fail" and result["spaces"]["image"]["copies"]["below"] < 10
    assert result["spaces"]["label"]["attacks"]["distance"]["sample"]["auc"]["value"] > 0.9
    assert result["spaces"]["centreline"]["copies"]["chance"] < 1e-3


def test_one_percent_of_moved_copies_fails(road):
    write_synthetic(road, [*range(10), *range(20_000, 20_990)], mixed)
    result = run(road, RECORD)
    assert (result["verdict"], result["count"]["verbatim"]) == ("fail", 0)
    assert {pair["synthetic"] for pair in result["spaces"]["image"]["nearest"][:10]} == set(range(10))
    found = planted(result)
    assert set(found) == {"noisy", "mirrored", "shifted", "all_three", "label_only"}
    assert all(one["share_found"] >= 0.95 and one["planted"] == 100 for one in found.values())


def test_few_patches_cannot_conclude(few_held_out):
    write_synthetic(few_held_out, range(20_000, 20_500), make_patch)
    with pytest.raises(PrivacyError, match="cannot conclude"):
        run(few_held_out)
    result = json.loads((few_held_out / "results" / "audit.json").read_text())
    assert result["verdict"] == "cannot conclude" and "held-out patches" in result["reasons"][0]


def test_five_patients_cannot_conclude(road):
    replaced(road, "gan/train", range(30), ["sub-1", "sub-2", "sub-3"])
    replaced(road, "unet/validation", range(5000, 5060), PEOPLE[:2])
    write_synthetic(road, range(20_000, 20_050), make_patch)
    result = run(road, RECORD)
    assert result["verdict"] == "cannot conclude" and "3 training and 2 held-out patients" in result["reasons"][0]
    assert result["spaces"]["image"]["attacks"]["distance"]["sample"]["auc"]["interval"] is None


def test_one_held_out_patient_cannot_conclude(road):
    replaced(road, "unet/validation", range(5000, 5060), PEOPLE[:1])
    write_synthetic(road, range(20_000, 20_050), make_patch)
    assert run(road, RECORD)["verdict"] == "cannot conclude"


def test_sets_that_leave_together_are_audited_together(few_held_out):
    made = write_synthetic(few_held_out, range(20_000, 20_050), make_patch)
    names = [f"synthetic-{i}" for i in range(40)]
    copied = few_held_out / "copied"
    write_set(copied, range(40), names, kind="synthetic", make=replay)
    result = run(few_held_out, RECORD, f"synthetic=[{made},{copied}]")
    assert (result["verdict"], result["count"]["synthetic"]) == ("fail", 90)
    assert [(one["count"], one["verdict"]) for one in result["synthetic"]] == [(50, "cannot conclude"), (40, "fail")]
    assert "50 synthetic patches" in result["synthetic"][0]["sentence"]
    assert result["inputs"]["synthetic shards"] == [content_hash(made), content_hash(copied)]


def test_equal_labels_cannot_be_told(few_held_out):
    def make(seed: int) -> Patch:
        """One label for all."""
        return make_patch(seed)[0], make_patch(0)[1]

    shards = few_held_out / "phantom" / "shards"
    (shards / "gan/train").unlink()
    write_set(shards / "gan/train", range(NUM_TRAINING), TRAINING_PEOPLE, make=make)
    write_set(shards / "unet/validation", range(5000, 5060), PEOPLE, make=make)
    write_synthetic(few_held_out, range(20_000, 20_100), make)
    result = run(few_held_out, RECORD)
    assert result["verdict"] == "cannot conclude" and planted(result)["label_only"]["share_found"] < 0.5
    assert result["spaces"]["label"]["attacks"]["distance"]["p_holm"] > 0.05


def test_air_and_empty_labels_cannot_conclude(few_held_out):
    def make(seed: int) -> Patch:
        return np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)

    write_synthetic(few_held_out, range(20), make)
    result = run(few_held_out, RECORD)
    assert result["verdict"] == "cannot conclude" and result["spaces"]["image"]["copies"]["synthetic"] == 0


def test_a_closed_gate_exits_7_unless_overridden(few_held_out, capsys):
    write_synthetic(few_held_out, range(40), replay)
    assert run(few_held_out, RECORD)["override_privacy_gate"] is None
    with pytest.raises(SystemExit) as stopped:
        exit_on_error(lambda: run(few_held_out))
    assert stopped.value.code == 7 and "40 of 40" in capsys.readouterr().err
    assert json.loads((few_held_out / "results" / "audit.json").read_text())["verdict"] == "fail"
    reason = "phantoms, nobody's data"
    overridden = run(few_held_out, f'override_privacy_gate="{reason}"')
    assert (overridden["verdict"], overridden["override_privacy_gate"]) == ("fail", reason)
    assert reason in capsys.readouterr().out
    with pytest.raises(UsageError, match="override_privacy_gate"):
        run(few_held_out, 'override_privacy_gate=" "')


def test_what_cannot_be_audited_is_refused(road, capsys):
    made = write_synthetic(road, range(20_000, 20_010), make_patch)
    manifest = read_manifest(made)
    facts = {key: getattr(manifest, key) for key in ("shards", "patch_shape", "origin", "subjects", "spacing_mm")}
    write_manifest(made, **facts, percentiles=(0.0, 99.99), extra={"trained_on": "ab" * 32})
    with pytest.raises(DataError, match="GAN was trained on other shards"):
        run(road)
    write_manifest(made, **facts, percentiles=(0.0, 99.99), extra={})
    with pytest.raises(UsageError, match="audit needs run=RUN"):
        run(road, "synthetic=[]")
    with pytest.raises(UsageError, match="twice"):
        run(road, f"synthetic=[{made},{made}]")
    with pytest.raises(UsageError, match="holds real patches"):
        run(road, f"synthetic=[{road}/phantom/shards/gan/train]")
    with pytest.raises(DataError, match="split test"):
        run(road, "reference=test")
    with pytest.raises(UsageError, match="validation, test"):
        run(road, "reference=train")
    with pytest.raises(UsageError, match="would change nothing"):
        run(road, "checkpoint=step_00000001")
    replaced(road, "unet/validation", range(5000, 5010), ["sub-3"])
    with pytest.raises(SystemExit) as stopped:
        exit_on_error(lambda: run(road))
    assert stopped.value.code == 3 and "sub-3" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["synthetic", "phantom/shards/gan/train", "phantom/shards/unet/validation"])
def test_changed_bytes_are_not_audited(few_held_out, name):
    write_synthetic(few_held_out, range(20_000, 20_010), make_patch)
    replaced(few_held_out, "gan/train", range(NUM_TRAINING), TRAINING_PEOPLE)
    flip_bit(few_held_out / name / "shard-0.h5")
    with pytest.raises(DataError, match=r"shard-0\.h5"):
        run(few_held_out, RECORD)


def test_a_replaying_generator_links_second_visits(few_held_out):
    def second_visit(seed: int) -> Patch:
        """A training patch of another day."""
        return move(make_patch(seed), 500 + seed)

    later = few_held_out / "later"
    write_set(later / "shards" / "unet" / "test", range(NUM_TRAINING), TRAINING_PEOPLE, make=second_visit)
    write_set(few_held_out / "nobody" / "shards" / "gan" / "train", range(900, 904), ["sub-else"], make=make_patch)
    write_synthetic(few_held_out, range(96), replay)
    assert run(few_held_out, RECORD)["linkage"] == NOT_APPLICABLE
    result = run(few_held_out, RECORD, f"second_visits={later}")
    image = result["linkage"]["image"]
    assert image["patients"] == 12 and image["linked"] >= 11 and image["control"] < 6 and image["p"] < 1e-2
    assert any("second visit" in reason for reason in result["reasons"])
    names = [f"synthetic-{i}" for i in range(60)]
    new = {"kind": "synthetic", "make": make_patch}
    others = write_set(few_held_out / "others", range(20_000, 20_060), names, **new)
    result = run(few_held_out, RECORD, f"second_visits={later}", f"synthetic=[{others}]")
    assert result["verdict"] == "cannot conclude" and "tried on 12 patients" in result["sentence"]
    result = run(few_held_out, RECORD, f"second_visits={few_held_out / 'nobody'}", f"synthetic=[{others}]")
    assert result["linkage"] == NOT_APPLICABLE and "no later scan" in result["notes"][-1]
    with pytest.raises(DataError, match="second_visits"):
        run(few_held_out, RECORD, f"second_visits={few_held_out}")
