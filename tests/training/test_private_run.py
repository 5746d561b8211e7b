"""A private variant through the entry point: its account, its key, its limits, and the same bytes after a resume."""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vesselgan.config.compose import compose
from vesselgan.core.errors import CheckpointError, PrivacyError, ResourceError
from vesselgan.formats.shards import ShardSet, write_manifest, write_shard
from vesselgan.privacy.run import KEY_FILE, _secret_key, plan_private_run
from vesselgan.runtime.checkpoint import read_weights

TrainHere = Callable[..., dict | None]
DPGAN = ["variant=dpgan", "variant.dp.delta=1e-5", "train.checkpoint_every=2"]
SEEDED = [*DPGAN, "variant.dp.noise_seed=5"]


def read_state(run_dir: Path) -> tuple[Path, dict]:
    """The newest checkpoint's state.json and what is in it."""
    path = run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip() / "state.json"
    return path, json.loads(path.read_text())


def write_state(path: Path, report: dict) -> None:
    """Put a changed state back, its manifest telling the truth about it."""
    path.write_text(json.dumps(report))
    manifest = path.with_name("manifest.json")
    entries = json.loads(manifest.read_text())
    entry = entries["state.json"]
    entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    entry["bytes"] = path.stat().st_size
    manifest.write_text(json.dumps(entries))


def test_a_run_resumes_only_with_its_account(train_here: TrainHere, tmp_path: Path) -> None:
    whole = train_here(tmp_path / "whole", *SEEDED, "train.max_steps=4")
    assert train_here(tmp_path / "run", *SEEDED, "train.max_steps=2") is not None
    (tmp_path / "run" / "finished.json").unlink()
    path, report = read_state(tmp_path / "run")
    on = [*SEEDED, "train.max_steps=4", "allow_config_change=[train.max_steps,variant]"]
    account = report["state"].pop("privacy")
    write_state(path, report)
    with pytest.raises(CheckpointError, match="accountant"):
        train_here(tmp_path / "run", *on)
    report["state"]["privacy"] = account | {"steps": account["steps"] - 5}
    write_state(path, report)
    with pytest.raises(CheckpointError, match="5 steps.* 10"):
        train_here(tmp_path / "run", *on)
    report["state"]["privacy"] = account
    write_state(path, report)
    with pytest.raises(CheckpointError, match=r"noise_multiplier: 0\.5 -> 0\.4"):
        train_here(tmp_path / "run", *on, "variant.dp.noise_multiplier=0.4")
    with pytest.raises(CheckpointError, match="account"):
        train_here(tmp_path / "other", *SEEDED, "train.max_steps=1", f"init_from={tmp_path / 'run'}")
    resumed = train_here(tmp_path / "run", *on)
    assert resumed["privacy"] == whole["privacy"] and whole["privacy"]["steps"] == 20
    for network in ("critic", "generator"):
        ours, theirs = (read_weights(tmp_path / name, network)[0] for name in ("whole", "run"))
        assert all(ours[name].equal(theirs[name]) for name in ours), network
    critic, _ = read_weights(tmp_path / "whole", "critic")
    assert max(float(value.abs().max()) for value in critic.values()) <= 0.01  # the weights' clip
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert "per patch: epsilon" in log and "per patient: epsilon" in log


def test_a_private_run_stays_private(train_here: TrainHere, tmp_path: Path) -> None:
    train_here(tmp_path / "run", *DPGAN, "train.max_steps=1")
    (tmp_path / "run" / "finished.json").unlink()
    on = ["variant=dpgan", "variant.dp=null", "train.max_steps=2"]
    with pytest.raises(CheckpointError, match=r"variant\.dp\.unit"):
        train_here(tmp_path / "run", *on, "allow_config_change=[train]")
    with pytest.raises(PrivacyError, match=r"variant\.dp"):
        train_here(tmp_path / "run", *on, "allow_config_change=[train,variant]")
    assert not (tmp_path / "run" / "finished.json").exists()


