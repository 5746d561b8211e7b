"""A request to stop, in whatever a run is just doing: it saves at the next boundary, and resumes to the same bytes."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vesselgan.formats import checkpoint_folder
from vesselgan.runtime.timing import Phases

WORDS = ("variant=gp", "variant.precision=fp32", "train.max_steps=12", "train.checkpoint_every=2", "train.keep_last=2")
DOING = ["data_wait", "critic/penalty", "generator/update", "sample_images", "checkpoint"]
SIGNALS = [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


def files_at(run_dir: Path, step: int) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in (run_dir / "checkpoints" / f"step_{step:08d}").glob("*.safetensors")
    }


def test_a_request_in_any_phase_changes_nothing(train_here, tmp_path, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    words = (*WORDS, "train.image_every=2", "train.log_every=4")
    train_here(straight, *words)
    span = Phases.__call__
    for turn, name in enumerate(DOING):
        number, raised = SIGNALS[turn % 4], []

        @contextmanager
        def interrupted(self: Phases, now: str, name=name, number=number, raised=raised) -> Iterator[None]:
            with span(self, now):
                if now == name and not raised:
                    raised.append(now)
                    os.kill(os.getpid(), number)
                yield

        with monkeypatch.context() as patch:
            patch.setattr(Phases, "__call__", interrupted)
            assert train_here(stopped, *words) is None, name
        assert raised == [name]
        marker = json.loads((stopped / "requeue").read_text())
        assert marker["reason"] == f"signal {number.name}" and marker["sessions"] == turn + 1
        # What it was asked in the midst of was finished, saved, and is the newest; one step each, two for what comes
        # after a step's end.
        assert checkpoint_folder.find_checkpoint(stopped, None).name == f"step_{marker['step']:08d}"
    assert marker["step"] < 12
    train_here(stopped, *words)
    assert not (stopped / "requeue").exists()
    assert files_at(stopped, 12) == files_at(straight, 12)
    # Means over four steps are the same although the run was stopped among them.
    rows = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (straight, stopped)
    ]
    assert [row["step"] for row in rows[0]] == [4, 8, 12]
    assert [row["loss/critic"] for row in rows[0]] == [row["loss/critic"] for row in rows[1]]


def test_a_failure_leaves_no_requeue(train_here, tmp_path):
    train_here(tmp_path / "run", *WORDS, "train.max_minutes=0.00001")
    assert (tmp_path / "run" / "requeue").exists()
    with pytest.raises(Exception, match="seed"):
        train_here(tmp_path / "run", *WORDS, "train.seed=1")
    assert not (tmp_path / "run" / "requeue").exists()


def test_a_requeue_loop_comes_to_an_end(train_here, tmp_path):
    words = (*WORDS, "train.max_minutes=0.00001", "runtime.max_restarts=2")
    for session in (1, 2):
        train_here(tmp_path / "run", *words)
        assert (tmp_path / "run" / "requeue").exists() == (session < 2)
