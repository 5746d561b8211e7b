"""A study by its command on a tiny phantom: stopped in the middle of a U-Net and resumed, it is the unbroken one.

One of its GANs is private, trained on two ranks, and ends in Table B.1.
"""

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
COHORT += [
    "data.prepare.num_vessel_patches_unet=20",
    "data.prepare.max_clipped_vessel_share=1",
    "data.prepare.patch_shape=[32,32,16]",
]
GAN = ["variant.width=8", "train.batch_size=4", "train.max_steps=3", "train.num_workers=0"]
PRIVATE = ["variant=dpgan", "variant.dp.delta=1e-5"]
RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
UNET = ["unet.filters=[4,8]", "unet.max_steps=8", "unet.validate_every=4", "unet.batch_size=4", "unet.num_workers=0"]
STUDY = ["num_patches=24", "seeds=[1]", "labels.num_narrowed=1", "labels.max_patches=10"]


def start(repository: Path, *overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *overrides], cwd=repository, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
    )


def run(repository: Path, *overrides: str) -> None:
    assert start(repository, *overrides).wait(timeout=1200) == 0, overrides


def outcome(home: Path) -> dict:
    """What a study found, without when and where."""
    comparison = json.loads((home / "results/comparison.json").read_text())
    found = {key: comparison[key] for key in ("rows", "cohorts", "seeds", "statistics")}
    for name in ("sources.json", "gans/sn/label_threshold.json", "gans/sn/thresholds.json"):
        found[name] = json.loads((home / name).read_text())
    return found


@pytest.mark.soak
def test_a_resumed_study_is_the_unbroken_one(repository: Path, tmp_path: Path) -> None:
    work = f"work_dir={tmp_path}"
    run(repository, "-m", "data_prep.make_phantom", work, *TINY)
    run(repository, "-m", "data_prep.build_shards", work, *COHORT)
    gan = tmp_path / "runs/gan"
    run(repository, "launch/train_gan.py", "--run_dir", str(gan), work, "variant=sn", *GAN)
    dpgan = tmp_path / "runs/dpgan"
    run(repository, *RANKS, "launch/train_gan.py", f"--run_dir={dpgan}", work, *PRIVATE, *GAN)
    # An untrained GAN's scores lie around 0: only the lowest cuts find vessels.
    overrides = ["launch/study.py", work, f"runs=[{gan},{dpgan}]", "labels.thresholds=[0.01,0.05]", *STUDY, *UNET]
    overrides += ["image.extractor=random"]
    broken, whole = tmp_path / "studies/broken", tmp_path / "studies/whole"

    process = start(repository, *overrides, "name=broken")
    checkpoints = broken / "unets/real-seed-1/checkpoints"
    deadline = time.monotonic() + 600
    while not list(checkpoints.glob("step_*/manifest.json")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert not (broken / "results").exists()
    run(repository, *overrides, "name=broken")
    run(repository, *overrides, "name=whole")

    assert outcome(broken) == outcome(whole)
    rows = {row["name"]: row for row in outcome(whole)["rows"]}
    assert list(rows) == ["real", "sn", "dpgan", "real+sn", "real+dpgan", "shuffled", "threshold"]
    assert all(row["runs"]["1"]["steps"] == 8 for row in rows.values() if row["runs"])
    assert rows["real"]["scores"]["phantom"]["intracranial"]["dice"]["n"] == 2
    spent = json.loads((dpgan / "finished.json").read_text())["privacy"]
    assert spent["steps"] == 15 and rows["dpgan"]["privacy"]["epsilon"] == spent["epsilon"] > 0
    assert [name for name, row in rows.items() if row["privacy"]] == ["dpgan"]  # not where real patches came beside
    page, tables = ((whole / "report" / name).read_text() for name in ("index.html", "study-whole.md"))
    assert "Table A.1" in page and "No epsilon covers" in page
    assert all(f"{figure}, axial slices" in page for figure in ("Figure 4", "Figure B.1"))
    assert "Figure 5, PRD curves" in page and "samples of GANs: no run has any" not in page
    private = [line for line in tables.splitlines() if line.startswith("| U-Net on dpgan; ")]
    assert private and all(f"epsilon {spent['epsilon']:.3g} per patch at delta 1e-05" in line for line in private)
    marks = {path: path.stat().st_mtime_ns for path in (whole / "scores").iterdir()}
    run(repository, *overrides, "name=whole")  # once more: nothing is done again
    assert marks == {path: path.stat().st_mtime_ns for path in (whole / "scores").iterdir()}
