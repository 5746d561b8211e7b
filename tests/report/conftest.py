"""A tiny made-up road: shards of real and synthetic patches, a run directory, results."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vesselgan.formats.shards import Record
from vesselgan.report import figures
from vesselgan.report.runs import Run, read_run
from vesselgan.viz import plots

from ..conftest import write_shards

SHAPE = (16, 16, 16)
SPACING_MM = (0.5, 0.5, 0.8)


def make_patch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright bar, and the bar as label."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    y, z = rng.integers(3, 12, 2)
    label[:, y : y + 2, z : z + 2] = 1
    image = 60 + 8 * rng.normal(size=SHAPE) + 150 * label
    return np.clip(image, 0, 255).astype(np.float32), label


def write_patches(folder: Path, *, origin: str, subjects: list[str], patches: list[int]) -> None:
    """Shards whose record i is make_patch(patches[i]) of subjects[i % len(subjects)]."""
    records, kind = [], "vessel" if origin == "real" else "synthetic"
    for i, seed in enumerate(patches):
        image, label = make_patch(seed)
        score = None if origin == "real" else (0.8 * label).astype(np.float16)
        records.append(Record(image, label, subjects[i % len(subjects)], (0, 0, 0), kind, (0.0, 900.0), 0, score))
    percentiles = (0.0, 99.99) if origin == "real" else None
    write_shards(folder, records, spacing_mm=SPACING_MM, percentiles=percentiles)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Pictures of a quarter of the size, and no charts but for `drawn_charts`: few tests depend on them."""
    monkeypatch.setattr(figures, "SIDE", 64)
    monkeypatch.setattr(figures, "SIDE_3D", 64)
    if "drawn_charts" not in request.fixturenames:
        monkeypatch.setattr(plots, "draw", lambda title, size, paint: plots.Chart(title, size[0], "<svg></svg>", b""))


@pytest.fixture
def drawn_charts() -> None:
    """Charts are drawn, not left empty."""


@pytest.fixture
def write_set() -> Callable[..., None]:
    return write_patches


@pytest.fixture
def make_result() -> Callable[..., dict]:
    """result(name, dice=...) -> a segmentation result of two subjects: dice - 0.01 and dice + 0.01."""

    def make(name: str, dice: float, *, title: str = "", cohort: str = "phantom") -> dict:
        subjects = [
            {
                "subject": subject,
                "region": region,
                "dice": dice + step,
                "bavd_voxels": 1.0 + step,
                "bavd_mm": 0.5 + step,
            }
            for subject, step in (("sub-07", -0.01), ("sub-08", 0.01))
            for region in ("all", "intracranial")
        ]
        return {
            "format_version": 1,
            "job": "segmentation",
            "name": name,
            "title": title,
            "cohort": cohort,
            "split": "test",
            "threshold": 0.5,
            "subjects": subjects,
            "summary": {},
            "inputs": {"labels": "ab" * 32},
            "provenance": {"vesselgan": "0.1.0", "command": ["evaluate.py", "secret-path"]},
        }

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[str, dict], Run]:
    """make_run(name, settings) -> a run directory of this name with nothing but its settings."""

    def make(name: str, settings: dict) -> Run:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(json.dumps(settings))
        return read_run(tmp_path / name)

    return make


@pytest.fixture
def four_results(make_result) -> list[dict]:
    dice = {"threshold": 0.60, "real": 0.90, "synthetic": 0.80, "shuffled": 0.30}
    return [make_result(name, value) for name, value in dice.items()]


@pytest.fixture
def road(tmp_path: Path, four_results) -> Path:
    """A work directory with everything the report reads."""
    for result in four_results:
        path = tmp_path / "results" / f"{result['name']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result))
    train = tmp_path / "phantom" / "shards" / "gan" / "train"
    write_patches(train, origin="real", subjects=["sub-01", "sub-02"], patches=list(range(10)))
    run = tmp_path / "runs" / "demo-gan"
    write_patches(
        run / "synthetic", origin="synthetic", subjects=["synthetic-7"], patches=[100, 101, 102, 103, 104, 105]
    )
    fixed = {"loss/gradient_penalty": 0.3, "time/step_ms": 120.0, "amp/generator_skipped_total": 0}
    lines = [
        fixed
        | {"step": s, "loss/critic": -1.0 / s, "loss/generator": 0.1 * s, "loss/wasserstein": 2.0 / s}
        | {"amp/critic_skipped_total": s // 100}
        for s in range(10, 210, 10)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.yaml").write_text("variant:\n  name: sn_mp\n")
    (run / "provenance.json").write_text(json.dumps({"vesselgan": "0.1.0", "packages": {"torch": "2.13.0"}}))
    layers = [
        {"kind": "Linear", "shape": [32], "parameters": 96},
        {"kind": "BatchNorm3d", "shape": [4, 2, 2, 2], "parameters": 8},
        {"kind": "UpsampleConv3d", "shape": [2, 4, 4, 4], "parameters": 218, "kernel": [3, 3, 3], "stride": [1, 1, 1],
         "is_spectral": False},
    ]  # fmt: skip
    network = {"input": [2], "layers": layers, "output": [2, 4, 4, 4], "parameters": 322}
    (run / "architecture.json").write_text(json.dumps({"generator": network}))
    (run / "finished.json").write_text(json.dumps({"steps": 200}))
    return tmp_path
