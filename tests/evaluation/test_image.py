import json
from pathlib import Path

import numpy as np
import pytest

from vesselgan.config.compose import parse
from vesselgan.errors import DataError, UsageError, exit_on_error
from vesselgan.evaluation.jobs import evaluate
from vesselgan.evaluation.reference import like_training
from vesselgan.shards import ShardSet, content_hash


def run(work: Path, *settings: str) -> dict:
    out = work / "results" / "image.json"
    words = ["evaluate=image", "name=tiny", f"work_dir={work}", f"out={out}", f"image.synthetic={work}/run/synthetic"]
    words += ["image.extractor=random", "image.num_seeds=2", "image.num_pairs=3", "image.num_clusters=4"]
    words += ["image.num_runs=2", "runtime.device=cpu"]
    evaluate(parse("evaluate", None, [*words, *settings]).config)
    return json.loads(out.read_text())


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
    for name in ("fid", "prd_auc"):
        low, high = result["scores"][name]["interval"]
        assert low <= result["scores"][name]["by_seed"][0] <= high  # three patients: an interval, around the first draw
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


def test_a_reference_with_training_patients_or_patches_is_refused(image_road, write_set):
    validation = image_road / "phantom" / "shards" / "unet" / "validation"
    write_set(validation, range(200, 206), ["sub-3", "sub-2"])
    with pytest.raises(DataError, match="patients of the training set .sub-2. are in the reference"):
        run(image_road)
    # The same patch under another name: record 4 of the reference is training patch 103.
    write_set(validation, [200, 201, 202, 204, 103, 205], ["sub-3", "sub-4"])
    with pytest.raises(DataError, match="1 patches are patches of the training set.*patch 4, subject sub-3, is "
                                        "training patch 3, subject sub-2"):  # fmt: skip
        run(image_road)
    assert not (image_road / "results").exists()
    asked = run(image_road, "image.reference=train", "image.num_clusters=2")
    assert (asked["reference"]["is_held_out"], asked["n"]) == (False, 8)
    assert asked["training_overlap"] == "the training split, asked by name"


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
    with pytest.raises(SystemExit) as stopped:
        exit_on_error(lambda: run(image_road, "image.extractor=medicalnet"))
    assert stopped.value.code == 3
    assert "error: image.weights=FILE is missing" in capsys.readouterr().err
    with pytest.raises(UsageError, match="image.num_clusters=1: must be 2 or more"):
        run(image_road, "image.num_clusters=1")


def test_the_reference_is_mixed_like_the_training_patches(tmp_path, write_set):
    def joined(name: str, grid: int, vessel: int) -> ShardSet:
        from vesselgan.shards import read_manifest, write_manifest

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
    rows, note = like_training(joined("both", 3, 10), training, seed=0)
    assert note is None
    assert rows[:3].tolist() == [0, 1, 2] and len(rows) == 6 and len(set(rows[3:].tolist()) & set(range(3, 13))) == 3
    rows, note = like_training(joined("vessels", 0, 5), training, seed=0)
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert note == "the reference (5 vessel) lacks a kind of patch that the GAN learned from (50% grid, 50% vessel)"
