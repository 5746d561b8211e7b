"""The chain of jobs on a real Slurm and a tiny cohort: arrays, a stage that fails, what is skipped, names that bite."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vesselgan.formats.cohort import Cohort

pytestmark = pytest.mark.soak
PHANTOM = ["phantom.shape=[48,48,24]", "phantom.spacing_mm=[2.5,3,3.2]", "phantom.num_subjects=4"]
SUBJECT = 'it\'s $(touch x); `touch x` & "sub"'
"""A subject as no shell should ever read it."""
SETTINGS = """\
WORK='{work}'
COHORT=phantom
DATA=(data=phantom)
PREPARE=(data.prepare.split.validation=1 data.prepare.split.test=2 data.prepare.num_vessel_patches_gan=20
    data.prepare.num_vessel_patches_unet=20 data.prepare.max_clipped_vessel_share=1)
VARIANTS=({variants}) SEEDS=(1)
GAN=(variant.width=8 train.batch_size=4 train.max_steps=2 train.num_workers=0 runtime.device=cpu)
STUDY=(num_patches=8 'seeds=[1]' 'labels.thresholds=[0.01,0.05]' labels.num_narrowed=1 labels.max_patches=8
    'unet.filters=[4,8]' unet.max_steps=4 unet.validate_every=2 unet.batch_size=4 unet.num_workers=0
    runtime.device=cpu)
IMAGE=(image.extractor=random image.num_seeds=2 image.num_runs=1 image.num_clusters=2 image.num_pairs=5
    runtime.device=cpu)
SBATCH_PREPARE=(--ntasks=2 --mem-per-cpu=500M --time=30)
SBATCH_GAN=(--gres=none --cpus-per-task=1 --mem-per-cpu=500M --time=30)
SBATCH_STUDY=("${{SBATCH_GAN[@]}}") SBATCH_REPORT=("${{SBATCH_GAN[@]}}")
"""
STAGES = ["prepare", "train_gan", "study", "report"]
Pipeline = Callable[..., str]


@pytest.fixture
def work(tmp_path, repository) -> Path:
    """A work folder with a tiny phantom, one of whose subjects has a name that bites."""
    folder = tmp_path / "a work $(touch x)"
    words = [sys.executable, "-m", "data_prep.make_phantom", f'work_dir="{folder}"', *PHANTOM]
    subprocess.run(words, cwd=repository, check=True, timeout=240)
    subjects = sorted((folder / "phantom/nifti").iterdir())
    subjects[1].rename(subjects[1].with_name(SUBJECT))
    return folder


@pytest.fixture
def pipeline(slurm, site, work, tmp_path, repository) -> Pipeline:
    """Call pipeline.sh for these variants; what it said."""

    def call(variants: str, *options: str) -> str:
        settings = tmp_path / "settings.sh"
        settings.write_text(SETTINGS.format(work=work, variants=variants))
        return slurm.call(str(repository / "slurm/pipeline.sh"), *options, str(settings), cwd=tmp_path, **site)

    return call


def job_of(work: Path, stage: str) -> str:
    return (work / f"pipeline/paper/{stage}.job").read_text().splitlines()[0]


def test_the_chain_stops_at_a_failure_and_resumes(slurm, work, pipeline, repository):
    # Patches of 16 voxels leave gp's instance norm a single one: its GAN, the array's second, fails (exit 2).
    said = pipeline("sn gp")
    assert "train_gan: job" in said and "tasks 0,1 of 2, after:" in said
    assert "train_gan: in the queue already" in pipeline("sn gp")
    slurm.wait_until(lambda: slurm.queue() == [], "the chain's end", seconds=600)
    (failure,) = (work / "pipeline/paper/failures").iterdir()
    failed = failure.read_text()
    assert failed.startswith(f"error: stage train_gan failed (job {job_of(work, 'train_gan')}_1, exit 2)"), failed
    assert sorted(path.name for path in (work / "runs").iterdir()) == ["sn-seed-1"]
    assert not (work / "studies").exists()  # no U-Net was begun
    ran = {log.name.split("-")[0] for log in (work / "pipeline/paper/logs").iterdir()}
    assert ran == {"prepare", "train_gan"}

    # Without it the chain goes on. The study is asked to stop in its middle, and is queued again by itself.
    said = pipeline("sn")
    assert said.startswith(f"last time: {failed}") and "train_gan: finished (1)" in said and "study: job" in said
    study, home = f"{job_of(work, 'study')}_0", work / "studies/paper-seed-1"
    slurm.wait_until((home / "unets").exists, "the study's first U-Net", seconds=600)
    slurm.call("scancel", "--batch", "--signal=USR1", study)
    slurm.wait_until(lambda: slurm.queue() == [], "the chain's end", seconds=900)
    logs = "\n".join(log.read_text() for log in sorted((work / "pipeline/paper/logs").iterdir()))
    assert not (work / "pipeline/paper/failures").exists(), logs
    assert f"study: job {study}, start 2, on n" in logs

    rows = {row["kind"]: row for row in json.loads((home / "results/comparison.json").read_text())["rows"]}
    assert set(rows) == {"real", "synthetic", "both", "shuffled", "threshold"}, logs
    assert {row["scores"]["phantom"]["all"]["dice"]["n"] for row in rows.values()} == {2}
    scores = {json.loads(path.read_text())["name"] for path in (home / "results").glob("image-*.json")}
    assert scores == {"sn"}
    page = (work / "report/paper-seed-1/index.html").read_text()
    assert "Study paper-seed-1" in page and "Table A.1" in page

    said = pipeline("sn")
    assert [line.split(" (")[0] for line in said.splitlines()] == [f"{stage}: finished" for stage in STAGES]
    assert SUBJECT in Cohort.read(work / "phantom").subjects
    assert not any((folder / "x").exists() for folder in (repository, work, work.parent, Path.cwd()))
    shutil.rmtree(work)
