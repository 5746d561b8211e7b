"""The field's own checkers on a release; `make soak-release` installs them beside, not into, the environment."""

import json
import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(os.environ.get("RELEASE_TOOLS", "nowhere"))
"""Folder of their commands."""
reason = "mlcroissant and bids-validator-deno are not installed (make soak-release, with a network)"
pytestmark = pytest.mark.skipif(not (TOOLS / "mlcroissant").exists(), reason=reason)


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(TOOLS / name), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_bids_validator_finds_no_error(made_once):
    done = run("bids-validator-deno", "--json", str(made_once("sn")[1]))
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == [] and done.returncode == 0


def test_mlcroissant_reads_the_metadata(made_once):
    path = str(made_once("sn")[1] / "croissant.json")
    code = f"import mlcroissant; print(mlcroissant.Dataset(jsonld={path!r}).metadata.name)"
    done = run("python", "-c", code)
    assert done.returncode == 0 and done.stdout.strip().splitlines()[-1] == "first", done.stderr
