"""The demo's road: which commands it takes, and that their verbs accept them."""

import json
import sys
from pathlib import Path

import pytest

from vesselgan.config import compose
from vesselgan.core.errors import DataError, UsageError
from vesselgan.workflow import demo, stage
from vesselgan.workflow.demo import Choice

CPU = Choice("cpu", "bf16", 2, 2, "")


def test_the_probe_decides_precision_and_ranks(tmp_path: Path) -> None:
    def choice_of(answer: dict[str, object]) -> Choice:
        (tmp_path / "a.json").write_text(json.dumps(answer))
        return demo.read_choice(tmp_path / "a.json")

    cpu = {"device": "cpu", "precision": "bf16", "step_ms": {"fp32": 41.2, "bf16": 17.0}}
    assert choice_of(cpu | {"num_cores": 2}).precision == "bf16"
    for cores, ranks in ((1, 1), (2, 1), (4, 2), (64, 2)):  # of each of the two that train side by side
        choice = choice_of(cpu | {"num_cores": cores})
        assert (choice.num_ranks, choice.at_once) == (ranks, 2)
    for gpus, ranks in ((1, 1), (2, 2), (8, 2)):
        choice = choice_of({"device": "cuda", "num_devices": gpus, "precision": "fp16", "step_ms": {}})
        assert (choice.num_ranks, choice.at_once) == (ranks, 1)


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"device": "cpu", "precision": "bf16", "step_ms": 3}'])
def test_a_damaged_choice_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "precision.json").write_text(text)
    with pytest.raises(DataError, match="precision.json"):
        demo.read_choice(tmp_path / "precision.json")


@pytest.mark.parametrize("text", ["", "[]", "7", '{"commands": [], "inputs": [], "seconds": "x"}'])
def test_a_damaged_marker_is_a_stage_to_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "stage.json").write_text(text)
    assert not stage._is_done(stage.Stage("stage", "", ()), tmp_path / "stage.json")


def verb_of(command: tuple[str, ...]) -> str:
    """The name whose schema reads the command's settings."""
    return command[place_of_verb(command)].removeprefix("data_prep.").replace("-", "_")


def place_of_verb(command: tuple[str, ...]) -> int:
    if "vesselgan" in command:
        return command.index("vesselgan") + 1
    return next(place for place, word in enumerate(command) if word.startswith("data_prep."))


def test_every_command_is_accepted_by_its_script() -> None:
    work = "/some where/else=1"
    overrides = (demo.setting("work_dir", work), "num_patches=7")
    stages = demo.stages_of(compose.compose("demo", list(overrides)), overrides, CPU)
    commands = [command for stage in stages for lane in stage.lanes for command in lane]
    for command in commands:
        start = place_of_verb(command)
        # parse composes and checks; a setting that the name does not know is an error
        parsed = compose.parse(verb_of(command), None, list(command[start + 1 :]))
        assert str(getattr(parsed.config, "work_dir", work)) == work
        assert getattr(parsed.config, "num_patches", 7) in (7, demo.NUM_RELEASED)
    verbs = [verb_of(command) for command in commands]
    assert verbs[:3] == ["make_phantom", "check", "build_shards"]
    assert verbs[3:11] == ["train_gan", "generate", "train_unet", "train_gan", "generate"] + ["train_unet"] * 3
    assert verbs.count("train_unet") == verbs.count("segment") == 4
    assert verbs.count("evaluate") == 7 and verbs[-6:] == [
        "evaluate",
        "evaluate",
        "generate",
        "audit",
        "release",
        "report",
    ]


def test_with_hours_the_flows_unets_learn_from_heads() -> None:
    """Trained for longer, as many heads as the preset says, as large as the phantoms, cut as they are."""
    overrides = ("preset=hours",)
    composed = compose.compose("demo", list(overrides))
    stages = {stage.name: stage for stage in demo.stages_of(composed, overrides, CPU)}
    gan, flow = stages["training"].lanes
    assert "preset=demo" in gan[0] and "preset=hours" in flow[0]
    configs = [
        compose.parse(verb_of(command), None, list(command[place_of_verb(command) + 1 :])).config for command in flow
    ]
    train, patches, heads, build, *unets = configs
    assert train.train.max_steps == 6000 and patches.num_patches == 1600
    assert (heads.volumes, heads.shape, heads.out) == (40, [96, 112, 48], None)
    assert build.data.root == "work/runs/demo-flow_label/synthetic_volumes"
    assert build.data.prepare.patch_shape == [16, 16, 16] and build.data.prepare.upper_percentile == 99.995
    learned = {unet.synthetic for unet in unets if unet.data.source == "synthetic"}
    assert learned == {f"{build.data.cohort_dir}/shards/unet/train"}
    assert Path("work/heads/shards/unet/train/manifest.json") in stages["training"].passed_on
    with pytest.raises(UsageError, match="preset=hours alone"):
        demo.stages_of(compose.compose("demo", ["preset=spanning"]), ("preset=spanning",), CPU)


def test_a_demo_stage_sees_all_before_it() -> None:
    """So what somebody changes between two starts, as a run that is trained on, makes again what depends on it."""
    stages = demo.stages_of(compose.compose("demo", []), (), CPU)
    reads = {stage.name: set(stage.inputs) for stage in stages}
    leaves = {stage.name: set(stage.outputs) for stage in stages}
    for later, earlier in (("training", "shards"), ("release", "image"), ("segment", "training"),
                           ("evaluate", "segment"), ("report", "image")):  # fmt: skip
        assert leaves[earlier] and leaves[earlier] <= reads[later]
    assert all(path.suffix for paths in leaves.values() for path in paths)  # files: a folder has no content to compare


def test_launchers_precision_and_features_are_asked_for() -> None:
    stages = {stage.name: stage for stage in demo.stages_of(compose.compose("demo", []), (), CPU)}
    (gan, *_), (shards,), (image, *_) = (stages[name].commands for name in ("training", "shards", "image"))
    assert (gan[0], Path(gan[1]).name, *gan[2:4]) == (sys.executable, "deepspeed", "--num_gpus", "2")
    assert {"variant=sn_mp", "variant.precision=bf16"} <= set(gan)
    assert gan[gan.index("--deepspeed_config") + 1] == "ds_bf16.json"
    assert [Path(shards[0]).name, *shards[1:3]] == ["mpiexec", "-n", "2"]
    config = compose.parse("evaluate", None, list(image[4:])).config
    assert (config.image.extractor, config.image.reference) == ("random", "validation")
