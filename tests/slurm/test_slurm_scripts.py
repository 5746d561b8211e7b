"""The scripts themselves: what a linter says. And that the tests' Slurm leaves nothing behind."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak
SCRIPTS = ["job.sh", "pipeline.sh", "site.sh.example", "prepare.sbatch", "train_gan.sbatch", "train_unet.sbatch"]
SCRIPTS += ["evaluate.sbatch", "study.sbatch"]


def test_every_script_is_clean_under_shellcheck(repository: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    words = [
        "shellcheck",
        "--external-sources",
        "--shell=bash",
        "--source-path=.",
        *(f"slurm/{name}" for name in SCRIPTS),
    ]
    done = subprocess.run([*words, ".ci/run"], cwd=repository, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    there = {path.name for path in (repository / "slurm").iterdir() if path.suffix != ".def"}
    assert there - {"site.sh"} == set(SCRIPTS)


def test_a_template_names_no_site(repository: Path) -> None:
    for name in SCRIPTS:
        text = (repository / "slurm" / name).read_text()
        assert not re.search(r"#SBATCH --(account|partition|qos|reservation|mail|nodelist)", text), name


def test_a_slurm_with_a_job_that_will_not_end_leaves_nothing_behind(
    start_slurm: Callable, tmp_path: Path, processes_naming: Callable[[Path], dict[int, str]]
) -> None:
    cluster = start_slurm()
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\ntrap '' TERM\n(trap '' TERM; sleep 600) &\nwhile :; do sleep 1; done\n")
    job = cluster.submit("--output=/dev/null", str(script), cwd=tmp_path)
    cluster.wait(job, "RUNNING")
    assert processes_naming(cluster.home)
    assert cluster.stop() == []
    assert not cluster.home.exists() and processes_naming(cluster.home) == {}
