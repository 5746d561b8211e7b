"""Overrides, presets and their errors, without a launcher."""

import dataclasses
import json
from pathlib import Path

import pytest

from vesselgan.config import checks, compose, deepspeed, schema
from vesselgan.core.errors import UsageError

NEEDED = {"generate": ["run=x"], "segment": ["run=x", "out=y"], "evaluate": ["name=x", "out=y"]}
NEEDED["status"] = ["run=x"]
VARIANTS = compose.groups()["variant"]
JSONS = sorted(path.name for path in (compose.config_dir() / "deepspeed").glob("*.json"))


@pytest.mark.parametrize("command", compose.COMMANDS)
def test_every_command_composes_from_its_file(command):
    config = compose.compose(command, NEEDED.get(command, []))
    assert isinstance(config, compose.COMMANDS[command])


WITHOUT_PRESET = ("generate", "plan", "demo", "benchmark", "status", "doctor")
WITH_PRESET = [command for command in compose.COMMANDS if command not in WITHOUT_PRESET]


@pytest.mark.parametrize("command", WITH_PRESET)
@pytest.mark.parametrize("preset", compose.groups()["preset"])
def test_every_preset_fits_every_command_that_takes_one(command, preset):
    compose.compose(command, [*NEEDED.get(command, []), f"preset={preset}"])


@pytest.mark.parametrize("data", compose.groups()["data"])
def test_every_cohort_composes_once_its_folder_is_named(data):
    config = compose.compose("build_shards", [f"data={data}", "data.root=/somewhere", "work_dir=elsewhere"])
    assert config.data.cohort_dir == f"elsewhere/{config.data.name}"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", JSONS)
def test_every_variant_and_json_agree_or_print_the_command_that_would(variant, name):
    composed = compose.compose("train_gan", [f"variant={variant}"]).variant
    precision = composed.precision
    _, settings = deepspeed.read(name, precision)
    stated = deepspeed.precision_of(settings)
    assert name == f"ds_{stated}.json"
    command = f"deepspeed launch/train_gan.py variant={variant}"
    if stated == precision:
        deepspeed.check_precision_agrees(name, settings, precision, command=command, key="variant.precision")
        return
    if composed.dp is not None:
        with pytest.raises(UsageError, match="set precision=fp32"):
            compose.compose("train_gan", [f"variant={variant}", f"variant.precision={stated}"])
        return
    with pytest.raises(UsageError) as error:
        deepspeed.check_precision_agrees(name, settings, precision, command=command, key="variant.precision")
    whole = f"{command} --deepspeed_config {name} variant.precision={stated}"
    assert whole in str(error.value)
    # The command it prints does agree.
    config = compose.compose("train_gan", [f"variant={variant}", f"variant.precision={stated}"])
    deepspeed.check_precision_agrees(name, settings, config.variant.precision, command=command, key="variant.precision")


def test_the_default_is_the_papers_best_model_on_the_phantom():
    config = compose.compose("train_gan", [])
    assert (config.variant.name, config.variant.precision, config.data.name) == ("c_sn_mp", "fp16", "phantom")
    assert (config.train.batch_size, config.train.epochs, config.variant.betas) == (4, 100, [0.0, 0.9])
    assert (config.variant.learning_rate_critic, config.variant.learning_rate_generator) == (4e-4, 2e-4)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("variant.widht=64", "`variant.width`"),
        ("trian.batch_size=2", "`train.batch_size`"),
        ("variant=sn_pm", "variant=sn_mp"),
        ("train.batch_size=-4", "train.batch_size=-4: must be above 0"),
        ("variant.learning_rate_critic=0", "variant.learning_rate_critic=0.0: must be above 0"),
        ("variant.precision=fp8", "fp32, fp16, bf16"),
        ("train.batch_size=four", "train.batch_size"),
        ("data.label_threshold=1.5", "between 0 and 1"),
        ("data.prepare.patch_shape=[64,64,32]", "`data."),
        ("data.root=/a=b", "quotes"),
        ("train.epochs=", "train.epochs"),
    ],
)
def test_a_wrong_override_is_named_with_what_would_be_right(override, told):
    with pytest.raises(UsageError) as error:
        compose.compose("train_gan", [override])
    assert told in str(error.value)
    assert error.value.exit_code == 2


def test_a_setting_without_default_is_asked_for_by_name():
    with pytest.raises(UsageError, match="run=VALUE"):
        compose.compose("generate", [])


def test_a_path_with_an_equals_sign_works_in_quotes():
    assert compose.compose("train_gan", ['data.root="/a=b"']).data.root == "/a=b"


