"""Overrides, presets and their errors, without a launcher."""

import functools
import re

import pytest

from vesselgan.config import checks, compose, deepspeed, overrides
from vesselgan.core.errors import UsageError

NEEDED = {"generate": ["run=x"], "segment": ["run=x", "out=y"], "evaluate": ["name=x", "out=y"]}
NEEDED |= {"status": ["run=x"], "audit": ["out=y"]}


@pytest.mark.parametrize("command", overrides.COMMANDS)
def test_every_command_composes_from_its_file(command):
    config = compose.compose(command, NEEDED.get(command, []))
    assert isinstance(config, overrides.COMMANDS[command])


WITHOUT_PRESET = ("generate", "plan", "demo", "benchmark", "status", "doctor")
WITH_PRESET = [command for command in overrides.COMMANDS if command not in WITHOUT_PRESET]


NIFTI_COMMANDS = ("check", "preprocess", "build_shards", "make_phantom")
WITHOUT_DEMO = {"segment", "evaluate", "audit", "release", "report", *NIFTI_COMMANDS}


@pytest.mark.parametrize("command", WITH_PRESET)
@pytest.mark.parametrize("preset", overrides.groups()["preset"])
def test_a_preset_fits_or_is_refused(command, preset):
    words = [*NEEDED.get(command, []), f"preset={preset}"]
    if command in {
        "demo": WITHOUT_DEMO,
        "demo_flow": WITHOUT_DEMO,
        "demo_gan_label": WITHOUT_DEMO,
        "hours": WITHOUT_DEMO,
        "preprocessed": {*WITH_PRESET} - {*NIFTI_COMMANDS},
    }.get(preset, set()):
        with pytest.raises(UsageError, match=f"preset={preset}: holds nothing that {command} reads"):
            compose.compose(command, words)
    else:
        compose.compose(command, words)


SYNTHETIC = ["data.source=synthetic", "synthetic=x"]


@pytest.mark.parametrize(
    ("command", "words", "ignored", "remedy"),
    [
        ("segment", ["input=x"], ["data=phantom"], "input=null"),
        ("segment", ["input=x"], ["split=train"], "input=null"),
        ("train_unet", [], ["synthetic=x"], "data.source=synthetic"),
        ("train_unet", [], ["data.label_threshold=0.2"], "data.source=synthetic"),
        ("train_unet", [*SYNTHETIC, "unet.num_workers=2"], ["data.cache_gib=1"], "num_workers=0"),
        ("train_gan", ["preset=demo"], ["train.epochs=3"], "train.max_steps=null"),
        ("train_gan", ["variant=dpgan"], ["variant.penalty_reduction=batch"], "variant.penalty_weight"),
        ("evaluate", ["evaluate=threshold"], ["predictions=x"], "evaluate=segmentation"),
        ("evaluate", ["evaluate=image"], ["split=validation"], "evaluate=segmentation or threshold"),
        ("evaluate", ["evaluate=comparison"], ["data=phantom"], "evaluate=segmentation"),
        ("evaluate", [], ["image.num_seeds=2"], "evaluate=image"),
        ("audit", ["synthetic=[x]"], ["checkpoint=step_1"], "run"),
        ("release", ["withdraw=x"], ["name=a"], "withdraw=null"),
        ("study", [], ["sweep.batch_sizes=[4]"], "study=sweep"),
        ("study", ["study=sweep"], ["test_cohorts=[x]"], "study=data_sources"),
        ("study", ["study=sweep"], ["sweep.variant=sn"], "sweep.learning_rates"),
        ("plan", [], ["num_patients=3"], "a private variant"),
        ("preprocess", ["preprocess.bias=false"], ["preprocess.bias_shrink=2"], "preprocess.bias=true"),
        ("build_shards", ["data.prepare.split.csv=x"], ["data.prepare.split.seed=1"], "data.prepare.split.csv=null"),
        ("check", [], ["data.prepare.key_file=x"], "data.prepare.pseudonymise=true"),
        ("benchmark", ["target=metrics"], ["variant=sn_mp"], "target=acceptance"),
    ],
)
def test_a_typed_setting_counts_or_is_refused(command, words, ignored, remedy):
    words = [*NEEDED.get(command, []), *words]
    with pytest.raises(UsageError, match="would change nothing") as refusal:
        compose.compose(command, [*words, *ignored])
    assert ignored[0] in str(refusal.value) and remedy in str(refusal.value)
    assert compose.readable(command, (*ignored, "nothing=x", "out=x"), tuple(words)) in ((), ("out=x",))


