"""Locks between processes: held by one, given up when it ends, read without taking them."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vesselgan.core import locks
from vesselgan.core.errors import ResourceError

Hold = Callable[[Path], subprocess.Popen[bytes]]


def test_a_held_lock_names_its_process_and_job(hold_lock, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    path = tmp_path / "lock"
    holder = f"process {hold_lock(path).pid} on {socket.gethostname()}, job 4711"
    with pytest.raises(ResourceError, match=holder):
        locks.acquire(path)
    assert locks.holder_of(path) == holder and path.read_text() == f"{holder}\n"


def test_a_killed_process_holds_nothing(hold_lock, tmp_path):
    path = tmp_path / "lock"
    process = hold_lock(path)
    process.kill()
    process.wait()
    assert locks.holder_of(path) is None
    file = locks.acquire(path)
    assert path.read_text().startswith(f"process {os.getpid()} on ")
    locks.remove(path, file)
    assert locks.holder_of(path) is None and not path.exists()


def test_a_forked_child_holds_no_lock(hold_lock, tmp_path):
    file = locks.acquire(tmp_path / "lock")
    child = os.fork()
    if child == 0:
        os._exit(0 if locks.holder_of(tmp_path / "lock") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # the child sees another holder
    file.close()
    hold_lock(tmp_path / "lock")


def test_a_lock_on_a_removed_file_fails(tmp_path):
    path = tmp_path / "lock"
    file = locks.acquire(path)
    path.unlink()
    path.touch()
    assert not locks._is_at(path, file)
    file.close()
