"""A study by its command on a tiny phantom: stopped in the middle of a U-Net and resumed, it is the unbroken one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = ["phantom.shape=[48,48,24]", "phantom.spacing_mm=[2.5,3,3.2]", "phantom.num_subjects=4"]
COHORT = ["data.prepare.split.validation=1", "data.prepare.split.test=2", "data.prepare.num_vessel_patches_gan=20"]
COHORT += ["data.prepare.num_vessel_patches_unet=20", "data.prepare.max_clipped_vessel_share=1"]
GAN = ["variant=sn", "variant.width=16", "train.batch_size=4", "train.max_steps=3", "train.num_workers=0"]
UNET = ["unet.filters=[4,8]", "unet.max_steps=30", "unet.validate_every=5", "unet.batch_size=4", "unet.num_workers=0"]
STUDY = ["num_patches=24", "seeds=[1]", "labels.num_narrowed=1", "labels.max_patches=10"]


def start(repository: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *words], cwd=repository, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
    )


def run(repository: Path, *words: str) -> None:
    assert start(repository, *words).wait(timeout=1200) == 0, words


def outcome(home: Path) -> dict:
    """What a study found, without when and where."""
    comparison = json.loads((home / "results/comparison.json").read_text())
    found = {key: comparison[key] for key in ("rows", "cohorts", "seeds", "statistics")}
    for name in ("sources.json", "gans/sn/label_threshold.json", "gans/sn/thresholds.json"):
        found[name] = json.loads((home / name).read_text())
    return found


@pytest.mark.soak
def test_a_study_that_was_stopped_and_resumed_is_the_unbroken_one(repository: Path, tmp_path: Path) -> None:
    work = f"work_dir={tmp_path}"
    run(repository, "-m", "data_prep.make_phantom", work, *TINY)
    run(repository, "-m", "data_prep.build_shards", work, *COHORT)
    gan = tmp_path / "runs/gan"
    run(repository, "launch/train_gan.py", "--run_dir", str(gan), work, *GAN)
    # An untrained GAN's scores lie around 0: only the lowest cuts find vessels.
    words = ["launch/study.py", work, f"runs=[{gan}]", "labels.thresholds=[0.01,0.05]", *STUDY, *UNET]
    broken, whole = tmp_path / "studies/broken", tmp_path / "studies/whole"

    process = start(repository, *words, "name=broken")
    checkpoints = broken / "unets/real-seed-1/checkpoints"
    deadline = time.monotonic() + 600
    while not list(checkpoints.glob("step_*/manifest.json")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert not (broken / "results").exists()
    run(repository, *words, "name=broken")
    run(repository, *words, "name=whole")

    assert outcome(broken) == outcome(whole)
    rows = {row["name"]: row for row in outcome(whole)["rows"]}
    assert list(rows) == ["real", "sn", "real+sn", "shuffled", "threshold"]
    assert all(row["runs"]["1"]["steps"] == 30 for row in rows.values() if row["runs"])
    assert rows["real"]["scores"]["phantom"]["intracranial"]["dice"]["n"] == 2
    report = whole / "report"
    assert "Table A.1" in (report / "index.html").read_text() and (report / "study-whole.md").is_file()
    marks = {path: path.stat().st_mtime_ns for path in (whole / "scores").iterdir()}
    run(repository, *words, "name=whole")  # once more: nothing is done again
    assert marks == {path: path.stat().st_mtime_ns for path in (whole / "scores").iterdir()}
