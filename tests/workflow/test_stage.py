"""The walk along stages: what is done is skipped, what is missing is run, a command's failure is the pipeline's."""

import dataclasses
import sys
from pathlib import Path

import pytest

from vesselgan.workflow import stage as stages
from vesselgan.workflow.stage import Stage


def making(out: Path, *, code: int = 0, name: str = "make", says: str = "") -> Stage:
    """A stage that adds one letter to `out`, so that runs can be counted."""
    words = (sys.executable, "-c", f"print({says!r}); open({str(out)!r}, 'a').write('x'); raise SystemExit({code})")
    return Stage(name, f"stage {name}", (words,), (out,))


def run_stage(home: Path, stage: Stage, *, is_stale: bool = False) -> bool:
    return stages.run_stage(home, stage, "[1/1]", is_stale=is_stale)


def test_a_stage_runs_once_and_then_says_that_it_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = making(tmp_path / "out")
    assert run_stage(tmp_path, stage) is True
    assert run_stage(tmp_path, stage) is False
    assert (tmp_path / "out").read_text() == "x"
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[1/1] stage make") and first.endswith(" s")
    assert "done already" in second


REASONS = ["output is missing", "command changed", "marker is broken", "an earlier stage ran", "input changed"]


@pytest.mark.parametrize("reason", REASONS)
def test_a_stage_runs_again_when(reason: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "input").write_text("three seeds")
    stage = dataclasses.replace(making(out), inputs=(tmp_path / "input",))
    run_stage(tmp_path, stage)
    if reason == "output is missing":
        out.unlink()
    elif reason == "command changed":
        stage = dataclasses.replace(making(out, says="otherwise"), inputs=stage.inputs)
    elif reason == "input changed":
        (tmp_path / "input").write_text("two seeds")
    elif reason == "marker is broken":
        (tmp_path / "done/make.json").write_text("{")
    assert run_stage(tmp_path, stage, is_stale=reason == "an earlier stage ran") is True
    assert run_stage(tmp_path, stage) is False


def test_a_failed_stage_ends_the_walk_with_its_code_and_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = making(tmp_path / "out", code=3, says="noise\nerror: shard 7 is short: build it again\nmore noise")
    with pytest.raises(SystemExit) as stopped:
        run_stage(tmp_path, stage)
    assert stopped.value.code == 3
    error_lines = capsys.readouterr().err.splitlines()
    assert error_lines[0] == "error: shard 7 is short: build it again"
    assert error_lines[1].startswith("error: `stage make` ended with code 3") and error_lines[1].endswith(
        "logs/make.log"
    )
    assert len(error_lines) == 2
    # what is there now is no reason to skip it
    assert run_stage(tmp_path, making(tmp_path / "out")) is True


def test_a_failure_without_an_error_line_shows_the_end_of_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = making(tmp_path / "out", code=1, says="\n".join(f"line {number}" for number in range(100)))
    with pytest.raises(SystemExit):
        run_stage(tmp_path, stage)
    error_lines = capsys.readouterr().err.splitlines()
    assert error_lines[-2] == "line 99"
    assert "line 10" not in error_lines


def test_a_command_that_was_killed_gives_the_shells_code(tmp_path: Path) -> None:
    kill = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(SystemExit) as stopped:
        run_stage(tmp_path, Stage("killed", "killed", (kill,)))
    assert stopped.value.code == 137


def test_a_stage_stops_at_its_first_failing_command(tmp_path: Path) -> None:
    fails, never = making(tmp_path / "a", code=4).commands[0], making(tmp_path / "b").commands[0]
    with pytest.raises(SystemExit):
        run_stage(tmp_path, Stage("two", "two", (fails, never)))
    assert not (tmp_path / "b").exists()
