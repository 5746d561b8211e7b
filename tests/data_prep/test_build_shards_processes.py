"""Builds as processes of their own: the same bytes on any number of ranks, and nothing lost to a kill."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from vesselgan.config.schema import PreparedData
from vesselgan.formats.shards import verify

from .conftest import ROOT, build, python_on_ranks, run

NUM_KILLS = 8


def command(data: PreparedData, folder: Path, *, ranks: int = 1) -> list[str]:
    """The command line that builds `data`, whose settings go through YAML as a user's would."""
    prepare, split = asdict(data.prepare), asdict(data.prepare.split)
    settings = {f"data.prepare.split.{key}": value for key, value in split.items()}
    settings |= {f"data.prepare.{key}": value for key, value in prepare.items() if key not in ("split", "key_file")}
    settings |= {"data.name": data.name, "data.root": data.root, "data.cohort_dir": str(folder)}
    texts = {key: yaml.safe_dump(value, default_flow_style=True).split("\n")[0] for key, value in settings.items()}
    words = [*python_on_ranks(ranks), "-m", "data_prep.build_shards", "data=phantom"]
    return [*words, *(f"{key}={text}" for key, text in texts.items())]


def test_bytes_do_not_depend_on_ranks(cohort, hashes, tmp_path):
    data = cohort(5)
    build(data)
    alone = hashes(data)
    done = run(command(data, tmp_path / "ranks" / "tiny", ranks=2))
    assert done.returncode == 0, done.stderr
    data.cohort_dir = str(tmp_path / "ranks" / "tiny")
    assert hashes(data) == alone  # cohort.json too: it names the inputs, which lie outside both folders, absolutely
    assert done.stdout.count("tiny: built in") == 1


def test_a_killed_build_is_taken_up(cohort, hashes, tmp_path):
    data = cohort(4)
    data.prepare.pairs_per_shard, data.prepare.num_vessel_patches_unet = 1, 20
    build(data)
    undisturbed = hashes(data)
    folder = tmp_path / "killed" / "tiny"
    words = command(data, folder)
    job = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while count_finished(folder) < 20 and job.poll() is None:
        time.sleep(0.002)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert job.returncode == -signal.SIGKILL
    assert not list(folder.rglob("manifest.json"))  # nothing looks whole
    done = run(words)
    assert done.returncode == 0, done.stderr
    data.cohort_dir = str(folder)
    assert hashes(data) == undisturbed


@pytest.mark.soak
def test_kills_all_along_end_in_the_same_bytes(cohort, hashes, tmp_path):
    data = cohort(5)
    data.prepare.pairs_per_shard = 1
    build(data)
    undisturbed = hashes(data)
    folder = tmp_path / "killed" / "tiny"
    there = replace(data, cohort_dir=str(folder))
    words, draw = command(data, folder, ranks=2), np.random.default_rng(NUM_KILLS)
    duration_s, num_killed = run_until(words, folder, None)[0], 0
    for number in range(NUM_KILLS):
        shutil.rmtree(folder)
        # from the taking of the lock on: check, state, cohort, shards and manifests are all on the way
        moment = (number + draw.random()) / NUM_KILLS
        _, was_killed = run_until(words, folder, moment * duration_s, victim=number)
        num_killed += was_killed
        for manifest in folder.rglob("manifest.json"):
            assert verify(manifest.parent) == [], number
        done = run(words)
        assert done.returncode == 0, done.stderr
        assert hashes(there) == undisturbed, number
    assert num_killed >= NUM_KILLS / 2  # the others had ended before: the machine's load came and went


def run_until(words: list[str], folder: Path, delay_s: float | None, *, victim: int = 0) -> tuple[float, bool]:
    """Start a build and kill a rank, or the launcher, so long after it has taken its lock; None: let it end.

    Seconds from the lock to the end, and whether it was killed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while not (folder / ".build_shards.lock").exists() and job.poll() is None:
        time.sleep(0.001)
    processes = processes_of(folder)
    began_s = time.monotonic()
    if delay_s is not None:
        time.sleep(delay_s)
        kill(processes[victim % len(processes)] if processes else job.pid)
    code = job.wait(timeout=60)
    while set(processes) & set(processes_of(folder)):  # ranks whose launcher was killed end a moment later
        time.sleep(0.01)
    return time.monotonic() - began_s, code != 0


def count_finished(folder: Path) -> int:
    return len(list(folder.glob("shards/.build/*.h5.json")))


def processes_of(folder: Path) -> list[int]:
    """The launcher and the ranks that build in `folder`, which their command lines name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"data.cohort_dir={folder}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
