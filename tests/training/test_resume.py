"""A resumed run is the same run, and says what has changed."""

import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vesselgan.config.compose import compose
from vesselgan.core.errors import CheckpointError, ResourceError, UsageError
from vesselgan.formats import checkpoint_folder
from vesselgan.formats.run_dir import RunDir
from vesselgan.runtime import checkpoint
from vesselgan.training import gan_trainer

SN = ("variant=sn", "variant.precision=fp32", "train.max_steps=6", "train.checkpoint_every=2", "train.keep_last=9")


def bytes_at(run_dir: Path, step: int) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in (run_dir / "checkpoints" / f"step_{step:08d}").glob("*.safetensors")
    }


def is_of_the_machine(name: str) -> bool:
    """Whether a scalar tells of clocks and memory, not of the run."""
    return name.startswith(("time/", "memory/", "throughput/", "checkpoint/"))


def metrics(run_dir: Path) -> list[dict]:
    """metrics.jsonl without what no two runs share."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not is_of_the_machine(key)} for row in rows]


def events(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar that TensorBoard shows, as (step, value), without what no two runs share."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    names = [name for name in shown.Tags()["scalars"] if not is_of_the_machine(name)]
    return {name: [(event.step, event.value) for event in shown.Scalars(name)] for name in names}


def broken_at(straight: Path, broken: Path, step: int) -> Path:
    """What a kill leaves after checkpoint `step` of the finished run, and after the lines that came later."""
    shutil.copytree(straight, broken)
    for path in (broken / "checkpoints").glob("step_*"):
        if path.name > f"step_{step:08d}":
            shutil.rmtree(path)
    (broken / "finished.json").unlink()
    return broken


@pytest.fixture
def straight(train_here, tmp_path_factory):
    """A finished run, trained by the first who asks for it; to be read and copied, not changed."""
    run_dir = tmp_path_factory.getbasetemp() / "finished_sn"
    if not run_dir.exists():
        train_here(run_dir, *SN)
    return run_dir


@pytest.mark.parametrize(("variant", "precision"), [("sn", "bf16"), ("c_sn_mp", "fp16"), ("gp", "fp32")])
def test_a_broken_run_resumes_to_the_same_bytes(train_here, tmp_path, variant, precision):
    words = (*SN[2:], f"variant={variant}", f"variant.precision={precision}", "variant.ema_decay=0.9")
    words += ("data.augment=true", "train.log_every=2", "--deepspeed_config", f"ds_{precision}.json")
    train_here(tmp_path / "straight", *words)
    broken = broken_at(tmp_path / "straight", tmp_path / "broken", 2)
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "critic_lo')  # the kill's half line
    train_here(broken, *words)
    assert "resumed at step 2;" in (broken / "log.txt").read_text()
    assert bytes_at(broken, 6) == bytes_at(tmp_path / "straight", 6)
    assert metrics(broken) == metrics(tmp_path / "straight")
    assert [row["step"] for row in metrics(broken)] == [2, 4, 6]
    shown = events(broken)
    assert shown == events(tmp_path / "straight")
    assert [step for step, _ in shown["loss/critic"]] == [2, 4, 6]
    sessions = [json.loads(line) for line in (broken / "sessions.jsonl").read_text().splitlines()]
    assert [(session["step"], session["ranks"]) for session in sessions] == [(0, 1), (2, 1)]


def test_other_threads_are_named_at_resume(train_here, straight, tmp_path, capsys):
    run_dir = broken_at(straight, tmp_path / "threads", 4)
    entry = json.loads((run_dir / "sessions.jsonl").read_text())
    assert entry["threads"] == torch.get_num_threads()
    (run_dir / "sessions.jsonl").write_text(json.dumps(entry | {"threads": 63}) + "\n")
    train_here(run_dir, *SN)
    assert "OMP_NUM_THREADS=63" in capsys.readouterr().err
    train_here(broken_at(run_dir, tmp_path / "again", 4), *SN)
    assert "OMP_NUM_THREADS" not in capsys.readouterr().err


def test_a_checkpoint_says_all_that_the_run_needs(straight):
    state = json.loads((straight / "checkpoints" / "step_00000004" / "state.json").read_text())
    # 24 patches in batches of 2 make an epoch of 12 batches: after 4 batches, 8 samples of epoch 0.
    assert state["state"]["position"] == {"seed": 990, "epoch": 0, "patches": 8}
    assert state["step"] == state["state"]["step"] == 4
    assert {"seconds", "meter", "manifest", "config_hash", "save_s"} <= state["state"].keys()
    for network in ("critic", "generator"):
        assert state["engines"][network]["optimizer_step"] == 4.0
    stored = checkpoint.read_weights(straight, "generator", "step_00000004")[0]
    assert any("running_var" in key or "var" in key for key in stored)  # BatchNorm's statistics
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    # The cost of the save after step 2 is logged from step 3 on.
    assert rows[1]["checkpoint/write_ms"] == 0.0 and rows[2]["checkpoint/write_ms"] > 0.0


def test_other_settings_are_refused_unless_allowed(train_here, straight, tmp_path, capsys):
    broken = broken_at(straight, tmp_path / "broken", 4)
    changed = (*SN, "train.batch_size=4", "variant.learning_rate_critic=1e-5")
    before = (broken / "config.yaml").read_text()
    both = r"learning_rate_critic: 0.0004 -> 1e-05; train.batch_size: 2 -> 4"
    with pytest.raises(CheckpointError, match=both) as raised:
        train_here(broken, *changed)
    assert raised.value.exit_code == 4
    assert "allow_config_change=[variant.learning_rate_critic,train.batch_size]" in str(raised.value)
    with pytest.raises(CheckpointError, match="learning_rate_critic") as raised:
        train_here(broken, *changed, "allow_config_change=[train.batch_size]")
    assert "batch_size: 2" not in str(raised.value)
    assert (broken / "config.yaml").read_text() == before and not (broken / "finished.json").exists()
    train_here(broken, *changed, "allow_config_change=[train.batch_size,variant]")
    session = json.loads((broken / "sessions.jsonl").read_text().splitlines()[-1])
    assert {(c["key"], c["before"], c["after"]) for c in session["changes"] if not c["is_free"]} == {
        ("variant.learning_rate_critic", 4e-4, 1e-5),
        ("train.batch_size", 2, 4),
    }
    # From now on the new settings are the run's own.
    assert "batch_size: 4" in (broken / "config.yaml").read_text()
    assert json.loads((broken / "deepspeed_critic.json").read_text())["train_batch_size"] == 4
    capsys.readouterr()
    train_here(broken, *changed)
    assert "finished already" in capsys.readouterr().out


def test_a_finished_run_takes_more_steps(train_here, straight, tmp_path):
    run_dir = tmp_path / "longer"
    shutil.copytree(straight, run_dir)
    words = [*SN[:2], *SN[3:], "train.max_steps=7"]
    with pytest.raises(CheckpointError, match=r"allow_config_change=\[train.max_steps\]"):
        train_here(run_dir, *words)
    assert train_here(run_dir, *words, "allow_config_change=[train.max_steps]")["steps"] == 7
    assert [row["step"] for row in metrics(run_dir)] == list(range(1, 8))


def test_what_a_finished_run_ignores_is_refused(train_here, straight, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    with pytest.raises(CheckpointError, match="nonsense"):
        train_here(run_dir, *SN, "checkpoint=nonsense")
    train_here(run_dir, *SN, "checkpoint=step_00000004")
    assert len(RunDir(run_dir).sessions()) == 1  # without a change it would end the same
    faster = (*SN, "variant.learning_rate_critic=1e-3", "allow_config_change=[variant]")
    with pytest.raises(UsageError, match="learning_rate_critic"):
        train_here(run_dir, *faster)
    assert train_here(run_dir, *faster, "checkpoint=step_00000004")["steps"] == 6
    assert [session["step"] for session in RunDir(run_dir).sessions()] == [0, 4]


def test_steps_beyond_the_end_are_refused(train_here, straight, tmp_path):
    """Before anything is set aside."""
    broken = broken_at(straight, tmp_path / "broken", 6)
    fewer = [*SN[:2], *SN[3:], "train.max_steps=3", "allow_config_change=[train]"]
    for words in (fewer, [*fewer, "checkpoint=step_00000004"]):
        with pytest.raises(UsageError, match="max_steps"):
            train_here(broken, *words)
    assert len(list((broken / "checkpoints").glob("*.set_aside"))) == 0
    assert train_here(broken, *fewer, "checkpoint=step_00000002")["steps"] == 3


def test_the_position_is_kept_in_patches(train_here, straight, tmp_path, monkeypatch):
    broken = broken_at(straight, tmp_path / "broken", 4)
    asked, stream = [], gan_trainer.stream

    def record(*arguments: object, start: int, stop: int, **options: object) -> object:
        asked.append((start, stop))
        return stream(*arguments, start=start, stop=stop, **options)

    monkeypatch.setattr(gan_trainer, "stream", record)
    train_here(broken, *SN[:2], *SN[3:], "train.epochs=1", "train.batch_size=4", "train.max_steps=null",
               "allow_config_change=[train]")  # fmt: skip
    # Eight patches were seen in batches of 2: two batches of 4. An epoch is 6 batches of 4, so four are left.
    assert asked == [(2, 6)]
    state = checkpoint.read_weights(broken, "critic")[1]
    assert state["step"] == 4 + 4
    assert state["position"] == {"seed": 990, "epoch": 1, "patches": 0}


def test_the_zero_stage_may_change(train_here, straight, tmp_path):
    broken = broken_at(straight, tmp_path / "broken", 2)
    raw = {"zero_optimization": {"stage": 2}, "gradient_clipping": 0.0, "fp16": {"enabled": False}}
    (tmp_path / "scaled.json").write_text(json.dumps(raw | {"fp16": {"enabled": False, "loss_scale_window": 7}}))
    with pytest.raises(CheckpointError, match="deepspeed.critic.fp16") as record:
        train_here(broken, *SN, "--deepspeed_config", str(tmp_path / "scaled.json"))
    assert "zero_optimization" not in str(record.value)
    (tmp_path / "two.json").write_text(json.dumps(raw))
    train_here(broken, *SN, "--deepspeed_config", str(tmp_path / "two.json"))
    for network in ("critic", "generator"):
        there, here = (checkpoint.read_weights(path, network, "step_00000006")[0] for path in (straight, broken))
        # Stage 0 and 2 add gradients in another order; four steps of 2e-4 and 4e-4 moved the weights by up to 1e-3.
        for key in (key for key, value in there.items() if value.is_floating_point()):
            assert (there[key] - here[key]).square().mean().sqrt() <= 1e-6, key
    session = json.loads((broken / "sessions.jsonl").read_text().splitlines()[-1])
    assert {change["key"] for change in session["changes"]} == {
        "deepspeed.critic.zero_optimization",
        "deepspeed.generator.zero_optimization",
    }
    assert json.loads((broken / "deepspeed_generator.json").read_text())["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize("word", ["variant=gp", "variant.width=16"])
def test_another_network_is_refused_though_allowed(train_here, straight, tmp_path, word):
    broken = broken_at(straight, tmp_path / "broken", 2)
    with pytest.raises(CheckpointError, match=word.split("=")[0].split(".")[-1]):
        train_here(broken, *SN, word, "variant.precision=fp32")
    with pytest.raises(CheckpointError, match="architecture"):
        train_here(broken, *SN, word, "variant.precision=fp32", "allow_config_change=[variant]")
    assert "spectral" in (broken / "config.yaml").read_text()


def test_other_data_is_refused_unless_allowed(train_here, straight, tmp_path):
    broken = broken_at(straight, tmp_path / "broken", 2)
    record = json.loads((broken / "provenance.json").read_text())
    record["inputs"]["gan/train"] = "0" * 64
    (broken / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="content.gan/train: 0000"):
        train_here(broken, *SN)
    train_here(broken, *SN, "allow_config_change=[content]")


def test_an_average_does_not_start_midway(train_here, straight, tmp_path):
    broken = broken_at(straight, tmp_path / "broken", 2)
    with pytest.raises(CheckpointError, match="variant.ema_decay=0.9"):
        train_here(broken, *SN, "variant.ema_decay=0.9", "allow_config_change=[variant]")
    assert len(RunDir(broken).sessions()) == 1


def test_a_lost_position_is_refused(train_here, straight, tmp_path):
    broken = broken_at(straight, tmp_path / "broken", 2)
    folder = broken / "checkpoints" / "step_00000002"
    record = json.loads((folder / "state.json").read_text())
    del record["state"]["position"]
    (folder / "state.json").write_text(json.dumps(record))
    manifest = json.loads((folder / "manifest.json").read_text())
    size = (folder / "state.json").stat().st_size
    manifest["state.json"] = {"sha256": checkpoint_folder.sha256_of(folder / "state.json"), "bytes": size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="position"):
        train_here(broken, *SN)


def test_weights_alone_start_a_new_run(train_here, straight, tmp_path):
    source = straight / "checkpoints" / "step_00000004"
    words = (*SN[:2], "train.max_steps=1", "train.seed=3", "variant.learning_rate_critic=1e-30",
             "variant.learning_rate_generator=1e-30")  # fmt: skip
    train_here(tmp_path / "new", *words, f"init_from={source}")
    for network in ("critic", "generator"):
        taken, given = (checkpoint.read_weights(*where)[0] for where in [(tmp_path / "new", network),
                                                                         (straight, network, source.name)])  # fmt: skip
        learned = [key for key in given if key.endswith(("weight", "original")) and given[key].ndim > 1]
        assert learned
        for key in learned:
            assert np.array_equal(taken[key], given[key]), key
    provenance = RunDir(tmp_path / "new").provenance()
    record = provenance["weights_from"]
    assert record["learned_from"] == provenance["learned_from"] == [RunDir(straight).trained_on()]
    assert record["checkpoint"] == str(source) and record["step"] == 4
    assert record["sha256"]["critic.safetensors"] == checkpoint_folder.sha256_of(source / "critic.safetensors")
    state = checkpoint.read_weights(tmp_path / "new", "critic")[1]
    assert (state["step"], state["position"]["patches"]) == (1, 2)
    with pytest.raises(CheckpointError, match="nowhere"):
        train_here(tmp_path / "wrong", *words, f"init_from={tmp_path / 'nowhere'}")


def test_epochs_that_are_kept_stay_for_ever(train_here, tmp_path):
    # 24 patches in batches of 8 make epochs of 3 steps.
    train_here(tmp_path / "run", *SN[:2], "train.batch_size=8", "train.epochs=5", "train.max_steps=null",
               "train.save_every_epochs=2", "train.keep_last=1", "train.checkpoint_every=4")  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert names == ["step_00000006", "step_00000012", "step_00000015"]


def test_a_small_disk_is_refused_at_once(train_here, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="disk"):
        train_here(tmp_path / "run", *SN, "train.keep_last=2")
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_checkpoint_takes_what_was_predicted(train_here, tmp_path, monkeypatch):
    predicted = []
    expected = checkpoint.expected_bytes
    monkeypatch.setattr(
        checkpoint, "expected_bytes", lambda *a, **k: predicted.append(expected(*a, **k)) or predicted[-1]
    )
    train_here(tmp_path / "run", *SN[:2], "train.max_steps=1", "variant.ema_decay=0.9")
    sizes = [path.stat().st_size for path in (tmp_path / "run/checkpoints/step_00000001").glob("*.safetensors")]
    # Each file begins with a table of its tensors, some 100 bytes for each.
    assert len(sizes) == 6 and 0 <= sum(sizes) - predicted[0] < 6 * 20_000


def test_a_run_of_another_process_is_refused(train_here, straight, tmp_path):
    broken = broken_at(straight, tmp_path / "broken", 2)
    context = multiprocessing.get_context("forkserver")
    hear, say = context.Pipe()
    holder = context.Process(target=hold, args=(broken, say))
    holder.start()
    try:
        assert hear.recv() == "held"
        with pytest.raises(ResourceError, match=f"process {holder.pid}"):
            train_here(broken, *SN)
    finally:
        holder.kill()
        holder.join()
    train_here(broken, *SN)
    assert bytes_at(broken, 6) == bytes_at(straight, 6)


def test_a_run_that_is_about_to_begin_keeps_its_settings(train_here, tmp_path, hold_lock):
    config = compose("train_gan", ["variant=gp"])
    RunDir(tmp_path).load_or_init("train_gan", config, {"critic": {}}, inputs={}, provenance={})
    hold_lock(tmp_path / "lock")
    written = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ResourceError, match="works in it"):
        train_here(tmp_path, *SN)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == written


def hold(run_dir: Path, say: object) -> None:
    held = RunDir(run_dir).acquire_lock()
    say.send("held")
    say.recv()
    held.close()
