"""What a U-Net has learned from goes with it to the scores, which refuse those volumes."""

import dataclasses
import json
from pathlib import Path

import pytest

from vesselgan.config.compose import parse
from vesselgan.core.errors import DataError
from vesselgan.evaluation.run import evaluate
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.shards import ShardSet, content_hash, read_manifest
from vesselgan.segmentation.predict import segment
from vesselgan.segmentation.train import train_unet
from vesselgan.segmentation.training_provenance import learned_from, learned_from_preprocessed

SMALL = ["unet.filters=[4,8]", "unet.num_workers=0", "unet.batch_size=4", "unet.max_steps=1", "runtime.device=cpu"]


def digests(cohort: Path, split: str) -> list[str]:
    return sorted(subject.image_sha256 for subject in Cohort.read(cohort).of_split(split).values())


def renamed(tiny: Path, folder: Path, subject: str) -> Path:
    """A cohort of one test subject, which is this one of the tiny cohort."""
    theirs = dataclasses.replace(Cohort.read(tiny).subjects[subject], split="test")
    Cohort("elsewhere", (0.0, 99.9), {"patient-x": theirs}).write(folder)
    return folder


def test_scores_refuse_what_was_learned_from(tiny_cohort, afresh, tmp_path):
    run = tmp_path / "unet"
    afresh()
    train_unet(parse("train_unet", None, [f"data.cohort_dir={tiny_cohort}", *SMALL, "--run_dir", str(run)]))

    def scored(cohort: Path, split: str) -> dict:
        out = tmp_path / f"{cohort.name}-{split}"
        common = [f"data.cohort_dir={cohort}", f"split={split}"]
        segment(parse("segment", None, [*common, f"run={run}", f"out={out}", "runtime.device=cpu"]).config)
        words = [f"predictions={out}", "name=real", f"out={out}.json"]
        evaluate(parse("evaluate", None, [*common, *words]).config)
        return json.loads(Path(f"{out}.json").read_text())

    for subject, how in (("sub-1", "has learned from"), ("sub-3", "was chosen on")):
        with pytest.raises(DataError, match=f"{how} patient-x"):
            scored(renamed(tiny_cohort, tmp_path / subject, subject), "test")
    with pytest.raises(DataError, match="learned from sub-0, sub-1, sub-2"):
        scored(tiny_cohort, "train")
    result = scored(tiny_cohort, "test")
    assert result["training_overlap"].startswith("none; 2 compared with the 4")
    assert scored(tiny_cohort, "validation")["training_overlap"].startswith("none; 1 compared with the 3")
    assert digests(tiny_cohort, "train")[0] not in json.dumps(result)


def test_synthetic_patches_count_as_their_gans_data(tiny_cohort, tmp_path):
    real = ShardSet(tiny_cohort / "shards/unet/train")
    validation = ShardSet(tiny_cohort / "shards/unet/validation")
    assert learned_from(str(tiny_cohort), [real], validation) == {
        "train": digests(tiny_cohort, "train"),
        "validation": digests(tiny_cohort, "validation"),
        "unknown": [],
        "gan": None,
    }
    made, gan = tmp_path / "made", tmp_path / "cohort/shards/gan/train"
    gan.parent.mkdir(parents=True)
    gan.symlink_to(real.folder)
    made.symlink_to(validation.folder)  # stands for a synthetic set: what matters is what its manifest says
    synthetic = ShardSet(made)
    here, other = content_hash(gan), "ab" * 32
    for hashes, train, known in (
        ([here], digests(tiny_cohort, "train"), True),
        ([other], [], False),
        ([here, other], digests(tiny_cohort, "train"), False),
    ):
        extra = {"trained_on": hashes[0], "learned_from": hashes, "run": "gan-a", "weights_sha256": "cd" * 32}
        synthetic.manifest = dataclasses.replace(synthetic.manifest, extra=extra, origin="synthetic")
        synthetic.origin = "synthetic"
        found = learned_from(str(tmp_path / "cohort"), [synthetic], validation)
        assert (found["train"], not found["unknown"]) == (train, known)
        assert found["gan"] == {"run": "gan-a", "weights_sha256": "cd" * 32}
    heads = dataclasses.replace(synthetic.manifest, extra=extra | {"shape": [64, 64, 32], "noise": [0.0, 9.0]})
    synthetic.manifest = heads
    learned = learned_from(str(tmp_path / "cohort"), [synthetic], validation)
    assert (learned["gan"]["shape"], learned["gan"]["noise"]) == ([64, 64, 32], [0.0, 9.0])


def test_shards_of_unknown_volumes_are_told(tiny_cohort, synthetic_set):
    validation = ShardSet(tiny_cohort / "shards/unet/validation")
    assert "image_sha256" not in next(iter(read_manifest(synthetic_set).subjects.values()))
    assert len(learned_from(str(tiny_cohort), [validation], ShardSet(synthetic_set))["unknown"]) == 1


def test_a_cohort_tells_whether_it_is_preprocessed(tiny_cohort, tmp_path):
    assert learned_from_preprocessed(str(tmp_path)) is None
    assert learned_from_preprocessed(str(tiny_cohort)) is False
    (tiny_cohort / "nifti/sub-3/image.json").write_text("{}")  # of the one validation subject
    assert learned_from_preprocessed(str(tiny_cohort)) is True
    (tiny_cohort / "nifti/sub-3/image.json").unlink()
