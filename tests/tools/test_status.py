"""What a run directory tells of its run, at every point of its life."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vesselgan.config.compose import parse
from vesselgan.core.errors import UsageError
from vesselgan.tools.status import age, in_words, look, status

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


def _hold(
    lock: Path, is_held: "multiprocessing.synchronize.Event", is_over: "multiprocessing.synchronize.Event"
) -> None:
    from vesselgan.formats import run_dir as rundir

    file = rundir.take(lock.parent)
    is_held.set()
    is_over.wait(60)
    file.close()


@pytest.fixture
def held(run_dir: Path) -> Iterator[Callable[[], None]]:
    """Another process trains in the run, as training itself takes it; call it to end that process."""
    context = multiprocessing.get_context("spawn")
    is_held, is_over = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(run_dir / "lock", is_held, is_over))
    process.start()
    assert is_held.wait(120)

    def end() -> None:
        is_over.set()
        process.join(60)

    yield end
    end()


def test_a_run_is_healthy_then_stalled_then_stopped(run_dir: Path, held: Callable[[], None]) -> None:
    facts = look(run_dir, stalled_minutes=10)
    assert (facts["state"], facts["step"], facts["step_ms"], facts["steps_per_second"]) == ("healthy", 30, 500.0, 2.0)
    assert (facts["checkpoint"], facts["starts"], facts["requeues"]) == ("step_00000030", 2, 1)
    assert facts["checkpoint_age_s"] < MINUTE and f"on {os.uname().nodename}" in facts["holder"]
    grow_old(run_dir, 11 * MINUTE)
    stalled = look(run_dir, stalled_minutes=10)
    assert (stalled["state"], in_words(stalled).split(",")[0]) == ("stalled", "stalled: last heard of 11 min ago")
    held()
    ended = look(run_dir, stalled_minutes=10)
    assert ended["state"] == "stopped" and "11 min ago, without a requeue: it failed or was killed" in ended["why"]


def test_a_slow_run_may_be_silent_for_ten_of_its_intervals(run_dir: Path, held: Callable[[], None]) -> None:
    # 10 intervals of 10 steps of a minute each: 100 minutes.
    lines = [json.dumps({"step": step, "time/step_ms": 60000.0}) for step in (10, 20)]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    grow_old(run_dir, 90 * MINUTE)
    assert look(run_dir, stalled_minutes=10)["state"] == "healthy"
    grow_old(run_dir, 110 * MINUTE)
    assert look(run_dir, stalled_minutes=10)["state"] == "stalled"


def test_a_stop_that_was_asked_for_is_told_with_its_reason(run_dir: Path) -> None:
    (run_dir / "requeue").write_text(json.dumps({"step": 30, "reason": "signal SIGUSR1", "sessions": 2}))
    facts = look(run_dir, stalled_minutes=10)
    assert facts["state"] == "stopped" and facts["is_requeue_asked"]
    assert facts["why"] == "saved at step 30 (signal SIGUSR1); the same command goes on from there"


def test_a_requeue_marker_that_a_new_start_takes_away_meanwhile_is_none(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_dir / "requeue").write_text('{"step": 30, "reason": "stop"}')
    is_file = Path.is_file

    def take_away(path: Path) -> bool:
        was_there = is_file(path)
        if path.name == "requeue":
            path.unlink()
        return was_there

    monkeypatch.setattr(Path, "is_file", take_away)
    assert look(run_dir, stalled_minutes=10)["state"] == "stopped"


def test_a_finished_run_is_finished(run_dir: Path) -> None:
    (run_dir / "finished.json").write_text("{}")
    assert look(run_dir, stalled_minutes=10)["state"] == "finished"


def test_a_lock_of_another_host_is_believed_while_the_run_speaks(run_dir: Path) -> None:
    (run_dir / "lock").write_text("process 7 on a-node-far-away, job 12\n")
    facts = look(run_dir, stalled_minutes=10)
    assert facts["state"] == "healthy" and "job 12 (its lock is not seen from here)" in facts["why"]
    grow_old(run_dir, 11 * MINUTE)
    assert look(run_dir, stalled_minutes=10)["state"] == "stopped"


def test_a_run_that_never_began_and_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    facts = look(tmp_path, stalled_minutes=10)
    assert (facts["state"], facts["why"], facts["step"]) == ("stopped", "it never began", 0)
    assert "no checkpoint yet; 0 requeues" in in_words(facts)
    with pytest.raises(UsageError, match="holds no run"):
        look(tmp_path / "none", stalled_minutes=10)


def test_the_command_takes_a_path_and_prints_json(run_dir: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    status(parse("status", None, [str(run_dir), "--json"]))
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["step"], told["state"]) == (str(run_dir), 30, "stopped")
    status(parse("status", None, [f"run={run_dir}", "stalled_minutes=2"]))
    assert capsys.readouterr().out.splitlines()[1].startswith("step 30, 500 ms a step; last checkpoint step_00000030, ")
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (2e5, "2 d")]
)
def test_ages_are_told_in_the_largest_unit_of_which_there_are_two(seconds: float, words: str) -> None:
    assert age(seconds) == words
