"""What one sees of a run: lines, curves, settings, pictures, costs; and what it says when memory is not enough."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from vesselgan.config.compose import compose
from vesselgan.core.errors import ResourceError
from vesselgan.tools.plan import costs

PATCH = [32, 32, 16]
WORDS = ("variant=sn", "variant.precision=fp32", "train.checkpoint_every=2", "train.image_every=2")


def events(run_dir: Path) -> EventAccumulator:
    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def lines(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def num_session_starts(run_dir: Path) -> int:
    """Descriptions of the settings in all of the run's event files, as they lie on disk."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    count = 0
    for path in (run_dir / "tensorboard").glob("events*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            count += sum(value.tag == "_hparams_/session_start_info" for value in event.summary.value)
    return count


def test_a_resumed_run_doubles_nothing(train_here, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert train_here(run_dir, *WORDS, "train.max_steps=3", "train.log_every=2") is not None
    shown, kept = capsys.readouterr().out, (run_dir / "log.txt").read_text()
    assert str(run_dir) in shown and [line for line in shown.splitlines() if line and line not in kept] == []

    # As a kill between two checkpoints leaves it: lines and events of a step that will be taken again.
    (run_dir / "finished.json").unlink()
    shutil.rmtree(run_dir / "checkpoints" / "step_00000003")
    record = train_here(run_dir, *WORDS, "train.max_steps=3", "train.log_every=2")
    assert [line["step"] for line in lines(run_dir)] == [2, 3]
    seen = events(run_dir)
    for name in lines(run_dir)[0]:
        if name != "step":
            assert [scalar.step for scalar in seen.Scalars(name)] == [2, 3], name
            assert seen.Scalars(name)[0].value == pytest.approx(lines(run_dir)[0][name], rel=1e-6, abs=1e-30)
    for kind in ("slices", "projections", "vessels"):
        assert [image.step for image in seen.Images(f"samples/{kind}")] == [2, 3]
        assert [image.step for image in seen.Images(f"real/{kind}")] == [0]
    assert num_session_starts(run_dir) == 1
    content = seen.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    shown_settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown_settings["variant.width"].number_value == 8 and shown_settings["variant.name"].string_value == "sn"

    # Table 2's columns, against what plan says without training.
    planned = costs(compose("plan", ["variant=sn", "variant.width=8", f"patch_shape={PATCH}", "train.batch_size=2"]))
    assert record["parameters"] == {network: planned[f"parameters_{network}"] for network in ("generator", "critic")}
    assert record["ranks"] == 1 and record["device_name"] and record["hours"] > 0 and record["peak_gib_per_rank"] > 0.1
    checkpoint = run_dir / "checkpoints" / "step_00000003"
    written = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    # Headers, and the statistics that are saved beside these few weights, come on top.
    assert 1 <= written / (planned["checkpoint_gib"] * 2**30) < 1.2


def test_phases_of_a_step_add_up(train_here, tmp_path):
    words = ("train.max_steps=4", "train.image_every=2", "train.checkpoint_every=2", "train.log_every=4")
    assert train_here(tmp_path / "run", "variant=gp", "variant.precision=fp32", *words) is not None
    (line,) = lines(tmp_path / "run")
    phases = {name.split("/")[1].removesuffix("_ms"): ms for name, ms in line.items() if name.startswith("time/")}
    step_ms = phases.pop("step")
    assert set(phases) == {"data_wait", "critic", "generator", "update", "sample_images", "checkpoint"}
    stepping = sum(ms for name, ms in phases.items() if name not in ("sample_images", "checkpoint"))
    # What is left is the loop between the phases.
    # What lies between the phases is small, but a busy machine may pause there.
    assert 0.4 * step_ms < stepping <= step_ms * 1.01
    assert line["throughput/patches_per_s"] == pytest.approx(2 / step_ms * 1000)
    assert all(math.isfinite(value) for value in line.values())


@pytest.mark.parametrize("step", [0, 2])
def test_out_of_memory_names_what_fits(train_here, tmp_path, monkeypatch, step):
    from vesselgan.training import cost, gan, run_summary

    monkeypatch.setattr(run_summary, "step_cost", cost.step_cost)
    taken, steps = gan.generator_step, []

    def refused(*arguments):
        steps.append(1)
        if len(steps) > step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return taken(*arguments)

    monkeypatch.setattr(gan, "generator_step", refused)
    with pytest.raises(ResourceError) as failed:
        train_here(tmp_path / "run", *WORDS, "train.max_steps=4")
    assert failed.value.exit_code == 6 and len(steps) == step + 1, "tried again"
    for named in ("variant=sn", "train.batch_per_gpu=1", "Tried to allocate 2.00 GiB"):
        assert named in str(failed.value)
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*[0-9]"))
    assert saved == (["step_00000002"] if step else [])
    assert not (tmp_path / "run" / "finished.json").exists()


def test_another_error_is_not_out_of_memory(train_here, tmp_path, monkeypatch):
    from vesselgan.training import gan

    def broken(*arguments):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(gan, "generator_step", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train_here(tmp_path / "run", *WORDS, "train.max_steps=1")


def test_a_failed_run_leaves_no_open_log(train_here, tmp_path, monkeypatch):
    from vesselgan.training import gan

    def broken(*arguments):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(gan, "generator_step", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2") as failed:
        train_here(tmp_path / "run", *WORDS, "train.max_steps=1")
    opened = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert failed.tb is not None, "its frames hold the run"
    assert not [path for path in opened if path.startswith(str(tmp_path))]
