"""The chain of jobs on a real Slurm and a tiny cohort: arrays, a stage that fails, what is skipped, names that bite."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vesselgan.cohort import read_cohort

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
VARIANTS=({variants}) SEEDS=({seeds}) SOURCES=(real synthetic) UNET_SEEDS=(1)
GAN=(variant.width=8 train.batch_size=4 train.max_steps=2 train.num_workers=0 runtime.device=cpu)
GENERATE=(num_patches=8 runtime.device=cpu)
UNET=('unet.filters=[4,8]' unet.max_steps=2 unet.validate_every=2 unet.batch_size=4 unet.num_workers=0
    data.label_threshold=0.01 runtime.device=cpu)
SEGMENT=(runtime.device=cpu)
SBATCH_PREPARE=(--ntasks=2 --mem-per-cpu=500M --time=30)
SBATCH_GAN=(--gres=none --cpus-per-task=1 --mem-per-cpu=500M --time=30)
SBATCH_UNET=("${{SBATCH_GAN[@]}}") SBATCH_EVALUATE=("${{SBATCH_GAN[@]}}")
"""
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
    """Call pipeline.sh for these variants and seeds; what it said."""

    def call(variants: str, seeds: str, *options: str) -> str:
        settings = tmp_path / "settings.sh"
        settings.write_text(SETTINGS.format(work=work, variants=variants, seeds=seeds))
        return slurm.call(str(repository / "slurm/pipeline.sh"), *options, str(settings), cwd=tmp_path, **site)

    return call


def test_the_whole_chain_stops_with_the_stage_that_fails_goes_on_and_skips_what_is_finished(
    slurm, work, pipeline, repository
):
    # Patches of 16 voxels leave gp's instance norm a single one: its GAN, the array's second, fails (exit 2).
    plan = pipeline("sn gp", "1", "--dry-run")
    assert not (work / "pipeline").exists() and slurm.queue() == []
    told = [line.split(":")[0] for line in plan.splitlines() if "sbatch --parsable" in line]
    assert told == ["prepare", "train_gan", "generate", "train_unet", "evaluate", "report"]
    said = pipeline("sn gp", "1")
    assert "train_gan: job" in said and "tasks 0,1 of 2, after:" in said
    assert "train_gan: in the queue already" in pipeline("sn gp", "1")
    slurm.wait_until(lambda: slurm.queue() == [], "the chain's end", seconds=600)
    failures = (work / "pipeline/failures.txt").read_text()
    assert failures.startswith("error: stage train_gan failed (job") and "_1, exit 2)" in failures, failures
    assert len(failures.splitlines()) == 1
    assert sorted(path.name for path in (work / "runs").iterdir()) == ["sn-seed-1"]  # no U-Net was begun
    ran = {log.name.split("-")[0] for log in (work / "pipeline/logs").iterdir()}
    assert ran == {"prepare", "train_gan"}

    said = pipeline("sn", "1 2")
    assert said.startswith(f"last time: {failures}") and "prepare: finished (1)" in said
    assert "tasks 1 of 2" in said and "generate: job" in said and "tasks 0,1 of 2" in said  # sn-seed-1 is there
    slurm.wait_until(lambda: slurm.queue() == [], "the chain's end", seconds=900)
    logs = "\n".join(log.read_text()[-1500:] for log in sorted((work / "pipeline/logs").iterdir()))
    assert not (work / "pipeline/failures.txt").exists(), logs
    scores = {path.stem: json.loads(path.read_text()) for path in (work / "results").glob("*.json")}
    expected = {"threshold", "real-unet-1", "synthetic-sn-seed-1-unet-1", "synthetic-sn-seed-2-unet-1"}
    assert set(scores) == expected, logs
    assert {len(score["subjects"]) > 0 for score in scores.values()} == {True}
    assert (work / "report/index.html").stat().st_size > 10_000

    said = pipeline("sn", "1 2")
    assert [line.split(" (")[0] for line in said.splitlines()] == [f"{stage}: finished" for stage in told]
    assert SUBJECT in read_cohort(work / "phantom").subjects
    assert not any((folder / "x").exists() for folder in (repository, work, work.parent, Path.cwd()))
    shutil.rmtree(work)
