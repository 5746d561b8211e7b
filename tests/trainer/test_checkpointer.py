"""After a failed save training continues, for a limited number of them; the last good checkpoint stays."""

import errno
import json
import os

import pytest

from vesselgan.core.errors import ResourceError
from vesselgan.runtime import checkpoint, tensor_files
from vesselgan.trainer.checkpointer import MAX_FAILED_SAVES, Checkpointer, CheckpointPart
from vesselgan.trainer.progress import Pace
from vesselgan.trainer.run_log import RunLog
from vesselgan.trainer.schedule import Schedule
from vesselgan.trainer.session import Session


class Best(CheckpointPart):
    names: list[str] = []

    def protected(self) -> list[str]:
        return self.names


@pytest.fixture
def saving(world, tmp_path, monkeypatch):
    """A checkpointer of no network, and the steps at which the disk is full."""
    full: set[int] = set()
    write = tensor_files.write_chunks

    def write_chunks(path, chunks):
        if any(checkpoint.name_of(step) in str(path) for step in full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, chunks)

    monkeypatch.setattr(checkpoint, "write_chunks", write_chunks)
    session = Session.__new__(Session)
    session.run_dir, session.world, session.config, session.pace = tmp_path, world, object(), Pace()
    session.log = RunLog(tmp_path, is_main=True)
    monkeypatch.setattr("vesselgan.trainer.checkpointer.config_hash", lambda config: "00000000")
    schedule = Schedule(0, 1, 100, 1, None, 99)
    yield Checkpointer(session, schedule, {}, [Best()], every=10, keep_last=9), full
    session.log.close()


def test_one_failed_save_is_a_warning(saving, tmp_path, capsys):
    checkpointer, full = saving
    full |= {20, 40, 50}
    for step in range(10, 70, 10):
        checkpointer.save_if_due(step, is_stopping=False)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert names == [checkpoint.name_of(step) for step in (10, 30, 60)]
    assert capsys.readouterr().err.count("training continues") == 3


def test_failed_saves_in_a_row_are_exit_6(saving, tmp_path):
    checkpointer, full = saving
    full |= set(range(20, 100, 10))
    checkpointer.save_if_due(10, is_stopping=False)
    for step in range(20, 10 + 10 * MAX_FAILED_SAVES, 10):
        checkpointer.save_if_due(step, is_stopping=False)
    with pytest.raises(ResourceError):
        checkpointer.save_if_due(10 + 10 * MAX_FAILED_SAVES, is_stopping=False)
    assert [path.name for path in (tmp_path / "checkpoints").glob("step_*")] == [checkpoint.name_of(10)]


@pytest.mark.parametrize("why", ["stopping", "last", "best"])
def test_a_needed_checkpoint_must_be_saved(saving, monkeypatch, why):
    checkpointer, full = saving
    step = 99 if why == "last" else 20
    full.add(step)
    monkeypatch.setattr(Best, "names", [checkpoint.name_of(20)] if why == "best" else [])
    with pytest.raises(ResourceError):
        checkpointer.save_if_due(step, is_stopping=why == "stopping")


def test_metrics_wait_for_a_full_disk(tmp_path, monkeypatch):
    log = RunLog(tmp_path, is_main=True)
    raw, path = log._metrics.buffer.raw, tmp_path / "metrics.jsonl"
    kept = os.dup(raw.fileno())
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), raw.fileno())
    for step in range(1, 101):
        log.scalars(step, {"loss": 0.5, "padding" * 30: 1.0})
    assert path.read_bytes() == b""
    with pytest.raises(OSError, match="No space"):
        log.flush()
    os.dup2(kept, raw.fileno())
    os.close(kept)
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*range(1, 101)]
