"""A tiny made-up road: shards of real and synthetic patches, a run directory, results."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vesselgan.report import figures
from vesselgan.report.runs import Run, read_run
from vesselgan.viz import plots

from ..conftest import write_set


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
    write_set(train, range(10), ["sub-01", "sub-02"])
    run = tmp_path / "runs" / "demo-gan"
    write_set(run / "synthetic", range(100, 106), ["synthetic-7"], kind="synthetic")
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