def test_what_is_written_into_the_run_directory_reads_back_equal(tmp_path):
    config = compose.compose("train_gan", ["variant=gp", "train.max_steps=7", "work_dir=/w"])
    (tmp_path / "config.yaml").write_text(compose.to_yaml(config))
    assert compose.from_yaml("train_gan", tmp_path / "config.yaml") == config


def test_a_configuration_with_other_settings_is_no_run_of_the_command(tmp_path):
    written = compose.to_yaml(compose.compose("train_gan", ["variant=gp"]))
    without = "".join(f"{line}\n" for line in written.splitlines() if "max_minutes" not in line)
    for text, key in ((without, "max_minutes"), (written + "surprise: 1\n", "surprise")):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UsageError, match=key):
            compose.from_yaml("train_gan", tmp_path / "config.yaml")


def test_the_hash_changes_with_the_science_and_not_with_the_place():
    base = compose.config_hash(compose.compose("train_gan", []))
    assert compose.config_hash(compose.compose("train_gan", ["train.seed=1"])) != base
    assert compose.config_hash(compose.compose("train_gan", ["runtime.device=cpu"])) == base
    assert compose.config_hash(compose.compose("train_gan", ["run_dir=/elsewhere"])) == base


def test_every_rule_belongs_to_a_setting():
    keys = {key for kind in compose.COMMANDS.values() for key in compose.keys_of(kind)}
    endings = {".".join(key.split(".")[-2:]) for key in keys} | {f"*.{key.split('.')[-1]}" for key in keys}
    assert set(checks.RULES) <= endings


def test_every_setting_says_what_it_is_or_bears_a_plain_name():
    assert all(
        dataclasses.is_dataclass(kind) and kind.__module__ == schema.__name__ for kind in compose.COMMANDS.values()
    )


def written(folder: Path, settings: dict) -> str:
    path = folder / "ds.json"
    path.write_text(json.dumps(settings))
    return str(path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": {"type": "Adam"}}, "variant's YAML"),
        ({"scheduler": {}}, "variant's YAML"),
        ({"fp16": {"enabled": True}}, "ZeRO stage 0"),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 0}}, "ZeRO stage 0"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}, "choose one"),
        ({"zero_optimization": {"stage": 3}}, "stage 3"),
        ({"zero_optimisation": {"stage": 1}}, "`zero_optimization`"),
        ({"train_batch_size": 8}, "auto"),
        ({"torch_autocast": {"enabled": True}}, "shared by all engines"),
        ({"wall_clock_breakdown": True}, "remove it"),
        ({"data_types": {"buffer_dtype": "fp16"}}, "buffers stay float32"),
    ],
)
def test_a_json_that_would_train_something_else_is_refused_with_the_reason(tmp_path, settings, told):
    with pytest.raises(UsageError) as error:
        deepspeed.read(written(tmp_path, settings), "fp16")
    assert told in str(error.value)


def test_a_json_that_is_not_there_or_not_json_is_named(tmp_path):
    with pytest.raises(UsageError, match="ds_fp32.json"):
        deepspeed.read("ds_fp64.json", "fp32")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UsageError, match="not readable as JSON"):
        deepspeed.read(str(tmp_path / "bad.json"), "fp32")


def test_batches_are_worked_out_and_clipping_is_off_unless_asked():
    resolved = deepspeed.resolve({}, batch_size=16, batch_per_gpu=2, world_size=4)
    assert resolved["train_batch_size"] == 16
    assert resolved["train_micro_batch_size_per_gpu"] == 2
    assert resolved["gradient_accumulation_steps"] == 2
    assert resolved["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("batch", "per_gpu", "ranks", "told"), [(5, None, 2, "nearest that does: 4"), (12, 5, 2, "nearest that does: 10")]
)
def test_a_batch_that_does_not_divide_is_told_the_nearest_that_does(batch, per_gpu, ranks, told):
    with pytest.raises(UsageError) as error:
        deepspeed.resolve({}, batch_size=batch, batch_per_gpu=per_gpu, world_size=ranks)
    assert told in str(error.value)


def test_settings_may_stand_on_both_sides_of_an_option():
    command = compose.parse("train_gan", None, ["variant=sn", "--deepspeed_config", "ds_fp32.json", "train.seed=3"])
    assert command.config.variant.name == "sn" and command.config.train.seed == 3
    assert command.deepspeed_config == "ds_fp32.json" and command.overrides == ("variant=sn", "train.seed=3")
