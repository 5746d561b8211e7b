"""The README's commands, taken from the README, on the smallest cohort that makes them mean something."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

# What keeps each command small; everything else is as the README has it.
SMALL = {
    "make_phantom": [],
    "train_gan.py": ["variant.width=16", "train.max_steps=2", "train.num_workers=0"],
    "generate.py": [],
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


def test_files_that_the_readme_names_are_there(repository):
    text = (repository / "README.md").read_text()
    named = set(re.findall(r"(?:launch|configs|slurm|vesselgan|data_prep)/[\w/]+\.\w+", text))
    named -= {"slurm/site.sh", "configs/machine/ours.yaml"}  # the reader's own
    assert named and not [name for name in named if not (repository / name).is_file()]
