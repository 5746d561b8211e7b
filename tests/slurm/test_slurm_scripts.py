"""The scripts themselves: what a linter says, what the chain is. And that the tests' Slurm leaves nothing behind."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak
SCRIPTS = ["job.sh", "pipeline.sh", "site.sh.example", "prepare.sbatch", "train_gan.sbatch", "train_unet.sbatch"]
SCRIPTS += ["evaluate.sbatch"]


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


def test_a_bad_option_of_the_pipeline_is_refused_before_anything_is_made(repository: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.sh"
    settings.write_text(f"WORK='{tmp_path}/work'\n")
    for options, said in (
        (["--untli"], "know only --dry-run and --until STAGE"),
        (["--until", "gan"], "choose from prep"),
    ):
        words = [str(repository / "slurm/pipeline.sh"), *options, str(settings)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and said in done.stderr, done
    assert [path.name for path in tmp_path.iterdir()] == ["settings.sh"]


def test_the_papers_whole_chain_is_printed(repository: Path, tmp_path: Path) -> None:
    # 4 variants x 3 seeds: 12 GANs; (1 real + 12 synthetic + 12 both) x 3 seeds: 75 U-Nets, scores, a threshold.
    settings = tmp_path / "it's $(touch x).sh"
    settings.write_text(f"WORK='{tmp_path}/$(touch x) work'\n")
    words = [str(repository / "slurm/pipeline.sh"), "--dry-run", str(settings)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    arrays = dict(re.findall(r"^(\w+): sbatch .*--array=([\d,]+)", done.stdout, re.MULTILINE))
    counts = {stage: len(numbers.split(",")) for stage, numbers in arrays.items()}
    expected = {"prepare": 1, "train_gan": 12, "generate": 12, "train_unet": 75, "evaluate": 76, "report": 1}
    assert counts == expected
    assert "--dependency=afterok:<prepare>:<generate>" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [settings.name]


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
