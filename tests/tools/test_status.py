"""What a run directory tells of its run, at every point of its life."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from vesselgan.config.compose import parse
from vesselgan.core.errors import UsageError
from vesselgan.formats.run_dir import RunDir
from vesselgan.tools.status import format_status, run_status, status

MINUTE = 60.0


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that was started twice, wrote metrics every 10 steps of 500 ms, and saved at 30."""
    folder = tmp_path / "run"
    (folder / "checkpoints/step_00000030").mkdir(parents=True)
    (folder / "checkpoints/step_00000030/manifest.json").write_text("{}")
    (folder / "checkpoints/step_00000040.partial").mkdir()  # being written
    (folder / "config.yaml").write_text("")
    (folder / "sessions.jsonl").write_text('{"step": 0}\n{"step": 20}\n')
    lines = [json.dumps({"step": step, "time/step_ms": 500.0}) for step in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 40, "step')  # the last line is half written
    (folder / "log.txt").write_text("")
    return folder


def grow_old(folder: Path, seconds: float) -> None:
    """Let everything in the run have happened so many seconds ago."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (time.time() - seconds,) * 2)


def _hold(run_dir: Path, is_held: Event, is_over: Event) -> None:

    with RunDir(run_dir).acquire_lock():
        is_held.set()
        is_over.wait(60)


@pytest.fixture
def held(run_dir: Path) -> Iterator[Callable[[], None]]:
    """Another process trains in the run, as training itself takes it; call it to end that process."""
    context = multiprocessing.get_context("fork")
    is_held, is_over = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(run_dir, is_held, is_over))
    process.start()
    assert is_held.wait(120)

    def end() -> None:
        is_over.set()
        process.join(60)

    yield end
    end()


def test_a_run_is_healthy_then_stalled_then_stopped(run_dir, held):
    facts = run_status(run_dir, stalled_minutes=10)
    assert (facts["state"], facts["step"], facts["step_ms"], facts["steps_per_second"]) == ("healthy", 30, 500.0, 2.0)
    assert (facts["checkpoint"], facts["sessions"]) == ("step_00000030", 2)
    assert facts["checkpoint_age_s"] < MINUTE and f"on {os.uname().nodename}" in facts["holder"]
    grow_old(run_dir, 11 * MINUTE)
    stalled = run_status(run_dir, stalled_minutes=10)
    assert stalled["state"] == "stalled" and "11 min" in format_status(stalled)
    held()
    ended = run_status(run_dir, stalled_minutes=10)
    assert ended["state"] == "stopped" and "without a requeue" in ended["reason"]


def test_a_slow_run_may_be_silent_longer(run_dir, held):
    # 10 intervals of 10 steps of a minute each: 100 minutes.
    lines = [json.dumps({"step": step, "time/step_ms": 60000.0}) for step in (10, 20)]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    grow_old(run_dir, 90 * MINUTE)
    assert run_status(run_dir, stalled_minutes=10)["state"] == "healthy"
    grow_old(run_dir, 110 * MINUTE)
    assert run_status(run_dir, stalled_minutes=10)["state"] == "stalled"


def test_a_requested_stop_has_its_reason(run_dir):
    (run_dir / "requeue").write_text(json.dumps({"step": 30, "reason": "signal SIGUSR1", "sessions": 2}))
    facts = run_status(run_dir, stalled_minutes=10)
    assert facts["state"] == "stopped" and facts["requeue_requested"]
    assert "step 30 (signal SIGUSR1)" in facts["reason"]


def test_a_requeue_marker_may_vanish_meanwhile(run_dir, monkeypatch):
    (run_dir / "requeue").write_text('{"step": 30, "reason": "stop"}')
    is_file = Path.is_file

    def take_away(path: Path) -> bool:
        was_there = is_file(path)
        if path.name == "requeue":
            path.unlink()
        return was_there

    monkeypatch.setattr(Path, "is_file", take_away)
    assert run_status(run_dir, stalled_minutes=10)["state"] == "stopped"


def test_a_finished_run_is_finished(run_dir):
    (run_dir / "finished.json").write_text("{}")
    assert run_status(run_dir, stalled_minutes=10)["state"] == "finished"


def test_another_hosts_lock_holds_while_the_run_writes(run_dir):
    (run_dir / "lock").write_text("process 7 on a-node-far-away, job 12\n")
    facts = run_status(run_dir, stalled_minutes=10)
    assert facts["state"] == "healthy" and "job 12" in facts["reason"]
    grow_old(run_dir, 11 * MINUTE)
    assert run_status(run_dir, stalled_minutes=10)["state"] == "stopped"


def test_no_text_of_a_file_moves_the_cursor(run_dir):
    (run_dir / "lock").write_text("process 7 on a-node\x1b[2J\nfinished: all is well, job 12\n")
    lines = format_status(run_status(run_dir, stalled_minutes=10)).splitlines()
    assert "a-node\\x1b[2J\\nfinished" in lines[0] and len(lines) == 2


def test_an_unstarted_run_is_stopped_a_folder_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    facts = run_status(tmp_path, stalled_minutes=10)
    assert (facts["state"], facts["step"]) == ("stopped", 0)
    with pytest.raises(UsageError, match="none"):
        run_status(tmp_path / "none", stalled_minutes=10)


def test_the_command_takes_a_path_and_prints_json(run_dir, capsys):
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    status(parse("status", None, [str(run_dir), "--json"]))
    report = json.loads(capsys.readouterr().out)
    assert (report["run"], report["step"], report["state"]) == (str(run_dir), 30, "stopped")
    status(parse("status", None, [f"run={run_dir}", "stalled_minutes=2"]))
    assert "step 30, 500 ms a step" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_warnings_of_training_are_shown(run_dir):
    lines = [{"step": step, "warning/mode_collapse": value} for step, value in ((10, 0.0), (20, 1.0), (30, 1.0))]
    lines.append({"step": 1040, "warning/flat_critic": 1.0})
    (run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert format_status(run_status(run_dir, stalled_minutes=10)).splitlines()[2:] == [
        "warning: flat critic in 1 of 1 measurements, last at step 1,040",
        "warning: mode collapse in 2 of 3 measurements, last at step 30",
    ]


def test_saved_steps_count_that_were_not_logged(run_dir):
    (run_dir / "checkpoints/step_00000037").mkdir()
    (run_dir / "checkpoints/step_00000037/manifest.json").write_text("{}")
    assert run_status(run_dir, stalled_minutes=10)["step"] == 37
