"""Requests to stop: who may ask, what is logged, when the job's end is near, and who asks for no requeue."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vesselgan.core.errors import CheckpointError, UsageError
from vesselgan.formats.run_changes import Change, check_changes
from vesselgan.formats.run_dir import RunDir
from vesselgan.trainer import stopper as stopping
from vesselgan.trainer.stopper import MARGIN, Stopper, end_of_job


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def requests(world, tmp_path):
    with Stopper(world, rank_timeout_minutes=1) as listening:
        listening.start_watching(tmp_path, max_minutes=None, max_restarts=9)
        yield listening


def sit(run_dir: Path, count: int) -> None:
    (run_dir / "sessions.jsonl").write_text("{}\n" * count)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_only_sets_a_flag(requests, tmp_path, number):
    assert not requests.should_stop()
    os.kill(os.getpid(), number)
    assert not (tmp_path / "requeue").exists()
    assert requests.should_stop()
    requests.write_requeue(7)
    marker = json.loads((tmp_path / "requeue").read_text())
    assert marker == {"step": 7, "reason": f"signal {signal.Signals(number).name}", "sessions": 0}


def test_a_signal_that_was_ignored_stays_ignored(world, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with Stopper(world, rank_timeout_minutes=1) as requests:
            requests.start_watching(tmp_path, max_minutes=None, max_restarts=9)
            os.kill(os.getpid(), signal.SIGHUP)
            assert not requests.should_stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_after_a_signal_is_patient(requests):
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGINT)
    assert requests.reason == "signal SIGUSR1" and requests.should_stop()


def test_the_stop_file_asks_once(requests, world, tmp_path):
    (tmp_path / "stop").touch()
    assert requests.should_stop()
    assert str(tmp_path / "stop") in requests.reason
    requests.write_requeue(1)
    requests.__exit__(None, None, None)
    with Stopper(world, rank_timeout_minutes=1) as later:
        later.start_watching(tmp_path, max_minutes=None, max_restarts=9)
        assert not later.should_stop()
        assert not (tmp_path / "requeue").exists()


def test_it_stops_while_a_save_still_fits(world, tmp_path, monkeypatch):
    """30 minutes left: a step of 2 s and a save of 60 s, half as much again, need 93 s."""
    now = time.time()
    with Stopper(world, rank_timeout_minutes=1) as requests:
        monkeypatch.setattr(time, "time", lambda: now)
        requests.start_watching(tmp_path, max_minutes=30.0, max_restarts=9)
        needed = MARGIN * (2.0 + 60.0)
        requests.pace.step_s, requests.pace.save_s = 2.0, 60.0
        monkeypatch.setattr(time, "time", lambda: now + 1800 - needed - 0.01)
        assert not requests.should_stop()
        monkeypatch.setattr(time, "time", lambda: now + 1800 - needed + 0.01)
        assert requests.should_stop() and requests.reason


def test_the_first_steps_time_counts_too(world, tmp_path, monkeypatch):
    with Stopper(world, rank_timeout_minutes=1) as requests:
        requests.start_watching(tmp_path, max_minutes=1.0, max_restarts=9)
        counter = time.perf_counter()
        monkeypatch.setattr(time, "perf_counter", lambda: counter + 100.0)
        assert requests.should_stop()  # the first step took longer than the job has


def test_a_run_without_progress_is_not_requeued(requests, tmp_path):
    sit(tmp_path, 8)
    requests.write_requeue(3)
    assert json.loads((tmp_path / "requeue").read_text())["sessions"] == 8
    stopping.remove_requeue(tmp_path)
    sit(tmp_path, 9)
    assert "runtime.max_restarts=9" in requests.write_requeue(3)
    assert not (tmp_path / "requeue").exists()


def fake_scontrol(folder: Path, script: str) -> None:
    path = folder / "scontrol"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_slurm_tells_when_the_job_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    fake_scontrol(tmp_path, 'test "$4" = 17 && echo "JobId=17 EndTime=2026-11-22T13:00:00"')
    ends_at = end_of_job(None)[0]
    assert ends_at == (20_779 * 24 + 13) * 3600  # days and hours from the epoch to 2026-11-22 13:00 UTC
    monkeypatch.setattr(time, "time", lambda: ends_at - 600.0)
    assert (end_of_job(5.0)[0], end_of_job(20.0)[0]) == (ends_at - 300.0, ends_at)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "No such file"),
        ('echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1', "Invalid job id"),
        ('echo "JobId=17 EndTime=Unknown"', "Unknown"),
        ("exec sleep 20", "timed out"),
    ],
)
def test_without_slurms_answer_it_goes_on(tmp_path, monkeypatch, script, why):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(stopping, "SLURM_S", 0.5)
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        fake_scontrol(tmp_path, script)
    ends_at, line = end_of_job(None)
    assert ends_at == float("inf")
    assert why in line and "train.max_minutes" in line


def test_outside_slurm_there_is_no_end():
    assert end_of_job(None) == (float("inf"), "")


IMPATIENT = """
import os, signal, sys, time
from pathlib import Path
from vesselgan.runtime.distributed import World
from vesselgan.trainer.stopper import Stopper
import torch
with Stopper(World(0, 1, 0, torch.device("cpu")), rank_timeout_minutes=1) as requests:
    requests.start_watching(Path(sys.argv[1]), max_minutes=None, max_restarts=9)
    os.kill(os.getpid(), signal.SIGINT)
    print("asked", requests.should_stop(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("never said", flush=True)
"""


def test_a_second_interrupt_quits_at_once(tmp_path):
    done = subprocess.run([sys.executable, "-c", IMPATIENT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "asked True\n"), done.stderr
    assert not (tmp_path / "requeue").exists()


def test_the_signals_are_given_back(world, tmp_path):
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with Stopper(world, rank_timeout_minutes=1):
        assert [signal.getsignal(number) for number in stopping.SIGNALS] != before
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_a_foreign_folder_is_not_written_to(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=str(tmp_path)):
        RunDir(tmp_path).load_or_init("train_gan", None, {}, inputs={}, provenance={})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_group_allows_its_settings_and_no_others(tmp_path):
    changes = [Change("train.seed", 1, 2, False), Change("train.log_every", 1, 2, True), Change("trains", 1, 2, False)]
    with pytest.raises(CheckpointError, match=r"allow_config_change=\[trains\]"):
        check_changes(tmp_path, changes, ["train"])
    check_changes(tmp_path, changes, ["train", "trains"])


def test_an_end_that_is_no_time_is_unknown(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", "Unknown")
    assert end_of_job(None) == (float("inf"), "")