def test_a_secret_key_is_the_runs_own(train_here: TrainHere, tmp_path: Path) -> None:
    report = train_here(tmp_path / "run", *DPGAN, "train.max_steps=1")
    assert report["privacy"]["is_key_secret"]
    key = tmp_path / "run" / KEY_FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    drawn = _secret_key(tmp_path / "other")
    assert drawn != int(key.read_text(), 16) and _secret_key(tmp_path / "other") == drawn
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path != key]
    assert not any(key.read_bytes().strip() in path.read_bytes() for path in written)
    (tmp_path / "run" / "finished.json").unlink()
    key.unlink()
    with pytest.raises(CheckpointError, match="noise_key"):
        train_here(tmp_path / "run", *DPGAN, "train.max_steps=2", "allow_config_change=[train.max_steps]")


@pytest.mark.parametrize("content", ["", "12ab\n", "not a key of a run, by any means\n"])
def test_a_damaged_key_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="noise_key") as raised:
        _secret_key(tmp_path)
    assert raised.value.exit_code == 4


def test_a_key_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes, replace = [], os.replace

    def spying(partial: Path, path: Path) -> None:
        modes.append(stat.S_IMODE(partial.stat().st_mode))
        replace(partial, path)

    monkeypatch.setattr(os, "replace", spying)
    (tmp_path / f"{KEY_FILE}.partial").touch(0o644)  # of a start that was killed
    _secret_key(tmp_path)
    assert modes == [0o600] and stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_going_back_never_makes_a_release_again_otherwise(train_here: TrainHere, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*SEEDED, "train.checkpoint_every=1", "train.max_steps=2", "checkpoint=step_00000001"]
    first = train_here(run, *words[:-1])
    weights, _ = read_weights(run, "critic")
    (run / "finished.json").unlink()
    faster = ["variant.learning_rate_critic=2e-4", "allow_config_change=[variant]"]
    with pytest.raises(PrivacyError, match="10 releases"):
        train_here(run, *words, *faster)
    assert (run / "checkpoints" / "step_00000002").is_dir()  # nothing was set aside for it
    again = train_here(run, *words)
    assert again["privacy"] == first["privacy"]
    assert all(value.equal(weights[name]) for name, value in read_weights(run, "critic")[0].items())


@pytest.mark.usefixtures("one_thread")
def test_other_threads_repeat_no_release(train_here: TrainHere, tmp_path: Path) -> None:
    words = [*SEEDED, "train.checkpoint_every=1", "train.max_steps=2"]
    train_here(tmp_path / "run", *words)
    (tmp_path / "run" / "finished.json").unlink()
    torch.set_num_threads(2)
    with pytest.raises(PrivacyError, match="threads"):
        train_here(tmp_path / "run", *words, "checkpoint=step_00000001")


@pytest.fixture
def train_unsaved(train_here: TrainHere, monkeypatch: pytest.MonkeyPatch) -> TrainHere:
    """Train until the first checkpoint, which the disk has no room for."""

    def full(*_: object, **__: object) -> None:
        raise ResourceError("the disk is full")

    def run(run_dir: Path, *words: str) -> None:
        with monkeypatch.context() as patched, pytest.raises(ResourceError):
            patched.setattr("vesselgan.runtime.checkpoint.save", full)
            train_here(run_dir, *words)

    return run


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (["variant.dp.noise_multiplier=null", "variant.dp.target_epsilon=8"], "noise_multiplier"),
        (["variant.final_learning_rate=0.1"], "decay_steps"),
    ],
)
def test_a_runs_length_changes_no_release(
    train_here: TrainHere, train_unsaved: TrainHere, tmp_path: Path, settings: list[str], field: str
) -> None:
    words = [*SEEDED, *settings]
    train_unsaved(tmp_path / "run", *words, "train.max_steps=1")
    with pytest.raises(PrivacyError, match=field) as raised:
        train_here(tmp_path / "run", *words, "train.max_steps=3", "allow_config_change=[train]")
    assert raised.value.exit_code == 7


