"""The lock of a folder: one living job holds it, a dead one's is taken over."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data_prep import lock
from vesselgan.core.errors import ResourceError


def write(path: Path, *owners: lock.Owner) -> None:
    path.write_text(json.dumps([asdict(owner) for owner in owners]))


@pytest.fixture
def dead() -> lock.Owner:
    """A process of this host that has ended."""
    code = "import dataclasses, json\nfrom data_prep.lock import this_process\n"
    code += "print(json.dumps(dataclasses.asdict(this_process())))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    return lock.Owner(**json.loads(done.stdout))


def test_a_free_lock_is_taken_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    assert lock.take(path, [lock.this_process()]) is None
    assert [entry.name for entry in path.parent.iterdir()] == ["lock"]
    lock.release(path)
    assert list(path.parent.iterdir()) == []


def test_a_living_job_keeps_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    path, me = tmp_path / "lock", lock.this_process()
    lock.take(path, [me])
    before = path.read_bytes()
    with pytest.raises(ResourceError, match=f"host {me.host}, process {os.getpid()}, job 4711; .* remove {path}"):
        lock.take(path, [replace(me, job=None)])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_dead_jobs_lock_is_taken_over(tmp_path: Path, dead: lock.Owner) -> None:
    path, me = tmp_path / "lock", lock.this_process()
    write(path, dead, dead)
    note = lock.take(path, [me])
    assert str(dead.pid) in note
    assert json.loads(path.read_text()) == [asdict(me)]


def test_one_living_rank_keeps_a_lock_alive(tmp_path: Path, dead: lock.Owner) -> None:
    write(tmp_path / "lock", dead, lock.this_process())
    with pytest.raises(ResourceError, match="process"):
        lock.take(tmp_path / "lock", [lock.this_process()])


def test_a_reused_process_id_is_not_the_holder(tmp_path: Path) -> None:
    me = lock.this_process()
    write(tmp_path / "lock", replace(me, started="1"))
    assert "took over" in lock.take(tmp_path / "lock", [me])


def test_another_hosts_lock_yields_to_a_requeue_alone(
    tmp_path: Path, dead: lock.Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, me = tmp_path / "lock", replace(lock.this_process(), job="12")
    write(path, replace(dead, host="elsewhere", job="12"))
    with pytest.raises(ResourceError, match="host elsewhere"):
        lock.take(path, [me])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "host elsewhere" in lock.take(path, [me])


def test_a_zombie_holds_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    started = lock._started(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not yet reaped
    write(tmp_path / "lock", replace(lock.this_process(), pid=child.pid, started=started))
    assert "took over" in lock.take(tmp_path / "lock", [lock.this_process()])
    child.wait()


def test_what_is_no_lock_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("notes of mine")
    with pytest.raises(ResourceError, match="lock"):
        lock.take(tmp_path / "lock", [lock.this_process()])
    assert (tmp_path / "lock").read_text() == "notes of mine"


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    path, me = tmp_path / ".lock", lock.this_process()
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f"{me.host}.{gone.pid}", f"{me.host}.{os.getppid()}", f"elsewhere.{gone.pid}"):
        path.with_name(f".lock.{name}").touch()
    lock.take(path, [me])
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {".lock", f".lock.{me.host}.{os.getppid()}", f".lock.elsewhere.{gone.pid}"}
