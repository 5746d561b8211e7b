"""The probe names what it found and what it measured; it never chooses what the device lacks."""

import json
import os
from pathlib import Path

import pytest
import torch

from vesselgan.core.errors import ResourceError
from vesselgan.training import precision_probe as precision


@pytest.mark.parametrize(("fp32", "bf16", "chosen"), [(10.0, 4.0, "bf16"), (4.0, 10.0, "fp32"), (10.0, 9.0, "fp32")])
def test_the_clearly_faster_precision_is_chosen_on_a_cpu(
    fp32: float, bf16: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {torch.float32: fp32, torch.bfloat16: bf16}
    monkeypatch.setattr(precision, "measure_step_ms", lambda kind: times[kind])
    found = precision.probe_precision("cpu")
    assert (found["device"], found["precision"]) == ("cpu", chosen)
    assert found["step_ms"] == {"fp32": fp32, "bf16": bf16}


def test_a_gpu_gets_fp16_without_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    found = {"device": "cuda", "num_devices": 3, "precision": "fp16", "step_ms": {}}
    assert precision.probe_precision("auto") == found


def test_a_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="cuda"):
        precision.probe_precision("cuda")


def test_the_command_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["precision", "--device", "cpu", "--out", str(tmp_path / "a.json")])
    precision.main()
    found = json.loads((tmp_path / "a.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["precision"] in found["step_ms"] and found["num_cores"] == len(os.sched_getaffinity(0))
    assert all(ms > 0 for ms in found["step_ms"].values())
