"""The demo's walk: what is done is skipped, what is missing is run, and a command's failure is the demo's."""

import json
import sys
from pathlib import Path

import pytest

from vesselgan import demo
from vesselgan.config import compose
from vesselgan.demo import Choice, Stage

CPU = Choice("cpu", "bf16", 2, "")


def making(out: Path, *, code: int = 0, name: str = "make", says: str = "") -> Stage:
    """A stage that adds one letter to `out`, so that runs can be counted."""
    words = (sys.executable, "-c", f"print({says!r}); open({str(out)!r}, 'a').write('x'); raise SystemExit({code})")
    return Stage(name, f"stage {name}", (words,), (out,))


def walk(home: Path, stage: Stage, *, after_news: bool = False) -> bool:
    return demo.walk(home, stage, "[1/1]", after_news=after_news)


def test_a_stage_runs_once_and_then_says_that_it_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = making(tmp_path / "out")
    assert walk(tmp_path, stage) is True
    assert walk(tmp_path, stage) is False
    assert (tmp_path / "out").read_text() == "x"
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[1/1] stage make") and first.endswith(" s")
    assert "done already" in second


@pytest.mark.parametrize("reason", ["output is missing", "command changed", "marker is broken", "an earlier stage ran"])
def test_a_stage_runs_again_when(reason: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stage = making(out)
    walk(tmp_path, stage)
    if reason == "output is missing":
        out.unlink()
    elif reason == "command changed":
        stage = making(out, says="otherwise")
    elif reason == "marker is broken":
        (tmp_path / "done/make.json").write_text("{")
    assert walk(tmp_path, stage, after_news=reason == "an earlier stage ran") is True
    assert walk(tmp_path, stage) is False


def test_a_failed_stage_ends_the_walk_with_its_code_and_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = making(tmp_path / "out", code=3, says="noise\nerror: shard 7 is short: build it again\nmore noise")
    with pytest.raises(SystemExit) as stopped:
        walk(tmp_path, stage)
    assert stopped.value.code == 3
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: shard 7 is short: build it again"
    assert said[1].startswith("error: `stage make` ended with code 3") and said[1].endswith("logs/make.log")
    assert len(said) == 2
    # what is there now is no reason to skip it
    assert walk(tmp_path, making(tmp_path / "out")) is True


def test_a_failure_without_an_error_line_shows_the_end_of_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = making(tmp_path / "out", code=1, says="\n".join(f"line {number}" for number in range(100)))
    with pytest.raises(SystemExit):
        walk(tmp_path, stage)
    said = capsys.readouterr().err.splitlines()
    assert said[-2] == "line 99"
    assert "line 10" not in said


def test_a_command_that_was_killed_gives_the_shells_code(tmp_path: Path) -> None:
    kill = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(SystemExit) as stopped:
        walk(tmp_path, Stage("killed", "killed", (kill,)))
    assert stopped.value.code == 137


def test_a_stage_stops_at_its_first_failing_command(tmp_path: Path) -> None:
    fails, never = making(tmp_path / "a", code=4).commands[0], making(tmp_path / "b").commands[0]
    with pytest.raises(SystemExit):
        walk(tmp_path, Stage("two", "two", (fails, never)))
    assert not (tmp_path / "b").exists()


def test_the_probe_decides_precision_and_ranks(tmp_path: Path) -> None:
    answer = {"device": "cpu", "num_devices": 0, "precision": "bf16", "step_ms": {"fp32": 41.2, "bf16": 17.0}}
    (tmp_path / "a.json").write_text(json.dumps(answer))
    choice = demo.read_choice(tmp_path / "a.json")
    assert (choice.precision, choice.num_ranks) == ("bf16", 2)
    assert choice.words == "the GAN trains in bf16 on 2 ranks (cpu); a step of the probe: fp32 41 ms, bf16 17 ms"
    answer |= {"device": "cuda", "num_devices": 1, "precision": "fp16", "step_ms": {}}
    (tmp_path / "a.json").write_text(json.dumps(answer))
    assert demo.read_choice(tmp_path / "a.json").num_ranks == 1


def verb_of(command: tuple[str, ...]) -> str:
    """The verb whose schema reads the command's settings."""
    return next(Path(word.removeprefix("data_prep.")).stem for word in command if is_verb(word))


def is_verb(word: str) -> bool:
    return Path(word).parent.name == "launch" or word.startswith("data_prep.")


@pytest.mark.parametrize("work", ["work", "/some where/else=1"])
def test_every_command_of_the_road_is_one_that_its_verb_accepts(work: str) -> None:
    overrides = (demo.setting("work_dir", work), "num_patches=7")
    stages = demo.stages_of(compose.compose("demo", list(overrides)), overrides, CPU)
    commands = [command for stage in stages for command in stage.commands]
    for command in commands:
        start = next(position for position, word in enumerate(command) if is_verb(word))
        # parse composes and checks; a setting that the verb does not know is an error
        parsed = compose.parse(verb_of(command), None, list(command[start + 1 :]))
        assert str(getattr(parsed.config, "work_dir", work)) == work
        assert getattr(parsed.config, "num_patches", 7) == 7
    verbs = [verb_of(command) for command in commands]
    assert verbs[:5] == ["make_phantom", "check", "build_shards", "train_gan", "generate"]
    assert verbs.count("train_unet") == verbs.count("segment") == 3
    assert verbs.count("evaluate") == 4 and verbs[-1] == "report"


def test_the_gan_runs_under_the_deepspeed_launcher_with_the_probes_precision() -> None:
    stages = demo.stages_of(compose.compose("demo", []), (), CPU)
    (command,) = next(stage for stage in stages if stage.name == "gan").commands
    assert (command[0], Path(command[1]).name) == (sys.executable, "deepspeed")
    assert command[2:4] == ("--num_gpus", "2")
    assert {"variant=sn_mp", "variant.precision=bf16", "preset=demo"} <= set(command)
    assert command[command.index("--deepspeed_config") + 1] == "ds_bf16.json"


def test_shards_are_built_on_two_mpi_ranks() -> None:
    stages = demo.stages_of(compose.compose("demo", []), (), CPU)
    (command,) = next(stage for stage in stages if stage.name == "shards").commands
    assert [Path(command[0]).name, *command[1:3]] == ["mpiexec", "-n", "2"]
    assert command[4:8] == ("-m", "mpi4py", "-m", "data_prep.build_shards")
