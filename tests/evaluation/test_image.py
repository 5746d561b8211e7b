import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vesselgan.config.compose import parse
from vesselgan.core.errors import DataError, UsageError, exit_on_error
from vesselgan.evaluation.reference import match_kinds
from vesselgan.evaluation.run import evaluate
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.shards import ShardSet, content_hash

from ..conftest import edit_json, write_set, write_shards


def run(work: Path, *settings: str) -> dict:
    out = work / "results" / "image.json"
    words = ["evaluate=image", "name=tiny", f"work_dir={work}", f"out={out}", f"image.synthetic={work}/run/synthetic"]
    words += ["image.extractor=random", "image.num_seeds=2", "image.num_pairs=3", "image.num_clusters=4"]
    words += ["image.num_runs=2", "runtime.device=cpu"]
    evaluate(parse("evaluate", None, [*words, *settings]).config)
    return json.loads(out.read_text())


def refused(capsys, work: Path, *settings: str) -> tuple[int, str]:
    """The exit code of a run that is refused, and what it says; no result was written."""
    shutil.rmtree(work / "results", ignore_errors=True)
    with pytest.raises(SystemExit) as stopped:
        exit_on_error(lambda: run(work, *settings))
    assert not (work / "results").exists()
    return stopped.value.code, capsys.readouterr().err


def without_provenance(result: dict) -> dict:
    return {key: value for key, value in result.items() if key != "provenance"}


def test_a_result_is_the_same_again(image_road):
    result = run(image_road)
    assert (result["job"], result["name"], result["split"]) == ("image", "tiny", "validation")
    assert result["n"] == 18  # of 18 real and 20 synthetic
    reference = {"split": "validation", "is_held_out": True, "purpose": "unet", "count": 18, "patients": 3}
    assert result["reference"] == reference | {"kinds": {"vessel": 18}}
    assert result["extractor"]["is_comparable"] is False
    assert any("is not checked" in note for note in result["notes"])  # the patches do not say what they learned from
    assert result["inputs"]["synthetic shards"] == content_hash(image_road / "run" / "synthetic")
    assert len(result["curve"]["recall"]) == len(result["curve"]["precision"]) == 1001
    assert result["method"]["seeds"] == [990, 991]
    assert [result["scores"][name]["interval"] for name in ("fid", "prd_auc")] == [None, None]  # three patients
    # Three patients: halves of 6 and 12 patches, so the floor and its neighbour have 6.
    assert result["floor"]["n"] == [6, 6]
    assert result["preprocessing"]["zero_share"] == {"reference": 8 / 16**3, "synthetic": 8 / 16**3}
    assert (result["ms_ssim"]["num_scales"], result["ms_ssim"]["weights"]) == (1, [1.0])
    (image_road / "features").unlink()  # the first may have come from the cache, this one does not
    assert without_provenance(run(image_road)) == without_provenance(result)


def test_two_visits_are_one_patient(image_road, capsys):
    shards = image_road / "phantom" / "shards"
    visits = [f"sub-{number}-visit-{visit}" for number in (3, 4, 5) for visit in (1, 2)]
    write_set(shards / "unet/validation", range(200, 218), visits)
    name_patients(shards / "unet/validation", {visit: visit.split("-visit")[0] for visit in visits})
    result = run(image_road)
    assert (result["reference"]["patients"], result["num_patients"]) == (3, 3)
    assert result["scores"]["fid"]["interval"] is None  # of three
    assert result["labels"]["statistics"]["vessel_fraction"]["interval"] is None
    name_patients(shards / "gan/train", {"sub-1": "sub-3"})  # another visit of a patient of the reference
    code, said = refused(capsys, image_road)
    assert code == 3 and "sub-3" in said


def name_patients(folder: Path, patients: dict[str, str]) -> None:
    def name(manifest: dict) -> None:
        for subject, patient in patients.items():
            manifest["subjects"][subject]["patient"] = patient

    edit_json(folder / "manifest.json", name)


def test_the_cohorts_own_name_counts(image_road):
    Cohort("clinic", (0.0, 99.99), {}).write(image_road / "phantom")
    assert run(image_road)["cohort"] == "clinic"


def test_five_patients_give_an_interval(image_road):
    validation = image_road / "phantom" / "shards" / "unet" / "validation"
    write_set(validation, range(200, 215), [f"sub-{number}" for number in range(3, 8)])
    result = run(image_road)
    for name in ("fid", "prd_auc"):
        low, high = result["scores"][name]["interval"]
        assert low <= result["scores"][name]["by_seed"][0] <= high
    assert result["labels"]["statistics"]["vessel_fraction"]["interval"] == [0.0, 0.0]


def test_labels_are_compared_and_spoilt_ones_lose(image_road):
    labels = run(image_road)["labels"]
    assert labels["n"] == 18
    found = labels["statistics"]
    # A bar of 4 x 4 through a patch of 16 x 16; both sets are made alike.
    assert found["vessel_fraction"]["real"]["mean"] == pytest.approx(1 / 16)
    assert found["vessel_fraction"]["distance"] == 0.0
    assert found["num_components"]["synthetic"]["mean"] == 1.0
    assert found["component_voxels"]["real"]["quantiles"]["0.5"] == 256
    assert found["consistency"]["synthetic"]["mean"] > 0.99
    assert found["vessel_fraction"]["floor"] == {"n": 6, "real": 0.0, "synthetic": 0.0}
    assert sum(found["radius_histogram"]["real"]) == pytest.approx(1)
    for side in ("real", "synthetic"):
        spoilt = labels["consistency_controls"][side]
        assert spoilt["shifted"] < found["consistency"][side]["mean"] - 0.1
        assert spoilt["shuffled"] < found["consistency"][side]["mean"] - 0.1


