"""A run directory answers what its files say, at every point of its life, and names a damaged one."""

import dataclasses
import json

import pytest

from vesselgan.config import compose
from vesselgan.core.errors import CheckpointError, DataError, UsageError
from vesselgan.formats.run_changes import config_changes, engine_changes
from vesselgan.formats.run_dir import RunDir


def test_a_run_that_never_started_is_empty(tmp_path):
    run = RunDir(tmp_path / "run")
    assert not run.exists() and not run.has_begun()
    assert (run.finished(), run.requeue(), run.architecture(), run.silent_s(), run.checkpoint_age_s()) == (None,) * 5
    assert run.sessions() == run.metrics() == run.checkpoints() == [] and run.provenance() == {}
    assert run.settings() == ({}, "") and run.trained_on() is None


def test_a_run_answers_what_was_written(tmp_path):
    run, config = RunDir(str(tmp_path / "run")), compose.compose("train_gan", [])
    inputs = {"gan/train": "ab" * 32}
    settings = {"critic": {"fp16": {"enabled": False}}}
    assert run.load_or_init("train_gan", config, settings, inputs=inputs, provenance={"time": 0}) == []
    run.record_session(config, settings, [], {"step": 0, "ranks": 1, "inputs": inputs}, {})
    assert run.exists() and run.has_begun() and run.config("train_gan") == config
    assert run.trained_on() == inputs["gan/train"] and len(run.sessions()) == 1
    assert not run.is_finished(10, [])
    run.mark_finished({"steps": 10})
    assert run.is_finished(10, []) and run.finished() == {"steps": 10}
    with pytest.raises(CheckpointError, match="deepspeed.critic.fp16"):
        run.load_or_init("train_gan", config, {"critic": {"fp16": {}}}, inputs=inputs, provenance={})
    with pytest.raises(UsageError):
        run.config("train_unet")


def test_what_was_learned_from_is_never_forgotten(tmp_path):
    run, config = RunDir(tmp_path / "run"), compose.compose("train_gan", ["allow_config_change=[content]"])
    before, now, earlier = ({"gan/train": 32 * text} for text in ("aa", "bb", "cc"))
    weights_from = {"checkpoint": "x", "learned_from": [earlier["gan/train"], "unknown"]}
    for inputs, origin in ((before, weights_from), (now, None)):
        changes = run.load_or_init("train_gan", config, {}, inputs=inputs, provenance={})
        run.record_session(config, {}, changes, {"step": 0, "inputs": inputs, "weights_from": origin}, {})
    assert run.trained_on() == now["gan/train"]
    assert run.learned_from() == {*before.values(), *now.values(), *earlier.values(), "unknown"}


@pytest.mark.parametrize(("variant", "group"), [("dpgan", "dp"), ("flow", "flow")])
def test_a_group_switched_off_is_a_change(variant, group):
    """Its settings are then in one of the two alone, which is not the same as null in both."""
    before = compose.compose("train_gan", [f"variant={variant}"])
    after = dataclasses.replace(before, variant=dataclasses.replace(before.variant, **{group: None}))
    settings = {f"variant.{group}.{field.name}" for field in dataclasses.fields(getattr(before.variant, group))}
    for changes in (config_changes(before, after), config_changes(after, before)):
        assert {change.key for change in changes} == settings | {f"variant.{group}"}
    assert [change.key for change in engine_changes("critic", {"fp16": None}, {})] == ["deepspeed.critic.fp16"]


def test_a_later_entry_of_a_step_counts(tmp_path):
    lines = [{"step": 20, "a": 1}, {"step": 10, "a": 2}, {"step": 20, "a": 3}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 30, "a')
    assert RunDir(tmp_path).metrics() == [lines[1], lines[2]]
    assert RunDir(tmp_path).metrics(tail_bytes=40) == [lines[2]]


@pytest.mark.parametrize("name", ["provenance.json", "finished.json", "requeue", "architecture.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_text("{")
    run = RunDir(tmp_path)
    with pytest.raises(DataError, match=name):
        run.provenance(), run.finished(), run.requeue(), run.architecture()


def test_settings_are_checked_when_read(tmp_path):
    config = compose.compose("train_gan", [])
    config.data.name = "../../up"
    (tmp_path / "config.yaml").write_text(compose.to_yaml(config))
    with pytest.raises(UsageError, match="data.name"):
        RunDir(tmp_path).config("train_gan")
