"""The scripts themselves: what a linter says, and that they name no site."""

import re
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.soak


def test_every_script_passes_shellcheck(repository):
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    names = sorted(path.name for path in (repository / "slurm").iterdir() if path.suffix not in (".def", ".md"))
    scripts = [f"slurm/{name}" for name in names]
    words = ["shellcheck", "--external-sources", "--shell=bash", "--source-path=.", *scripts, ".ci/run"]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_template_names_no_site(repository):
    for template in (repository / "slurm").glob("*.sbatch"):
        assert not re.search(r"#SBATCH --(account|partition|qos|reservation|mail|nodelist)", template.read_text())
