import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from vesselgan.config.compose import parse
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.errors import DataError, UsageError, exit_on_error
from vesselgan.evaluation.reference import match_kinds
from vesselgan.evaluation.run import evaluate
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.report import agreement, image_quality, raster, study_rows


def run(work: Path, *settings: str) -> dict:
    out = work / "results" / "image.json"
    words = ["evaluate=image", "name=tiny", f"work_dir={work}", f"out={out}", f"image.synthetic={work}/run/synthetic"]
    words += ["image.extractor=random", "image.num_seeds=2", "image.num_pairs=3", "image.num_clusters=4"]
    words += ["image.num_runs=2", "runtime.device=cpu"]
    evaluate(parse("evaluate", None, [*words, *settings]).config)
    return json.loads(out.read_text())


def refused(capsys, work: Path, *settings: str) -> tuple[int, str]:
    """The exit code of a run that is refused, and what it says; no result was written."""
    with pytest.raises(SystemExit) as stopped:
        exit_on_error(lambda: run(work, *settings))
    assert not (work / "results").exists()
    return stopped.value.code, capsys.readouterr().err


def without_provenance(result: dict) -> dict:
    return {key: value for key, value in result.items() if key != "provenance"}


def test_a_result_says_what_was_measured_and_how_and_is_the_same_again(image_road, capsys):
    result = run(image_road)
    said = capsys.readouterr().out
    assert (result["job"], result["name"], result["split"]) == ("image", "tiny", "validation")
    assert result["n"] == 18  # of 18 real and 20 synthetic
    assert result["reference"] == {
        "split": "validation", "is_held_out": True, "purpose": "unet", "count": 18, "kinds": {"vessel": 18},
        "patients": 3,
    }  # fmt: skip
    assert result["extractor"]["title"] == "random features, not comparable" in said
    assert result["extractor"]["is_comparable"] is False
    assert result["inputs"]["synthetic shards"] == content_hash(image_road / "run" / "synthetic")
    assert len(result["curve"]["recall"]) == len(result["curve"]["precision"]) == 1001
    assert result["method"]["seeds"] == [990, 991]
    assert [result["scores"][name]["interval"] for name in ("fid", "prd_auc")] == [None, None]  # three patients
    # Three patients: halves of 6 and 12 patches, so the floor and its neighbour have 6.
    assert result["floor"]["n"] == [6, 6]
    assert any("rank 17 at most" in note for note in result["notes"])
    assert result["training_overlap"].startswith("none: 18 reference patches against 8")
    assert result["preprocessing"]["zero_share"] == {"reference": 8 / 16**3, "synthetic": 8 / 16**3}
    assert (result["ms_ssim"]["num_scales"], result["ms_ssim"]["weights"]) == (1, [1.0])
    again = run(image_road)
    assert "features from" in capsys.readouterr().out
    assert without_provenance(again) == without_provenance(result)
    for path in (image_road / "features").iterdir():
        path.unlink()
    assert without_provenance(run(image_road)) == without_provenance(result)


def test_from_five_patients_on_there_is_an_interval_around_the_first_draw(image_road, write_set):
    validation = image_road / "phantom" / "shards" / "unet" / "validation"
    write_set(validation, range(200, 215), [f"sub-{number}" for number in range(3, 8)])
    result = run(image_road)
    for name in ("fid", "prd_auc"):
        low, high = result["scores"][name]["interval"]
        assert low <= result["scores"][name]["by_seed"][0] <= high
    assert result["labels"]["statistics"]["vessel_fraction"]["interval"] == [0.0, 0.0]


def test_labels_stand_beside_each_other_with_a_floor_and_spoilt_labels_lose(image_road):
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


def test_a_reference_with_training_patients_or_patches_is_refused(image_road, write_set, capsys):
    validation = image_road / "phantom" / "shards" / "unet" / "validation"
    write_set(validation, range(200, 206), ["sub-3", "sub-2"])
    code, said = refused(capsys, image_road)
    assert code == 3 and "patients of the training set (sub-2) are in the reference" in said
    assert "image.reference=train" in said
    # The same patch under another name: record 4 of the reference is training patch 103.
    write_set(validation, [200, 201, 202, 204, 103, 205], ["sub-3", "sub-4"])
    code, said = refused(capsys, image_road)
    assert code == 3 and "1 patch of the training set, under another name: patch 4, subject sub-3, is " in said
    assert "training patch 3, subject sub-2" in said
    asked = run(image_road, "image.reference=train", "image.num_clusters=2")
    assert (asked["reference"]["is_held_out"], asked["n"]) == (False, 8)
    assert asked["training_overlap"] == "the training split, asked by name"


