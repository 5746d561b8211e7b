"""How a run tells how far it is, on a terminal and elsewhere; where a step's time goes; what counts as no memory."""

import json
import time
from pathlib import Path

import pytest
import torch

from vesselgan.config.compose import compose
from vesselgan.core.errors import DataError
from vesselgan.runtime.device_memory import is_out_of_memory, limit_bytes, peak_bytes
from vesselgan.runtime.timing import Phases
from vesselgan.trainer.progress import Pace, Progress
from vesselgan.trainer.run_log import RunLog, cut_metrics

CPU = torch.device("cpu")


def test_only_rank_0_writes(tmp_path, capsys):
    log = RunLog(tmp_path, is_main=False)
    Progress(log, start=0, stop=1).show(1, "loss", 0.1)
    log.scalars(1, {"loss": 1.0})
    log.line("text")
    log.hparams(compose("train_gan", []), metrics=[])
    log.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


def test_a_killed_session_leaves_no_curve(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for value in (1.0, 2.0):
        cut_metrics(tmp_path, 0)
        log = RunLog(tmp_path, is_main=True, resume_step=0)
        log.hparams(compose("train_gan", []), metrics=["loss"])
        log.scalars(1, {"loss": value})
        log.close()
    seen = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in seen.Scalars("loss")] == [(1, 2.0)]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1


def test_a_pause_is_no_steps_time(monkeypatch):
    now = iter([100.0, 103.0, 106.0, 107.0, 109.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    pace = Pace()  # at 100
    with pace.pause():  # from 103 to 107
        pace.measure_save(1.5)  # at 106
    assert (pace.save_s, pace.write_s) == (3.0, 1.5)
    pace.measure_step(2)  # at 109
    assert pace.step_s == (9.0 - 4.0) / 2


def test_phases_are_added_and_divided_by_steps():
    phases = Phases(CPU)
    for name in ("critic/scores", "critic/backward", "critic/update", "generator/update", "checkpoint"):
        with phases(name):
            time.sleep(0.02)
    first = phases.read(2)
    assert set(first) == {f"time/{name}_ms" for name in ("critic", "update", "checkpoint")}
    # Two spans of at least 20 ms over two steps; a sleep may last longer, never shorter.
    assert first["time/critic_ms"] >= 20 and first["time/update_ms"] >= 20
    assert first["time/checkpoint_ms"] >= 10
    assert phases.read(2) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_phases_on_a_gpu_are_the_devices_time():
    device = torch.device("cuda")
    phases, x = Phases(device), torch.rand(4096, 4096, device=device)
    for _ in range(2):
        with phases("critic/scores"):
            for _ in range(20):
                x = torch.nn.functional.normalize(x @ x)
    torch.cuda.synchronize()
    # 20 products of 137 GFLOP cannot take less than a millisecond on any GPU; launching them does.
    assert phases.read(1)["time/critic_ms"] > 2


def test_out_of_memory_is_recognised():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError())
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(real.value)


def test_the_peak_follows_what_is_taken():
    before = peak_bytes(CPU)
    held = torch.ones(2**26)  # 256 MiB
    assert peak_bytes(CPU) >= before and held.sum() == 2**26
    assert 2**28 < peak_bytes(CPU) < limit_bytes(CPU)


def test_metrics_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"st']))
    cut_metrics(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(lines[:2]) + "\n"
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n[]\n" + lines[0].encode())
    with pytest.raises(DataError, match="metrics.jsonl: line 1"):
        cut_metrics(tmp_path, 2)