def test_releases_are_counted_without_a_checkpoint(
    train_here: TrainHere, train_unsaved: TrainHere, tmp_path: Path
) -> None:
    words = [*SEEDED, "train.max_steps=1"]
    train_unsaved(tmp_path / "run", *words)
    assert json.loads((tmp_path / "run" / "releases.json").read_text())["num_releases"] == 5
    with pytest.raises(PrivacyError, match="learning_rate_critic") as raised:
        train_here(tmp_path / "run", *words, "variant.learning_rate_critic=2e-4", "allow_config_change=[variant]")
    assert raised.value.exit_code == 7


def test_a_target_per_patient_ends_the_run(train_here: TrainHere, tmp_path: Path) -> None:
    words = ["variant.dp.unit=patient", "variant.dp.target_epsilon=8", "variant.dp.noise_multiplier=2"]
    report = train_here(tmp_path / "run", *SEEDED, *words, "train.max_steps=40")
    privacy = report["privacy"]
    # Two of three patients in a step on average, whose patches are eight each.
    assert (privacy["unit"], privacy["num_units"], privacy["sample_rate"]) == ("patient", 3, 2 / 3)
    assert privacy["epsilon"] <= 8 and 0 < report["steps"] < 40 and privacy["steps"] == 5 * report["steps"]
    state = read_state(tmp_path / "run")[1]["state"]
    assert state["step"] == report["steps"] and state["privacy"] == privacy


def test_a_large_delta_is_refused(train_here: TrainHere, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        train_here(tmp_path / "run", "variant=dpgan", "train.max_steps=1")
    assert not (tmp_path / "run").exists()


def test_visits_of_one_patient_are_one_unit(train_here: TrainHere, work_dir: Path, tmp_path: Path) -> None:
    shards = ShardSet(work_dir / "phantom" / "shards" / "gan" / "train")
    names = {"sub-0": "anon-a", "sub-1": "anon-b", "sub-2": "anon-c"}
    records = [shards[i] for i in range(len(shards))]
    visits = [dataclasses.replace(record, subject=names[record.subject]) for record in records]
    folder = tmp_path / "visits" / "shards" / "gan" / "train"
    folder.mkdir(parents=True)
    shape = shards.patch_shape
    shard = write_shard(folder / "shard_0000.h5", visits, patch_shape=shape, origin="real")

    def say(patients: dict[str, str]) -> ShardSet:
        place = {key: shards.subjects["sub-0"][key] for key in ("spacing_mm", "affine")}
        subjects = {name: place | ({"patient": patients[name]} if patients else {}) for name in names.values()}
        write_manifest(
            folder, shards=[shard], patch_shape=shape, origin="real", subjects=subjects,
            spacing_mm=shards.spacing_mm, percentiles=(0.0, 99.99), extra={},
        )  # fmt: skip
        return ShardSet(folder)

    words = [
        *SEEDED,
        f"data.cohort_dir={tmp_path / 'visits'}",
        "variant.dp.noise_multiplier=2",
        "train.batch_size=1",
    ]
    by_patient = [*words, "variant.dp.unit=patient", "train.max_steps=1"]
    say({})
    with pytest.raises(PrivacyError, match="anon-a, anon-b, anon-c") as raised:
        train_here(tmp_path / "run", *by_patient)
    assert raised.value.exit_code == 7 and not (tmp_path / "run").exists()
    named = say({"anon-a": "anon-p", "anon-b": "anon-p", "anon-c": "anon-q"})
    private = plan_private_run(compose("train_gan", by_patient), named, 1)
    assert len(private.units) == private.mechanism.num_units == 2 and private.mechanism.patches_per_patient == 16