def test_the_overlap_is_sought_in_what_the_gan_learned_from(image_road, capsys):
    """A GAN of another cohort could replay this one's held-out patches and none of its training patches."""
    made = image_road / "run" / "synthetic"
    assert any("is not checked" in note for note in run(image_road)["notes"])  # the patches do not say
    (image_road / "results" / "image.json").unlink()
    (image_road / "results").rmdir()
    say(made, trained_on="ab" * 32)
    for reference in ("validation", "train"):
        code, said = refused(capsys, image_road, f"image.reference={reference}", "image.num_clusters=2")
        assert code == 3 and "GAN was trained on other shards than" in said and "data=" in said
    say(made, trained_on=content_hash(image_road / "phantom/shards/gan/train"))
    assert not any("is not checked" in note for note in run(image_road)["notes"])


def say(folder: Path, **extra: str) -> None:
    """Put `extra` into a manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["extra"] |= extra
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_weights_that_are_not_those_expected_stop_the_command(image_road, capsys):
    weights = image_road / "resnet_10.pth"
    medicalnet = ["image.extractor=medicalnet", f"image.weights={weights}"]
    code, said = refused(capsys, image_road, *medicalnet)
    assert code == 3 and f"{weights}: cannot be read (No such file" in said
    torch.save({"state_dict": {"layer1.0.conv1.weight": torch.zeros(2)}}, weights)
    expected = "0" * 64
    code, said = refused(capsys, image_road, *medicalnet, f"image.weights_sha256='{expected}'")
    assert code == 3 and f"its sha256 is {sha256_of(weights)}, expected {expected}" in said
    code, said = refused(capsys, image_road, *medicalnet)
    assert code == 3 and "71 missing (conv1.weight" in said and "1 of another shape (layer1.0.conv1.weight [2]" in said


def test_a_run_with_random_features_is_marked_in_every_table_figure_and_file(image_road):
    say(image_road / "run" / "synthetic", weights_sha256="12" * 32)
    result = run(image_road)
    assert result["name"] == "tiny"
    segmented = {"subject": "sub-9", "dice": 0.5, "bavd_voxels": 1.0, "bavd_mm": 1.0}
    volumes = {"name": "synthetic", "cohort": "phantom", "subjects": [segmented | {"region": "all"}]}
    volumes["gan"] = {"run": "tiny", "weights_sha256": "12" * 32}
    metrics = ["dice", "bavd_voxels", "bavd_mm"]
    compared = [study_rows.from_results([volumes], metrics, "tiny")]
    quality, against = image_quality.section([result]), agreement.section([result], compared)
    mark = "random features, not comparable"
    for text in (quality.html, quality.files["table-1.md"]):
        assert text.count("tiny") > 2 and re.findall(rf"\btiny\b(?! \({mark}\))", text) == []
    files = ((quality, "table-1.csv", "tiny"), (against, "image-against-segmentation.csv", "phantom"))
    for part, name, ours in files:
        lines = [line for line in part.files[name].splitlines() if ours in line]
        assert lines and all(mark in line for line in lines)
    row = re.search(r"<tr><th>phantom, all vessels(.*?)</th>", against.html)
    assert row is not None and mark in row[1]
    curves, radii = (name for name, _ in raster.charts_of(quality.html))
    assert curves == "01-prd_curves__phantom.png" and "random_features__not_comparab" in radii
    assert f"{result['name']} ({mark}): AUC" in quality.html  # the curve's key, which its PNG has too


def test_one_patch_is_no_distribution_and_few_are_told(image_road, write_set, capsys):
    made = image_road / "run" / "synthetic"
    write_set(made, [300], ["synthetic-0"], origin="synthetic", kind="synthetic")
    code, said = refused(capsys, image_road)
    assert code == 3 and "18 real and 1 synthetic patches: scores of distributions need two or more" in said
    write_set(made, [300, 301], ["synthetic-0"], origin="synthetic", kind="synthetic")
    result = run(image_road)
    assert result["n"] == 2 and np.isfinite(result["scores"]["fid"]["mean"])
    assert "note: 2 samples of 512 features: the covariance has rank 1 at most" in capsys.readouterr().out


@pytest.mark.parametrize("background", ["noise", "zero"])
def test_the_reference_itself_scores_like_a_perfect_generator(image_road, write_set, background):
    made = [f"synthetic-{i}" for i in range(18)]
    write_set(image_road / "run" / "synthetic", range(200, 218), made, origin="synthetic", kind="synthetic")
    result = run(image_road, f"image.background={background}")
    assert result["scores"]["fid"]["mean"] < 1e-3
    assert result["scores"]["prd_auc"]["mean"] > 0.999
    assert result["nearest_distance"] == 0.0
    assert all(facts["distance"] == 0 for name, facts in result["labels"]["statistics"].items() if "distance" in facts)


def test_a_set_that_repeats_its_patches_is_told(image_road, write_set, capsys):
    made = [f"synthetic-{i}" for i in range(18)]
    write_set(image_road / "run" / "synthetic", [300, 301] * 9, made, origin="synthetic", kind="synthetic")
    result = run(image_road, "image.num_clusters=2")
    assert "note: 16 of 18 synthetic patches are copies of another one, voxel for voxel" in capsys.readouterr().out
    assert result["preprocessing"]["num_duplicates"] == {"reference": 0, "synthetic": 16}
    assert np.isfinite(result["scores"]["fid"]["mean"]) and result["scores"]["fid"]["mean"] > 0
    again = run(image_road, "image.num_clusters=2")  # from the cache
    assert without_provenance(again) == without_provenance(result)


def test_patches_of_air_are_no_overlap(image_road, write_set):
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


def test_what_cannot_be_scored_is_refused_with_the_remedy(image_road, capsys):
    with pytest.raises(UsageError, match="needs image.synthetic=DIR"):
        run(image_road, "image.synthetic=null")
    with pytest.raises(DataError, match="no shards of split test .there are: gan/train, unet/validation."):
        run(image_road, "image.reference=test")
    with pytest.raises(UsageError, match="holds real patches"):
        run(image_road, f"image.synthetic={image_road}/phantom/shards/gan/train")
    code, said = refused(capsys, image_road, "image.extractor=medicalnet")
    assert code == 3 and "error: image.weights=FILE is missing" in said
    with pytest.raises(UsageError, match="image.num_clusters=1: must be 2 or more"):
        run(image_road, "image.num_clusters=1")


def test_the_reference_is_mixed_like_the_training_patches(tmp_path, write_set):
    def joined(name: str, grid: int, vessel: int) -> ShardSet:
        from vesselgan.formats.shards import read_manifest, write_manifest

        parts = [(grid, "grid"), (vessel, "vessel")]
        folders = [
            write_set(tmp_path / name / kind, range(count), ["sub"], kind=kind) for count, kind in parts if count
        ]
        infos, first = [], read_manifest(folders[0])
        for number, folder in enumerate(folders):
            (info,) = read_manifest(folder).shards
            (folder / info.file).rename(tmp_path / name / f"{number}.h5")
            infos.append(type(info)(f"{number}.h5", info.count, info.bytes, info.sha256))
        write_manifest(
            tmp_path / name, shards=infos, patch_shape=first.patch_shape, origin="real", subjects=first.subjects,
            spacing_mm=first.spacing_mm, upper_percentile=99.99, extra={},
        )  # fmt: skip
        return ShardSet(tmp_path / name)

    training = joined("training", 4, 4)
    rows, note = match_kinds(joined("both", 3, 10), training, seed=0)
    assert note is None
    assert rows[:3].tolist() == [0, 1, 2] and len(rows) == 6 and len(set(rows[3:].tolist()) & set(range(3, 13))) == 3
    rows, note = match_kinds(joined("vessels", 0, 5), training, seed=0)
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert note == "the reference (5 vessel) lacks a kind of patch that the GAN was trained on (50% grid, 50% vessel)"