@pytest.mark.parametrize(
    ("command", "key"),
    [("segment", "data.root=x"), ("train_gan", "data.root=x"), ("make_phantom", "data.prepare.seed=1")],
)
def test_a_setting_of_others_names_its_readers(command, key):
    with pytest.raises(UsageError, match=f"{command} does not read `{key.split('=')[0]}`.*build_shards"):
        compose.compose(command, [*NEEDED.get(command, []), key])


@pytest.mark.parametrize("data", overrides.groups()["data"])
def test_every_cohort_composes_once_its_folder_is_named(data):
    config = compose.compose("build_shards", [f"data={data}", "data.root=/somewhere", "work_dir=elsewhere"])
    assert config.data.cohort_dir == f"elsewhere/{config.data.name}"


@pytest.mark.parametrize("variant", overrides.groups()["variant"])
def test_variant_and_json_agree_or_say_how(variant):
    composed = compose.compose("train_gan", [f"variant={variant}"]).variant
    words = {"command": "train", "key": "variant.precision"}
    for name in sorted(path.name for path in (overrides.config_dir() / "deepspeed").glob("*.json")):
        _, settings = deepspeed.read(name, composed.precision)
        stated = deepspeed.stated_precision(settings)
        assert name == f"ds_{stated}.json"
        if stated == composed.precision:
            deepspeed.complete(name, settings, stated, **words)
        elif composed.dp is not None:
            with pytest.raises(UsageError, match="precision=fp32"):
                compose.compose("train_gan", [f"variant={variant}", f"variant.precision={stated}"])
        else:
            with pytest.raises(UsageError, match=f"train --deepspeed_config {name} variant.precision={stated}"):
                deepspeed.complete(name, settings, composed.precision, **words)
            # The command it prints does agree.
            composed_so = compose.compose("train_gan", [f"variant={variant}", f"variant.precision={stated}"])
            deepspeed.complete(name, settings, composed_so.variant.precision, **words)


def test_the_default_is_the_papers_best_model():
    config = compose.compose("train_gan", [])
    assert (config.variant.name, config.variant.precision, config.data.name) == ("c_sn_mp", "fp16", "phantom")
    assert (config.train.batch_size, config.train.epochs, config.variant.betas) == (4, 100, [0.0, 0.9])
    assert (config.variant.learning_rate_critic, config.variant.learning_rate_generator) == (4e-4, 2e-4)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("variant.widht=64", "`variant.width`"),
        ("trian.batch_size=2", "`train.batch_size`"),
        ("variant=sn_pm", "variant=sn_mp"),
        ("train.batch_size=-4", "train.batch_size=-4"),
        ("variant.learning_rate_critic=0", "variant.learning_rate_critic"),
        ("variant.precision=fp8", "fp32, fp16, bf16"),
        ("train.batch_size=four", "train.batch_size"),
        ("data.label_threshold=1.5", "data.label_threshold"),
        ("data.label_threshold=0", "data.label_threshold"),
        ("variant.label_threshold=0", "variant.label_threshold"),
        ("data.prepare.patch_shape=[64,64,32]", "`data."),
        ("data.cohort_dir=/a=b", "quotes"),
        ("train.epochs=", "train.epochs"),
        ("work_dir=", "work_dir is empty"),
        ("allow_config_change=['']", "allow_config_change is empty"),
        ("variant=sn,gp", "variant=[sn,gp]"),
        ("variant.dp.unit=patient", "variant.dp is null: choose a variant=NAME"),
    ],
)
def test_a_wrong_override_names_what_is_right(override, named):
    with pytest.raises(UsageError, match=re.escape(named)) as error:
        compose.compose("train_gan", [override])
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "${oc.decode:1e9}", "${data.name}${data.name}", "${${work_dir}}", "${", "a${oc.env:X}b"]
)
def test_no_expression_comes_from_outside(text, tmp_path, monkeypatch):
    with pytest.raises(UsageError):
        compose.compose("train_gan", [f'data.cohort_dir="{text}"'])
    config = compose.compose("train_gan", [])
    (tmp_path / "config.yaml").write_text(compose.to_yaml(config).replace("work_dir: work", f"work_dir: '{text}'"))
    with pytest.raises(UsageError, match="plain values"):
        compose.from_yaml("train_gan", tmp_path / "config.yaml")


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "x${oc.decode:1}", "${a${oc.env:X}}", "${"])
def test_configs_may_name_settings_alone(text):
    with pytest.raises(UsageError):
        overrides.check_expressions({"data": [{"root": text}]})
    overrides.check_expressions({"root": "${work_dir}/${.name}", "names": ["${..data.name}", "$TMPDIR"]})


