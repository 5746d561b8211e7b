"""Studies by their command on a tiny phantom: one is stopped and resumed, one ranks GANs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from vesselgan.config.compose import from_yaml
from vesselgan.core import processes

pytestmark = pytest.mark.soak
TINY = ["phantom.shape=[48,48,24]", "phantom.spacing_mm=[2.5,3,3.2]", "phantom.num_subjects=4"]
COHORT = ["data.prepare.split.validation=1", "data.prepare.split.test=2", "data.prepare.num_vessel_patches_gan=20"]
COHORT += ["data.prepare.num_vessel_patches_unet=20", "data.prepare.max_clipped_vessel_share=1"]
COHORT += ["data.prepare.patch_shape=[32,32,16]"]
GAN = ["variant.width=8", "train.batch_size=4", "train.max_steps=3", "train.num_workers=0"]
PRIVATE = ["variant=dpgan", "variant.dp.delta=1e-5"]
UNET = ["unet.filters=[4,8]", "unet.max_steps=8", "unet.validate_every=4", "unet.batch_size=4", "unet.num_workers=0"]
# An untrained GAN's scores lie around 0: only the lowest cuts find vessels.
STUDY = ["launch/study.py", "num_patches=24", "labels.thresholds=[0.01,0.05]", "labels.num_narrowed=1"]
STUDY += ["labels.max_patches=10", *UNET]


class Trained(NamedTuple):
    repository: Path
    work: Path
    gan: Path


def start(repository: Path, *overrides: str) -> subprocess.Popen:
    words, environment = [sys.executable, *overrides], os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, cwd=repository, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def run(repository: Path, *overrides: str) -> str:
    process = start(repository, *overrides)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def trained(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A cohort and a GAN with a checkpoint of each of its steps."""
    work = tmp_path_factory.mktemp("work")
    run(repository, "-m", "data_prep.make_phantom", f"work_dir={work}", *TINY)
    run(repository, "-m", "data_prep.build_shards", f"work_dir={work}", *COHORT)
    gan = work / "runs/gan"
    words = [f"work_dir={work}", "variant=sn", *GAN, "train.checkpoint_every=1"]
    run(repository, "launch/train_gan.py", "--run_dir", str(gan), *words)
    return Trained(repository, work, gan)


def weights_of(unet: Path) -> dict[str, bytes]:
    return {str(path.relative_to(unet)): path.read_bytes() for path in unet.glob("checkpoints/step_*/*.safetensors")}


def test_a_stopped_study_resumes_to_its_end(trained):
    repository, work, _ = trained
    dpgan, home = work / "runs/dpgan", work / "studies/own"
    run(repository, "launch/train_gan.py", f"--run_dir={dpgan}", f"work_dir={work}", *PRIVATE, *GAN)
    overrides = [*STUDY, f"work_dir={work}", f"runs=[{dpgan}]", "seeds=[1]", "image.extractor=random", "name=own"]
    process = start(repository, *overrides)
    unet = home / "unets/real-seed-1"
    deadline = time.monotonic() + 600
    while not list(unet.glob("checkpoints/step_*/manifest.json")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM and not (home / "results").exists()
    run(repository, *overrides)

    (command,) = json.loads((home / "done/unet-real-seed-1.json").read_text())["commands"]
    unbroken = work / "unbroken"
    words = [str(unbroken) if word == str(unet) else word for word in command]
    subprocess.run(words, cwd=repository, env=processes.environment(os.cpu_count() or 1), check=True)
    assert len(weights_of(unet)) > 1 and weights_of(unet) == weights_of(unbroken)
    check_outcome(home, json.loads((dpgan / "finished.json").read_text())["privacy"])


def check_outcome(home: Path, spent: dict) -> None:
    """A row for every source, and the private GAN's epsilon where no real patches came beside it."""
    rows = {row["name"]: row for row in json.loads((home / "results/comparison.json").read_text())["rows"]}
    assert list(rows) == ["real", "dpgan", "real+dpgan", "shuffled", "threshold"]
    assert all(row["runs"]["1"]["steps"] == 8 for row in rows.values() if row["runs"])
    assert rows["real"]["scores"]["phantom"]["intracranial"]["dice"]["n"] == 2
    assert spent["steps"] == 15 and rows["dpgan"]["privacy"]["epsilon"] == spent["epsilon"] > 0
    assert [name for name, row in rows.items() if row["privacy"]] == ["dpgan"]
    page, tables = ((home / "report" / name).read_text() for name in ("index.html", "study-own.md"))
    assert "Table A.1" in page and "No epsilon covers" in page
    assert "Figure B.1, axial slices" in page
    assert "Figure 5, PRD curves" in page and "samples of GANs: no run has any" not in page
    private = [line for line in tables.splitlines() if line.startswith("| U-Net on dpgan; ")]
    assert private and all(f"epsilon {spent['epsilon']:.3g} per patch at delta 1e-05" in line for line in private)


def test_a_sweep_reads_no_test_volume(trained):
    """The last test of the cohort, whose test volumes it removes."""
    repository, work, gan = trained
    cohort = json.loads((work / "phantom/cohort.json").read_text())["subjects"]
    for name in (name for name, subject in cohort.items() if subject["split"] == "test"):
        for path in (work / "phantom/nifti" / name).iterdir():
            path.unlink()
    overrides = [*STUDY, "study=sweep", "name=both", f"work_dir={work}", f"runs=[{gan}]", "unet=residual", "seeds=[1]"]
    overrides += ["sweep.checkpoints=[step_00000002]", "sweep.learning_rates=[1e-4]", "sweep.variant=sn"]
    overrides += [f"sweep.overrides={json.dumps(GAN)}"]
    output = run(repository, *overrides)

    home = work / "studies/both"
    ranking = {record["gan"]: record for record in json.loads((home / "ranking.json").read_text())["ranking"]}
    rate = "sn-rate-0.0001-batch-4"
    assert set(ranking) == {"sn-step_00000002", rate}
    for name, record in ranking.items():
        unet = home / "unets" / f"{name}-at-0.01-seed-1"
        assert from_yaml("train_unet", unet / "config.yaml").unet.network == "residual"
        dice = json.loads((unet / "finished.json").read_text())["validation_dice"]
        assert record["validation_dice_by_seed"] == {"1": dice}
    variant = from_yaml("train_gan", Path(ranking[rate]["run"]) / "config.yaml").variant
    assert (variant.learning_rate_critic, variant.learning_rate_generator) == pytest.approx((1e-4, 5e-5))
    places = [line.split()[0] for line in output.splitlines() if "label threshold 0.01," in line]
    assert places == ["1", "2"]

    before = (home / "ranking.json").read_bytes()
    again = run(repository, *overrides)
    assert again.count("done already") == 1 + 2 * (2 + 1)
    assert (home / "ranking.json").read_bytes() == before