def test_a_reference_that_overlaps_training_is_refused(image_road, capsys):
    validation = image_road / "phantom" / "shards" / "unet" / "validation"
    write_set(validation, range(200, 206), ["sub-3", "sub-2"])
    code, said = refused(capsys, image_road)
    assert code == 3 and "sub-2" in said and "image.reference=train" in said
    # The same patch under another name: record 4 of the reference is training patch 103.
    write_set(validation, [200, 201, 202, 204, 103, 205], ["sub-3", "sub-4"])
    code, said = refused(capsys, image_road)
    assert code == 3 and "patch 4, subject sub-3, is training patch 3, subject sub-2" in said
    asked = run(image_road, "image.reference=train", "image.num_clusters=2")
    assert (asked["reference"]["is_held_out"], asked["n"]) == (False, 8)


def test_overlap_is_sought_in_the_gans_data(image_road, capsys):
    """A GAN of another cohort could replay this one's held-out patches and none of its training patches."""
    made = image_road / "run" / "synthetic"
    say(made, trained_on="ab" * 32)
    for reference in ("validation", "train"):
        code, said = refused(capsys, image_road, f"image.reference={reference}", "image.num_clusters=2")
        assert code == 3 and "data=" in said
    say(made, trained_on=content_hash(image_road / "phantom/shards/gan/train"))
    assert not any("is not checked" in note for note in run(image_road)["notes"])


def say(folder: Path, **extra: str) -> None:
    """Put `extra` into a manifest."""
    edit_json(folder / "manifest.json", lambda manifest: manifest["extra"].update(extra))


def test_one_patch_is_no_distribution(image_road, capsys):
    made = image_road / "run" / "synthetic"
    write_set(made, [300], ["synthetic-0"], kind="synthetic")
    code, said = refused(capsys, image_road)
    assert code == 3 and "18 real and 1 synthetic" in said
    write_set(made, [300, 301], ["synthetic-0"], kind="synthetic")
    result = run(image_road)
    assert result["n"] == 2 and np.isfinite(result["scores"]["fid"]["mean"])
    assert any("rank 1" in note for note in result["notes"])


@pytest.mark.parametrize("background", ["noise", "zero"])
def test_the_reference_scores_as_a_perfect_generator(image_road, background):
    made = [f"synthetic-{i}" for i in range(18)]
    write_set(image_road / "run" / "synthetic", range(200, 218), made, kind="synthetic")
    result = run(image_road, f"image.background={background}")
    assert result["scores"]["fid"]["mean"] < 1e-3
    assert result["scores"]["prd_auc"]["mean"] > 0.999
    assert result["nearest_distance"] == 0.0
    assert all(facts["distance"] == 0 for name, facts in result["labels"]["statistics"].items() if "distance" in facts)


def test_a_set_that_repeats_its_patches_is_told(image_road):
    made = [f"synthetic-{i}" for i in range(18)]
    write_set(image_road / "run" / "synthetic", [300, 301] * 9, made, kind="synthetic")
    result = run(image_road, "image.num_clusters=2")
    assert any("16 of 18" in note for note in result["notes"])
    assert result["preprocessing"]["num_duplicates"] == {"reference": 0, "synthetic": 16}
    assert np.isfinite(result["scores"]["fid"]["mean"]) and result["scores"]["fid"]["mean"] > 0


def test_patches_of_air_are_no_overlap(image_road):
    def make(seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Air where the seed is 0."""
        source = np.random.default_rng(seed)
        image = source.uniform(1, 255, (16, 16, 16)).astype(np.float32) * (seed > 0)
        return image, (image > 200).astype(np.uint8)

    shards = image_road / "phantom" / "shards"
    write_set(shards / "gan" / "train", [0, 101, 102], ["sub-1", "sub-2"], make=make)
    write_set(shards / "unet" / "validation", [0, 201, 202, 203], ["sub-3", "sub-4"], make=make)
    result = run(image_road, "image.num_clusters=2")
    assert result["training_overlap"].startswith("none")
    assert result["preprocessing"]["num_constant"] == {"reference": 1, "synthetic": 0}


def test_what_cannot_be_scored_is_refused(image_road, capsys):
    with pytest.raises(UsageError, match="image.synthetic"):
        run(image_road, "image.synthetic=null")
    with pytest.raises(DataError, match="test .*gan/train, unet/validation"):
        run(image_road, "image.reference=test")
    with pytest.raises(UsageError, match="holds real patches"):
        run(image_road, f"image.synthetic={image_road}/phantom/shards/gan/train")
    with pytest.raises(UsageError, match="image.num_clusters"):
        run(image_road, "image.num_clusters=1")
    code, said = refused(capsys, image_road, "image.extractor=medicalnet")
    assert code == 3 and "image.weights" in said


def test_the_reference_is_mixed_like_training(tmp_path):
    def joined(name: str, grid: int, vessel: int) -> ShardSet:
        parts = [(grid, "grid"), (vessel, "vessel")]
        folders = [write_set(tmp_path / name / kind, range(n), ["sub"], kind=kind) for n, kind in parts if n]
        records = [record for folder in folders for record in ShardSet(folder)]
        return ShardSet(write_shards(tmp_path / name, records))

    training = joined("training", 4, 4)
    rows, note = match_kinds(joined("both", 3, 10), training, seed=0)
    assert note is None
    assert rows[:3].tolist() == [0, 1, 2] and len(rows) == 6 and len(set(rows[3:].tolist()) & set(range(3, 13))) == 3
    rows, note = match_kinds(joined("vessels", 0, 5), training, seed=0)
    assert rows.tolist() == [0, 1, 2, 3, 4] and "lacks a kind" in note
