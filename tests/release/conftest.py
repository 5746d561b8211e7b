"""A cohort's training shards, a run that never learned, its synthetic patches and an audit's result of them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vesselgan.config import compose
from vesselgan.evaluation.audit import RULE
from vesselgan.evaluation.audit_samples import patients_hash
from vesselgan.formats.results import write_result
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import Record, ShardSet, content_hash
from vesselgan.models.flow import FlowGenerator
from vesselgan.models.variants import build_networks, init_networks
from vesselgan.release.run import release
from vesselgan.synthesis.generate import generate

from ..conftest import write_shards

PATCH, SPACING_MM = (32, 16, 16), (0.5, 0.5, 0.8)
HEAD = (128, 160, 48)
SUBJECTS = {"sub-MUE1967": "MUE1967", "sub-KOW1971": "KOW1971"}
"""Subject -> patient."""
ORIGIN_MM = (-88.125, -120.75, 34.5)
WORDS = {
    "sn": ["variant=sn", "variant.width=16"],
    "dpgan": ["variant=dpgan", "variant.width=16"],
    "flow": ["variant=flow", "variant.width=8"],
    "flow_label": ["variant=flow_label", "variant.width=8"],
    "gan_label": ["variant=gan_label", "variant.width=8"],
}
SEE_PATIENTS = ("flow", "flow_label", "gan_label")
ACCOUNT = {"epsilon": 3.25, "delta": 1e-5, "unit": "patient", "is_key_secret": True, "noise_multiplier": 1.5}
KINDS = ("noisy", "mirrored", "shifted", "all_three", "label_only")


def write_training(folder: Path, subjects: dict[str, str] = SUBJECTS, seed: int = 0) -> Path:
    """Two patches of each subject."""
    rng = np.random.default_rng(seed)
    names = list(subjects)
    records = [
        Record(
            rng.uniform(1, 254, PATCH).astype(np.float32), np.ones(PATCH, np.uint8), names[i % len(names)], (0, 0, 0),
            "grid", (0.0, 900.0), 0, None, np.ones(PATCH, np.uint8),
        )
        for i in range(2 * len(names))
    ]  # fmt: skip
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = ORIGIN_MM
    entries = {name: {"affine": affine.tolist(), "patient": patient} for name, patient in subjects.items()}
    return write_shards(folder, records, subjects=entries, spacing_mm=SPACING_MM)


def write_run(
    write_checkpoint: Callable[..., None], run_dir: Path, training: Path, kind: str, privacy: dict | None, seed: int
) -> Path:
    """A run directory with one checkpoint of networks that never learned."""
    config = compose.compose("train_gan", WORDS[kind])
    networks = build_networks(config.variant, PATCH)
    init_networks(networks, seed)
    files = {}
    for name, network in networks.items():
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
            if isinstance(network, FlowGenerator):
                network.patch_extent.copy_(torch.tensor(PATCH) / torch.tensor(HEAD))
        for file in (name, *(["generator_standing", "generator_ema"] if name == "generator" else [])):
            files[file] = network.state_dict()
    manifest = {"patch_shape": list(PATCH), "spacing_mm": list(SPACING_MM), "percentiles": (0.0, 99.99)}
    write_checkpoint(run_dir, config, files, manifest, **({} if privacy is None else {"privacy": privacy}))
    (run_dir / "provenance.json").write_text(json.dumps({"inputs": {"gan/train": content_hash(training)}}))
    words = [f"run={run_dir}", "num_patches=3", "batch_size=3", "runtime.device=cpu"]
    words += ["label_threshold=0.01"] if config.variant.condition is None else []
    generate(compose.compose("generate", words))
    return run_dir


def write_audit(path: Path, sets: list[Path], training: Path, changes: dict[str, Any] | None = None) -> Path:
    """A result of the audit; its statistics are not this folder's business."""
    count = {"synthetic": 3, "training": 4, "held_out": 4, "training_people": 2, "held_out_people": 2, "verbatim": 0}
    planted = [{"kind": kind, "share_found": 0.98, "power": {"0.01": 0.97, "0.001": 0.2}} for kind in KINDS]
    result = {
        "job": "audit",
        "name": "tiny",
        "verdict": "pass",
        "sentence": "nothing was found: three tests for copies were tried.",
        "count": count,
        "synthetic": [
            {**ShardSet(folder).manifest.extra, "count": 3, "verdict": "pass", "sentence": "nothing was found."}
            for folder in sets
        ],
        "network": None,
        "planted": planted,
        "resolution": {"patients_pointed_at": 0, "patients_at_most": 0.26},
        "rule": RULE,
        "override_privacy_gate": None,
        "inputs": {
            "synthetic shards": [content_hash(folder) for folder in sets],
            "training shards": content_hash(training),
            "training patients": patients_hash(ShardSet(training)),
        },
    }
    write_result(path, result | (changes or {}))
    return path


def attacked(run: Path, p: float = 0.4) -> dict[str, Any]:
    """What an audit says of the attack on the network that made a run's patches."""
    weights = ShardSet(RunDir(run).synthetic).manifest.extra["weights_sha256"]
    return {"kind": "flow", "run": run.name, "weights_sha256": weights, "p": p, "sentence": "it must not leave."}


class Work:
    """A work folder: shards of `mine`, runs, audits; `release` is the command."""

    def __init__(self, path: Path, made: Path, write_checkpoint: Callable[..., None]) -> None:
        self.path, self.made, self.write_checkpoint = path, made, write_checkpoint
        self.training = write_training(path / "mine" / "shards" / "gan" / "train")

    def run(self, kind: str, name: str = "", privacy: dict[str, Any] | None = None, seed: int = 1) -> Path:
        """A copy of one that is made once; equal arguments give equal bytes."""
        digest = hashlib.sha256(repr((kind, privacy, seed)).encode()).hexdigest()[:8]
        made = self.made / digest / (name or kind)
        if not made.exists():
            write_run(self.write_checkpoint, made, self.training, kind, privacy, seed)
        return Path(shutil.copytree(made, self.path / "runs" / made.name))

    def audit(self, run: Path, changes: dict[str, Any] | None = None) -> Path:
        path = self.path / "results" / f"audit-{run.name}.json"
        return write_audit(path, [RunDir(run).synthetic], self.training, changes)

    def release(self, *words: str) -> Path | None:
        own = [f"work_dir={self.path}", "data.name=mine", f"data.cohort_dir={self.path / 'mine'}"]
        return release(compose.compose("release", [*own, *words]))


@pytest.fixture(scope="session")
def made_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def work(tmp_path: Path, made_runs: Path, write_checkpoint: Callable[..., None], one_thread: None) -> Work:
    return Work(tmp_path / "work", made_runs, write_checkpoint)


@pytest.fixture
def write_set() -> Callable[..., Path]:
    return write_training


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, made_runs: Path, write_checkpoint) -> Callable[[str], tuple[Work, Path]]:
    """(the work folder, its release) of a variant, made once; read, not changed."""
    kept: dict[str, tuple[Work, Path]] = {}

    def make(kind: str) -> tuple[Work, Path]:
        if kind not in kept:
            torch.set_num_threads(1)
            work = Work(tmp_path_factory.mktemp(kind) / "work", made_runs, write_checkpoint)
            run = work.run(kind, privacy=ACCOUNT if kind == "dpgan" else None)
            audit = work.audit(run, {"network": attacked(run)} if kind in SEE_PATIENTS else None)
            out = work.release("name=first", f"run={run}", f"audit={audit}", "license=CC-BY-4.0")
            assert out is not None
            kept[kind] = work, out
        return kept[kind]

    return make
