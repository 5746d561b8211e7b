"""--help: every setting with its default, its choices and the sentence of the schema, at the terminal's width."""

import re

import pytest

from vesselgan.config import compose, help, overrides, schema
from vesselgan.core.errors import UsageError


@pytest.mark.parametrize("command", overrides.COMMANDS)
def test_every_setting_stands_in_the_help(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = help.settings_help(command)
    entries = dict(re.findall(r"\n  ([\w.]+)(?==|  \()((?:.*(?:\n {6}.*)*))", text))
    for key in overrides.keys_of(overrides.COMMANDS[command]):
        sentence = entries[key].split(")\n", 1)[1:]
        assert sentence and sentence[0].strip(), f"{key} has no sentence in the schema"
    for group, choices in overrides.groups_of(command).items():
        choices = overrides.presets_of(command) if group == "preset" else choices
        assert all(choice in text for choice in choices), group
    assert max(len(line) for line in text.splitlines() if " " in line.strip()) <= 60


def test_defaults_are_those_that_hydra_composes():
    config = compose.flat(compose.compose("train_gan", []))
    defaults = help.defaults_of("train_gan")
    settled = {key: value for key, value in defaults.items() if key in config and "${" not in str(value)}
    assert settled == {key: config[key] for key in settled} and len(settled) > 40


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train_gan", ["variant=flow_label", "preset=demo_flow", "train.max_steps=7"]),
        ("check", ["data=pairs", "data.name=mine"]),
        ("check", ["preset=other"]),
    ],
)
def test_values_are_those_of_what_is_typed(command, words):
    config, shown = compose.flat(compose.compose(command, words)), help.defaults_of(command, words)
    settled = {key: value for key, value in shown.items() if key in config and "${" not in str(value)}
    assert settled == {key: config[key] for key in settled} and len(settled) > 8


def test_a_group_shows_itself_and_what_lies_in_it():
    text = help.settings_help("train_gan", "variant")
    assert "variant.precision=fp16  (one of fp32, fp16, bf16)" in text and "optimizer keeps" in text
    assert "variant.dp.clip_norm" in text and "train.epochs" not in text
    with pytest.raises(UsageError, match="variant.dp"):
        help.settings_help("train_gan", "varaint")


def test_a_sentence_is_inherited_with_its_field():
    docs = help.field_docs(schema.TrainingRuntime)
    assert "exit 6" in docs["device"] and "cuDNN" in docs["deterministic"]


def test_help_offers_the_presets_that_fit():
    text = help.settings_help("check")
    assert "preset=preprocessed" in text and "preset=demo" not in text
    assert "Minutes on two cores" in help.settings_help("train_gan")