def test_a_runs_settings_hold_no_alias(tmp_path):
    laughs = ["a0: &a0 [ha, ha]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    (tmp_path / "config.yaml").write_text("\n".join(laughs))
    with pytest.raises(UsageError, match="alias"):
        compose.from_yaml("train_gan", tmp_path / "config.yaml")


def test_what_overrides_may_say():
    with pytest.raises(UsageError, match="run=VALUE"):
        compose.compose("generate", [])
    assert compose.compose("train_gan", ['data.cohort_dir="/a=b"']).data.cohort_dir == "/a=b"


@pytest.mark.parametrize("text", ["2024_11_26", "1e3", "12e4567", "3.10", "+5", "007", "0x1F", "true", "NaN", "-.5"])
def test_a_text_stays_what_was_typed(text, tmp_path):
    config = compose.compose("generate", [f"run={text}", f"out= {text}", f"checkpoint={text}"])
    assert (config.run, config.out, config.checkpoint) == (text, text, text)
    (tmp_path / "config.yaml").write_text(compose.to_yaml(config))
    assert compose.from_yaml("generate", tmp_path / "config.yaml") == config
    runs = compose.compose("report", [f"runs=[{text},a, {text}]", "synthetic=['1,2',b]", f"data.name=a{text[-1]}"]).runs
    assert runs == [text, "a", text]
    assert compose.parse("status", None, [text]).config.run == text


@pytest.mark.parametrize("words", [["a", "b"], ["a", "run=b"]])
def test_one_run_is_read_at_a_time(words):
    with pytest.raises(UsageError, match=" and ".join(words)):
        compose.parse("status", None, words)


def test_a_folder_keeps_its_letters():
    assert compose.parse("train_gan", None, ["--run_dir", "/Köln/läuft"]).config.run_dir == "/Köln/läuft"
    assert compose.parse("status", None, ["/Köln"]).config.run == "/Köln"


def test_a_number_for_a_text_is_refused():
    with pytest.raises(UsageError, match="data.layout.label"):
        compose.compose("check", ["data.layout={image: a, label: 3.10}"])
    with pytest.raises(UsageError, match="runs"):
        compose.compose("report", ["runs=['a,b',3.10]"])
    assert compose.compose("generate", ["run=a", "out=null"]).out is None


def test_the_written_configuration_reads_back_equal(tmp_path):
    config = compose.compose("train_gan", ["variant=gp", "train.max_steps=7", "work_dir=/w"])
    (tmp_path / "config.yaml").write_text(compose.to_yaml(config))
    assert compose.from_yaml("train_gan", tmp_path / "config.yaml") == config
    (tmp_path / "config.yaml").write_text(compose.to_yaml(config) + "surprise: 1\n")
    with pytest.raises(UsageError, match="surprise"):
        compose.from_yaml("train_gan", tmp_path / "config.yaml")


def test_the_hash_follows_science_not_place():
    base = compose.config_hash(compose.compose("train_gan", []))
    for override in ("train.seed=1", "data.name=another"):
        assert compose.config_hash(compose.compose("train_gan", [override])) != base
    for override in ("runtime.device=cpu", "run_dir=/elsewhere", "data.cohort_dir=/there", "work_dir=here"):
        assert compose.config_hash(compose.compose("train_gan", [override])) == base


def test_settings_stand_on_both_sides_of_options():
    command = compose.parse("train_gan", None, ["variant=sn", "--deepspeed_config", "ds_fp32.json", "train.seed=3"])
    assert command.config.variant.name == "sn" and command.config.train.seed == 3
    assert command.deepspeed_config == "ds_fp32.json" and command.overrides == ("variant=sn", "train.seed=3")


def test_a_group_of_other_commands_is_no_setting() -> None:
    with pytest.raises(UsageError, match="study does not read `variant`"):
        compose.compose("study", ["variant=sn"])


@pytest.mark.parametrize("command", overrides.COMMANDS)
def test_every_number_is_finite_and_bounded(command):
    config = compose.compose(command, NEEDED.get(command, []))
    for key, kind in overrides.keys_of(overrides.COMMANDS[command]).items():
        *groups, name = key.split(".")
        group = functools.reduce(lambda at, group: at and getattr(at, group), groups, config)
        if group is None or not kind.startswith("float"):
            continue
        value = getattr(group, name)
        for number in (float("inf"), float("-inf"), float("nan"), 1e-300, 1e300):
            setattr(group, name, number)
            with pytest.raises(UsageError, match=re.escape(key)):
                checks.check(config)
        setattr(group, name, value)


def test_a_count_has_64_bits():
    with pytest.raises(UsageError, match=r"train\.epochs"):
        compose.compose("train_gan", [f"train.epochs={10**30}"])


@pytest.mark.parametrize("word", ["label_values=[0,1]", "label_values=[]", "label_binarize_threshold=0"])
def test_background_is_no_vessel(word):
    with pytest.raises(UsageError, match=word.split("=")[0]):
        compose.compose("check", ["data=phantom", f"data.prepare.{word}"])
