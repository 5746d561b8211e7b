"""The commands of the READMEs: the pipeline runs as written, the others have settings that exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vesselgan.config.compose import compose

TOPS = ("data_prep", "slurm", "vesselgan")
ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", *sorted(path for top in TOPS for path in (ROOT / top).rglob("README.md"))]
# What keeps each command small; everything else is as the README has it.
SMALL = {
    "make_phantom": ["phantom.num_subjects=5"],
    "build_shards": ["data.prepare.num_vessel_patches_gan=20", "data.prepare.num_vessel_patches_unet=20"],
    "train_gan.py": ["variant.width=16", "train.max_steps=2", "train.num_workers=0"],
    "generate.py": ["label_threshold=1e-4"],  # scores of two steps lie near zero
    "train_unet.py": ["unet.filters=[4,8]", "unet.max_steps=4", "unet.validate_every=4", "unet.num_workers=0"],
}


def blocks(text: str) -> list[list[str]]:
    """The indented blocks of commands, continuation comments cut."""
    found, current = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("    "):
            current.append(line.strip().split("   #")[0].rstrip())
        elif line.strip() or current:
            if current:
                found.append(current)
            current = []
    return found


def road(repository: Path) -> list[str]:
    """The block that walks from a cohort to a report."""
    text = (repository / "README.md").read_text()
    return next(block for block in blocks(text) if any("make_phantom" in line for line in block))


def adapt(command: str, work: Path, gan: Path, unet: Path) -> str:
    """`command` with the run's names filled in, the two settings that a small CPU needs, and little work."""
    places = {"work/runs/NAME": gan, "work/runs/UNET": unet, "work/": f"{work}/"}
    command = re.sub("|".join(places), lambda found: str(places[found[0]]), command)
    command = command.replace("num_patches=2000", "num_patches=8")
    command = command.replace(
        "--deepspeed_config ds_fp16.json", "--deepspeed_config ds_fp32.json variant.precision=fp32"
    )
    words = [f"work_dir={work}"] if "generate.py" not in command else []
    words += next((extra for name, extra in SMALL.items() if name in command), [])
    words += [f"--run_dir {gan}"] if "train_gan.py" in command else []
    words += [f"--run_dir {unet}"] if "train_unet.py" in command else []
    return " ".join([command, *words])


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(name of the command, its overrides) of every indented line that starts one of ours."""
    found = []
    for line in (line for block in blocks(text) for line in block):
        for command in re.split(r"&&", line):
            if match := re.search(r"(?:launch/(\w+)\.py|data_prep\.(\w+))(.*)", command):
                words = shlex.split(match[3].replace("'", "")) if "..." not in command else []
                overrides = [word for word in words if re.match(r"[\w.]+=", word)]
                positional = [f"run={word}" for word in words if match[1] == "status" and not word.startswith("-")]
                found.append((match[1] or match[2], overrides + positional))
    return found


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.parent.name))
def test_settings_of_every_command_exist(path):
    for name, overrides in commands(path.read_text()):
        compose(name, overrides)


@pytest.mark.soak
def test_the_road_of_the_readme_runs_as_written(repository, tmp_path):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    work = tmp_path / "work"
    commands = [line for line in road(repository) if not line.startswith(". ")]
    assert len(commands) >= 9
    for command in commands:
        adapted = adapt(command, work, work / "runs" / "gan", work / "runs" / "unet")
        words = shlex.split(adapted)
        result = subprocess.run(words, cwd=repository, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{adapted}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    assert (work / "report" / "index.html").stat().st_size > 10_000


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.parent.name))
def test_files_that_a_readme_names_exist(path, repository):
    text = path.read_text()
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert not [link for link in linked if not (path.parent / link).exists()]
    named = set(re.findall(r"(?:launch|configs|slurm|vesselgan|data_prep)/[\w/]+\.\w+", text))
    named -= {"slurm/site.sh", "configs/machine/ours.yaml"}  # the reader's own
    assert not [name for name in named if not (repository / name).is_file()]


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130 and max(map(len, lines)) <= 120
