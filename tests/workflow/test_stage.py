"""The walk along stages: what is done is skipped, what is missing is run, a command's failure is the pipeline's."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from vesselgan.workflow import stage as stages
from vesselgan.workflow.stage import Stage, in_turns


def making(out: Path, *, code: int = 0, name: str = "make", says: str = "") -> Stage:
    """A stage that adds one letter to `out`, so that runs can be counted."""
    words = (sys.executable, "-c", f"print({says!r}); open({str(out)!r}, 'a').write('x'); raise SystemExit({code})")
    return Stage(name, f"stage {name}", (words,), (out,))


def run_stage(home: Path, stage: Stage) -> bool:
    return stages.run_stage(home, stage, "[1/1]")


def test_a_finished_stage_is_not_run_again(tmp_path):
    stage = making(tmp_path / "out")
    assert run_stage(tmp_path, stage) is True
    assert run_stage(tmp_path, stage) is False
    assert (tmp_path / "out").read_text() == "x"


REASONS = ["output is missing", "command changed", "marker is broken", "input changed", "input is gone"]
REASONS += ["volume changed", "volume is gone"]


@pytest.mark.parametrize("reason", REASONS)
def test_a_stage_runs_again_when(reason, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "input").write_text("three seeds")
    (tmp_path / "volume").write_text("first")
    stage = dataclasses.replace(making(out), inputs=(tmp_path / "input",), volumes=(tmp_path / "volume",))
    run_stage(tmp_path, stage)
    if reason == "output is missing":
        out.unlink()
    elif reason == "command changed":
        stage = dataclasses.replace(stage, commands=making(out, says="otherwise").commands)
    elif reason == "input changed":
        (tmp_path / "input").write_text("two seeds")
    elif reason == "input is gone":
        (tmp_path / "input").unlink()
    elif reason == "volume changed":
        (tmp_path / "volume").write_text("other")  # as many bytes, later
    elif reason == "volume is gone":
        (tmp_path / "volume").unlink()
    elif reason == "marker is broken":
        (tmp_path / "done/make.json").write_text("{")
    assert run_stage(tmp_path, stage) is True
    assert run_stage(tmp_path, stage) is False


def test_input_changed_during_a_run_counts_as_new(tmp_path):
    stage = dataclasses.replace(making(tmp_path / "out"), inputs=(tmp_path / "out",))  # it writes what it reads
    assert [run_stage(tmp_path, stage) for _ in range(2)] == [True, True]


def test_an_input_written_anew_is_no_change(tmp_path):
    (tmp_path / "input").write_text("three seeds")
    stage = dataclasses.replace(making(tmp_path / "out"), inputs=(tmp_path / "input",))
    run_stage(tmp_path, stage)
    (tmp_path / "input").unlink()
    (tmp_path / "input").write_text("three seeds")
    assert run_stage(tmp_path, stage) is False


def test_a_failed_stage_ends_with_its_code(tmp_path, capsys):
    stage = making(tmp_path / "out", code=3, says="noise\nerror: shard 7 is short: build it again\nmore noise")
    with pytest.raises(SystemExit) as stopped:
        run_stage(tmp_path, stage)
    assert stopped.value.code == 3
    error = capsys.readouterr().err
    assert error.startswith("error: shard 7 is short") and "make.log" in error and "noise" not in error
    # what is there now is no reason to skip it
    assert run_stage(tmp_path, making(tmp_path / "out")) is True


def test_a_killed_command_gives_the_shells_code(tmp_path):
    kill = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(SystemExit) as stopped:
        run_stage(tmp_path, Stage("killed", "killed", (kill,)))
    assert stopped.value.code == 137


def test_a_stage_stops_at_its_first_failing_command(tmp_path):
    fails, never = making(tmp_path / "a", code=4).commands[0], making(tmp_path / "b").commands[0]
    with pytest.raises(SystemExit):
        run_stage(tmp_path, Stage("two", "two", (fails, never)))
    assert not (tmp_path / "b").exists()


def test_side_by_side_one_failure_ends_all(tmp_path, capsys):
    waits = (sys.executable, "-c", f"open({str(tmp_path / 'began')!r}, 'w'); import time; time.sleep(600)")
    code = f"import os\nwhile not os.path.exists({str(tmp_path / 'began')!r}): pass\nraise SystemExit('error: broken')"
    stage = Stage("both", "both", (waits,), beside=((sys.executable, "-c", code),))
    with pytest.raises(SystemExit) as stopped:
        run_stage(tmp_path, stage)
    assert stopped.value.code == 1 and "both-2.log" in capsys.readouterr().err


def test_a_lane_goes_on_while_the_other_waits(tmp_path):
    """Of four commands in turns, the fourth follows the second, not the first."""
    last = tmp_path / "last"
    waits = f"import os, time\nwhile not os.path.exists({str(last)!r}): time.sleep(0.05)"
    commands = [(sys.executable, "-c", code) for code in (waits, "", "", f"open({str(last)!r}, 'w')")]
    first, beside = in_turns(commands, 2)
    assert run_stage(tmp_path, Stage("lanes", "lanes", first, (last,), beside=beside))


def test_a_command_that_ends_unseen_skips_none(tmp_path, monkeypatch):
    """The first ends between two looks at it."""
    looks = iter([None])
    poll = subprocess.Popen.poll

    def late(process: subprocess.Popen) -> int | None:
        process.wait()
        return next(looks, poll(process))

    monkeypatch.setattr(subprocess.Popen, "poll", late)
    assert run_stage(tmp_path, Stage("two", "two", tuple(making(tmp_path / name).commands[0] for name in "ab")))
    assert (tmp_path / "b").read_text() == "x"


def test_a_lane_ends_at_its_first_failing_command(tmp_path):
    fails, never = making(tmp_path / "a", code=4).commands[0], making(tmp_path / "b").commands[0]
    other = (sys.executable, "-c", "import time; time.sleep(600)")
    with pytest.raises(SystemExit) as stopped:
        run_stage(tmp_path, Stage("two", "two", (fails, never), beside=(other,)))
    assert stopped.value.code == 4 and not (tmp_path / "b").exists()


def training(run_dir: Path, *, steps: str) -> tuple[str, ...]:
    """Stands for a training that was stopped at its first start and reaches its end at the second."""
    code = f"import os\npath = {str(run_dir)!r}\nos.makedirs(path, exist_ok=True)\n"
    code += "open(path + '/finished.json' if os.path.exists(path + '/requeue') else path + '/requeue', 'w')"
    return (sys.executable, "-c", code, "--run_dir", str(run_dir), steps)


@pytest.mark.parametrize("has_other_lane", [False, True])
def test_a_stopped_training_ends_its_lane(tmp_path, capsys, has_other_lane):
    sample, other = (making(tmp_path / name).commands[0] for name in ("samples", "other"))
    commands = (training(tmp_path / "run", steps="train.max_steps=50"), sample)
    beside = (other,) if has_other_lane else ()
    outputs = (tmp_path / "run/finished.json", tmp_path / "samples")
    stage = Stage("training", "training", commands, outputs, beside=beside)
    with pytest.raises(SystemExit) as stopped:
        run_stage(tmp_path, stage)
    assert stopped.value.code == stages.STOPPED and not (tmp_path / "samples").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "run") in line and "same command" in line
    assert (tmp_path / "other").exists() == has_other_lane  # what was not stopped does its work
    assert run_stage(tmp_path, stage) and (tmp_path / "samples").exists()


def test_a_stopped_training_alone_ends_its_stage(tmp_path):
    """As in a study, where a stage is one command."""
    stage = Stage("unet", "unet", (training(tmp_path / "run", steps="5"),), (tmp_path / "run/finished.json",))
    with pytest.raises(SystemExit) as stopped:
        run_stage(tmp_path, stage)
    assert stopped.value.code == stages.STOPPED
    assert run_stage(tmp_path, stage)


def test_what_a_stage_passes_on_is_its_own(tmp_path):
    """A generator that somebody has trained on since is not passed over."""
    stage = dataclasses.replace(making(tmp_path / "weights"), passed_on=(tmp_path / "weights",))
    assert run_stage(tmp_path, stage) and not run_stage(tmp_path, stage)
    (tmp_path / "weights").write_text("of another training")
    assert run_stage(tmp_path, stage) and not run_stage(tmp_path, stage)


def test_side_by_side_all_run(tmp_path):
    made = [making(tmp_path / name) for name in "abc"]
    first, beside = in_turns([stage.commands[0] for stage in made], 2)
    assert run_stage(tmp_path, Stage("all", "all", first, beside=beside))
    assert all((tmp_path / name).read_text() == "x" for name in "abc")
