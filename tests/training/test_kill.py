"""Ranks that die, hang or cannot meet: the others leave, say who it was, and training resumes from what was saved."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import free_port

QUICK_TRAIN = "tests/training/quick_train.py"
WORDS = ["variant=sn", "variant.precision=fp32", "variant.width=8", "train.batch_size=2", "train.num_workers=0"]
WORDS += ["train.log_every=1", "train.image_every=1000", "train.checkpoint_every=4", "train.max_steps=100000"]
WORDS += ["runtime.device=cpu"]


@pytest.fixture
def ranks(repository, work_dir):
    """Start ranks as a launcher does, one process each, named by the environment; none outlives the test."""
    started: list[subprocess.Popen] = []

    def start(run_dir: Path, *words: str, size: int, port: int | None = None) -> list[subprocess.Popen]:
        port = port or free_port()
        common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
        common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
        command = [sys.executable, str(repository / QUICK_TRAIN), f"work_dir={work_dir}", *WORDS, *words]
        command += ["--run_dir", str(run_dir)]
        for rank in range(size):
            environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-size:]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    until = time.monotonic() + 200
    while not condition():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.05)


def saved(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("step_*[0-9]"))


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.soak)])
def test_the_other_names_a_dead_rank(ranks, train_here, tmp_path, lost):
    both = ranks(tmp_path / "run", size=2)
    wait_for(lambda: len(saved(tmp_path / "run")) > 0, both[0])
    both[lost].kill()
    other = both[1 - lost]
    _, errors = other.communicate(timeout=200)
    assert other.returncode == 6, errors
    assert f"lost rank {lost} of 2" in errors and "Traceback" not in errors
    # One rank resumes what two have saved.
    step = int(saved(tmp_path / "run")[-1].split("_")[1])
    train_here(tmp_path / "run", *WORDS[:-2], f"train.max_steps={step + 2}", "allow_config_change=[train.max_steps]")
    assert saved(tmp_path / "run")[-1] == f"step_{step + 2:08d}"


@pytest.mark.soak
def test_the_other_names_a_hanging_rank(ranks, tmp_path):
    both = ranks(tmp_path / "run", "runtime.rank_timeout_minutes=0.5", size=2)
    wait_for(lambda: len(saved(tmp_path / "run")) > 0, both[0])
    both[1].send_signal(signal.SIGSTOP)
    _, errors = both[0].communicate(timeout=200)
    assert both[0].returncode == 6 and "error: lost rank 1 of 2" in errors, errors


@pytest.mark.soak
def test_under_the_launcher_nobody_stays_behind(repository, work_dir, tmp_path):
    run_dir, python = tmp_path / "run", Path(sys.executable)
    command = [str(python.parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    command += [str(repository / QUICK_TRAIN), f"work_dir={work_dir}", *WORDS, "--run_dir", str(run_dir)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{python.parent}:{os.environ['PATH']}"}
    with (tmp_path / "record").open("w") as record:
        launcher = subprocess.Popen(command, env=environment, stdout=record, stderr=record, start_new_session=True)
    try:
        while not saved(run_dir):
            assert launcher.poll() is None, (tmp_path / "record").read_text()
            time.sleep(0.1)
        (rank,) = (
            pid for pid, words in processes_of(run_dir) if "--local_rank=1" in words and "launch.py" not in words
        )
        os.kill(rank, signal.SIGKILL)
        assert launcher.wait(timeout=200) != 0
    finally:
        try:
            os.killpg(launcher.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    assert "error: lost rank 1 of 2" in (tmp_path / "record").read_text()
    assert processes_of(run_dir) == []


def processes_of(run_dir: Path) -> list[tuple[int, str]]:
    """(pid, command line) of every living process whose command names the run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(run_dir) in words:
            found.append((int(folder.name), words))
    return found


def test_a_port_in_use_is_named(ranks, tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (first, _) = ranks(tmp_path / "run", size=2, port=port)
        _, errors = first.communicate(timeout=200)
    assert first.returncode == 6
    assert f"MASTER_PORT={port}" in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_kills_on_the_way_change_no_byte(train, tmp_path, repository, work_dir, precision):
    """kill -9 before the first checkpoint, after it, and after two more; then on to the end."""
    words = ["variant=sn", f"variant.precision={precision}", "variant.width=8", "train.batch_size=2"]
    words += ["train.max_steps=20", "train.checkpoint_every=4", "train.log_every=1", "runtime.device=cpu"]
    words += ["--deepspeed_config", f"ds_{precision}.json"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = train(straight, *words)
    assert done.returncode == 0, done.stderr
    command = [
        sys.executable,
        str(repository / QUICK_TRAIN),
        "--run_dir",
        str(killed),
        f"work_dir={work_dir}",
    ]
    command += ["train.num_workers=0", "train.image_every=1000", *words]
    how = {"env": os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}, "text": True}
    for number, target in enumerate((2, 7, 14), start=1):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **how)
        # The lines beyond the checkpoint are cut when a session begins.
        wait_for(lambda count=number: len(lines_of(killed, "sessions.jsonl")) == count, process)
        time.sleep(0.2)
        wait_for(lambda step=target: len(lines_of(killed)) >= step, process)
        process.kill()
        process.communicate()
    assert not (killed / "finished.json").exists() and saved(killed)
    done = train(killed, *words)
    assert done.returncode == 0, done.stderr
    for file in sorted((straight / "checkpoints" / "step_00000020").glob("*.safetensors")):
        assert file.read_bytes() == (killed / "checkpoints" / "step_00000020" / file.name).read_bytes(), file.name
    assert [json.loads(line)["step"] for line in lines_of(killed)] == list(range(1, 21))


def lines_of(run_dir: Path, name: str = "metrics.jsonl") -> list[str]:
    path = run_dir / name
    return path.read_text().splitlines() if path.is_file() else []
