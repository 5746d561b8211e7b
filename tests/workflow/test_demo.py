"""The demo's road: which commands it takes, and that their verbs accept them."""

import json
import sys
from pathlib import Path

import pytest

from vesselgan.config import compose
from vesselgan.workflow import demo
from vesselgan.workflow.demo import Choice

CPU = Choice("cpu", "bf16", 2, "")


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
    """The name whose schema reads the command's settings."""
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
        # parse composes and checks; a setting that the name does not know is an error
        parsed = compose.parse(verb_of(command), None, list(command[start + 1 :]))
        assert str(getattr(parsed.config, "work_dir", work)) == work
        assert getattr(parsed.config, "num_patches", 7) == 7
    verbs = [verb_of(command) for command in commands]
    assert verbs[:5] == ["make_phantom", "check", "build_shards", "train_gan", "generate"]
    assert verbs.count("train_unet") == verbs.count("segment") == 3
    assert verbs.count("evaluate") == 5 and verbs[-1] == "report"


def test_image_scores_are_asked_for_with_random_features_by_name() -> None:
    stages = demo.stages_of(compose.compose("demo", []), (), CPU)
    (command,) = next(stage for stage in stages if stage.name == "image").commands
    image = compose.parse("evaluate", None, list(command[2:])).config
    assert (image.evaluate, image.image.extractor, image.image.reference) == ("image", "random", "validation")
    assert image.image.synthetic == "work/runs/demo-gan/synthetic"


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
