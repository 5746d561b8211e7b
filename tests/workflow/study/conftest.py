"""A study on made-up runs: commands are not started, what they would leave is written instead."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from vesselgan.config.compose import compose, to_yaml
from vesselgan.config.schema import Study
from vesselgan.core.atomic_io import sha256_of
from vesselgan.formats.cohort import Cohort, Subject
from vesselgan.formats.shards import ShardInfo, content_hash, write_manifest
from vesselgan.workflow import stage as stages
from vesselgan.workflow.stage import Stage
from vesselgan.workflow.study import steps

SETTINGS = ["preset=demo", "unet.max_steps=20", "unet.validate_every=10"]


@functools.cache
def settings_of(variant: str) -> str:
    return to_yaml(compose("train_gan", [f"variant={variant}"]))


def write_gan(folder: Path, variant: str, trained_on: str) -> Path:
    """A run directory as far as a study looks at it."""
    write_step(folder, 10)
    (folder / "config.yaml").write_text(settings_of(variant))
    (folder / "finished.json").write_text("{}")
    (folder / "provenance.json").write_text(json.dumps({"inputs": {"gan/train": trained_on}}))
    return folder


def write_step(run_dir: Path, step: int, *, weights: str = "") -> None:
    """A checkpoint as far as a study looks at it; `weights` stands for its content."""
    folder = run_dir / f"checkpoints/step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"step": step, "weights": weights}))
    entry = {"sha256": sha256_of(folder / "state.json"), "bytes": (folder / "state.json").stat().st_size}
    (folder / "manifest.json").write_text(json.dumps({"state.json": entry}))


def write_made_up_cohort(folder: Path, name: str, splits: dict[str, str], *, seed: int = 0) -> Path:
    """cohort.json with an image hash for each subject that depends on `seed` and its place."""
    subjects = {
        subject: Subject(split, folder / f"{subject}.nii.gz", folder / f"{subject}-label.nii.gz", None, (4, 4, 4),
                         (1.0, 1.0, 1.0), (0.0, 1.0), 0, f"{seed + number:064x}", None)
        for number, (subject, split) in enumerate(splits.items())
    }  # fmt: skip
    Cohort(name, (0.0, 99.9), subjects).write(folder)
    for name in ("gan/train", "unet/train", "unet/validation"):
        write_made_up_shards(folder / "shards" / name, seed)
    return folder


def write_made_up_shards(folder: Path, seed: int) -> None:
    write_manifest(
        folder, shards=[ShardInfo("made_up.h5", 1, 1, f"{seed:064x}")], patch_shape=(4, 4, 4), origin="real",
        subjects={}, spacing_mm=(1.0, 1.0, 1.0), percentiles=(0.0, 99.9), extra={},
    )  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Study]:
    """The settings of a study of two GANs, an own cohort and another one; overrides change them."""
    own = write_made_up_cohort(
        tmp_path / "own", "own", {"a": "train", "b": "validation", "c": "test", "d": "test"}, seed=10
    )
    other = write_made_up_cohort(tmp_path / "other", "other", {"x": "test", "y": "test"}, seed=50)
    learned_from = content_hash(own / "shards/gan/train")
    runs = [write_gan(tmp_path / "runs" / variant, variant, learned_from) for variant in ("gp", "sn_mp")]
    fixed = [steps.override("runs", [str(run) for run in runs])]
    fixed += [steps.override("work_dir", tmp_path / "work"), steps.override("data.cohort_dir", own)]

    def make(*overrides: str) -> Study:
        cohorts = [] if "study=sweep" in overrides else [steps.override("test_cohorts", [str(other)])]
        return compose("study", [*SETTINGS, *fixed, *cohorts, *overrides])

    return make


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[Stage]:
    """The stages that would have been started, in order; their outputs are made up."""
    found: list[Stage] = []

    def pretend(home: Path, stage: Stage, label: str) -> bool:
        found.append(stage)
        leave_outputs(stage)
        return True

    monkeypatch.setattr(steps, "run_stage", pretend)
    return found


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that ran, walked and marked as ever; their commands are not started."""
    stages_met: list[Stage] = []
    names: list[str] = []

    def run_stage(home: Path, stage: Stage, label: str) -> bool:
        stages_met.append(stage)
        return stages.run_stage(home, stage, label)

    def pretend(lanes: Sequence[object], logs: object, **options: object) -> list[int]:
        stage = stages_met[-1]
        names.append(stage.name)
        leave_outputs(stage, made=len(stages_met))
        return [0] * len(lanes)

    monkeypatch.setattr(steps, "run_stage", run_stage)
    monkeypatch.setattr(stages.processes, "run_commands", pretend)
    return names


def leave_outputs(stage: Stage, *, made: int = 0) -> None:
    """made: what sets the outputs of one run apart from those of another."""
    for output in stage.outputs:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(made_up(stage) | {"made": made}))
    if stage.name.startswith("gan-"):
        write_step(stage.outputs[0].parent, 20, weights=str(made))


def made_up(stage: Stage) -> dict:
    """What a stage's output says: for U-Nets a Dice that is best at a label threshold of 0.5 for gp, 0.3 for sn_mp."""
    if stage.name.startswith("generate-"):
        extra = {"run": stage.name.removeprefix("generate-"), "weights_sha256": "ab" * 32}
        shards = [{"file": "made_up.h5", "count": 1, "bytes": 1, "sha256": "0" * 64}]
        manifest = {"format": "vesselgan-shards", "format_version": 2, "made_by": "vesselgan", "origin": "synthetic"}
        manifest |= {"patch_shape": [4, 4, 4], "spacing_mm": [1, 1, 1], "percentiles": (0.0, 99.9), "count": 1}
        return manifest | {"subjects": {}, "shards": shards, "extra": extra}
    if stage.name.startswith("narrow-"):
        return {"format_version": 1, "narrowed": [0.3, 0.5]}
    wanted = 0.5 if "-gp" in stage.name else 0.3
    away = abs(float(stage.name.split("-at-")[1].split("-")[0]) - wanted) if "-at-" in stage.name else 0.0
    facts = {"validation_dice": float(np.round(0.9 - away, 3)), "validation_loss": -0.9, "steps": 20}
    return facts | {"best_checkpoint": "step_00000010"}


@pytest.fixture
def write_cohort_like(tmp_path: Path) -> Callable[..., Path]:
    """Another made-up cohort: its name, its subjects' splits, the seed of their hashes."""

    def write(name: str, splits: dict[str, str], *, seed: int) -> Path:
        return write_made_up_cohort(tmp_path / "more" / f"{name}-{seed}", name, splits, seed=seed)

    return write
