"""What a checkpoint gives back: the run that it was taken from, whatever the engine's stage, or a refusal."""

import ast
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from vesselgan.core.errors import CheckpointError, ResourceError
from vesselgan.runtime import checkpoint, tensor_files
from vesselgan.runtime.engine import Engine

from ..conftest import Canary, edit_json


def write(run_dir: Path, step: int, engine: Engine, tiny, **options: object) -> Path:
    options = {"keep_last": 9, "state": {"value": step}} | options
    return checkpoint.save(run_dir, step, {"critic": engine}, world=tiny.world, **options).path


def edit(folder: Path, file: str, change: Callable[[bytes], bytes], *, is_signed: bool = True) -> None:
    """Change a file of a checkpoint, and the manifest with it as somebody would who knows the format."""
    data = change((folder / file).read_bytes())
    (folder / file).write_bytes(data)
    if is_signed:
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        edit_json(folder / "manifest.json", lambda manifest: manifest.update({file: entry}))


def edit_state(folder: Path, change: Callable[[dict], object]) -> None:
    def changed(data: bytes) -> bytes:
        record = json.loads(data)
        change(record)
        return json.dumps(record).encode()

    edit(folder, "state.json", changed)


def values(engine: Engine) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in engine.module.state_dict().items()}


@pytest.mark.parametrize(
    ("precision", "before", "after"),
    [("fp32", 1, 0), ("fp32", 0, 2), ("bf16", 2, 1), ("fp16", 1, 2)],
)
def test_a_run_resumes_at_another_stage(tiny, tmp_path, precision, before, after):
    whole = tiny.engine(stage=before, precision=precision)
    tiny.train(whole, 0, 4)
    write(tmp_path, 4, whole, tiny)
    tiny.train(whole, 4, 9)
    resumed = tiny.engine(stage=after, precision=precision)
    assert checkpoint.load(tmp_path, None, {"critic": resumed}, world=tiny.world) == {"value": 4}
    tiny.train(resumed, 4, 9)
    # On one rank no sum is taken in another order. But without ZeRO Adam runs over each tensor, with it over one flat
    # piece, and a processor's last lanes round otherwise than its full vectors: 1e-8 measured, a step moves 1e-2.
    within = 0.0 if before and after else 1e-6
    for key, value in values(whole).items():
        torch.testing.assert_close(values(resumed)[key], value, rtol=0.0, atol=within, msg=key)
    assert resumed.loss_scale == whole.loss_scale
    if precision == "fp16":
        # Doubled at the fourth step, then every third: a scaler that was fresh at step 4 would stand at 2 ** 9.
        assert (whole.loss_scale, whole.skipped_steps) == (2.0**10, 0)
    assert resumed.deepspeed.global_steps == 9


@pytest.mark.parametrize("stage", [0, 2])
def test_a_resumed_update_may_take_two_turns(tiny, tmp_path, stage):
    # Three updates of one turn: counted on by turns, the fourth would come after half of its batch.
    whole, resumed = tiny.engine(stage=stage), tiny.engine(stage=stage, batch_per_gpu=1)
    tiny.train(whole, 0, 3)
    write(tmp_path, 3, whole, tiny)
    tiny.train(whole, 3, 6)
    checkpoint.load(tmp_path, None, {"critic": resumed}, world=tiny.world)
    tiny.train(resumed, 3, 6)
    assert resumed.deepspeed.global_steps == 6
    for key, value in values(whole).items():
        # Two halves' gradients are added in another order: 1e-8 measured, a step moves 1e-2.
        torch.testing.assert_close(values(resumed)[key], value, rtol=0.0, atol=1e-6, msg=key)


def test_skipped_steps_in_a_row_are_counted_on(tiny, tmp_path):
    engine, resumed = tiny.engine(), tiny.engine()
    engine.skips.bad_in_a_row = 3
    write(tmp_path, 1, engine, tiny)
    checkpoint.load(tmp_path, None, {"critic": resumed}, world=tiny.world)
    assert resumed.skips.bad_in_a_row == 3


def test_the_files_are_safetensors_to_the_byte(tmp_path):
    tensors = {
        "z": torch.arange(6.0).reshape(2, 3),
        "count": torch.tensor(2**40 + 1),
        "ä/half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "strided": torch.arange(12.0).reshape(3, 4).T,
    }
    parts = {key: tensor_files.lazy_tensor(tensor) for key, tensor in tensors.items()}
    entry = tensor_files.write_tensors(tmp_path / "a.safetensors", parts)
    data = (tmp_path / "a.safetensors").read_bytes()
    as_stored = {k: (v.float() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    assert data == save(as_stored)
    assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    for key, value in tensor_files.TensorFile(tmp_path / "a.safetensors").all().items():
        assert torch.equal(value, as_stored[key]), key


def test_tensors_are_fetched_one_by_one(tmp_path):
    fetched = []

    def part(name: str) -> tensor_files.LazyTensor:
        return tensor_files.lazy_tensor(torch.ones(4), lambda: fetched.append(name) or torch.ones(4))

    parts = {name: part(name) for name in "abc"}
    pieces = tensor_files._chunks(parts, is_writer=True)
    next(pieces)
    assert fetched == []
    next(pieces)
    assert fetched == ["a"]
    fetched.clear()
    # A folder's name cannot be written: another rank would wait for ever in a collective that this one left out.
    with pytest.raises(OSError):
        tensor_files.write_tensors(tmp_path, parts)
    assert fetched == ["a", "b", "c"]
    fetched.clear()
    assert tensor_files.write_tensors(None, parts) == {} and fetched == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("file", "is_torch"),
    [
        ("critic.safetensors", True),
        ("critic.safetensors", False),
        ("critic.optimizer.safetensors", True),
        ("state.json", False),
        ("manifest.json", True),
    ],
)
def test_no_pickle_is_executed_whatever_its_name(tiny, tmp_path, file, is_torch):
    canary = tmp_path / "canary"
    folder = write(tmp_path / "run", 1, tiny.engine(), tiny)
    torch.save(Canary(canary), tmp_path / "evil.pt")
    if not is_torch:
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(Canary(canary)))
    evil = (tmp_path / "evil.pt").read_bytes()
    edit(folder, file, lambda _: evil, is_signed=file != "manifest.json")
    engines = {"critic": tiny.engine()}
    for name in (None, folder.name):
        with pytest.raises(CheckpointError):
            checkpoint.load(tmp_path / "run", name, engines, world=tiny.world)
    if "optimizer" not in file:
        with pytest.raises(CheckpointError):
            checkpoint.read_weights(tmp_path / "run", "critic")
    for source in (tmp_path / "evil.pt", folder / "critic.safetensors"):
        with pytest.raises(CheckpointError, match=source.name):
            checkpoint.init_from(source, engines, world=tiny.world)
    assert not canary.exists()
    # The canary does sing, for whoever reads it as a pickle.
    torch.load(tmp_path / "evil.pt", weights_only=False) if is_torch else pickle.loads(evil)
    assert canary.exists()


def test_nothing_that_ships_executes_pickles(repository):
    for path in [*repository.glob("vesselgan/**/*.py"), *repository.glob("data_prep/*.py")]:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, given = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert name not in ("pickle.load", "pickle.loads", "joblib.load") and "load_checkpoint" not in name, path
            assert given.get("allow_pickle") != "True" and (name != "torch.load" or given["weights_only"] == "True"), (
                path
            )


def test_another_architecture_is_listed_by_key(tiny, tmp_path):
    narrow = tiny.engine(width=4)
    tiny.train(narrow, 0, 1)
    write(tmp_path, 1, narrow, tiny)
    wide = tiny.engine(width=6)
    before = values(wide)
    with pytest.raises(CheckpointError, match=r"0\.weight \[4, 3\] -> \[6, 3\].*2\.weight") as raised:
        checkpoint.load(tmp_path, None, {"critic": wide}, world=tiny.world)
    assert raised.value.exit_code == 4
    assert all(torch.equal(value, values(wide)[key]) for key, value in before.items())
    with pytest.raises(CheckpointError, match="'generator'"):
        checkpoint.load(tmp_path, None, {"critic": narrow, "generator": wide}, world=tiny.world)


@pytest.mark.parametrize("lost", ["scaler", "optimizer_step", "counters", "moments", "optimizer file"])
def test_a_missing_state_allows_a_new_run_only(tiny, tmp_path, lost):
    engine = tiny.engine(precision="fp16")
    tiny.train(engine, 0, 2)
    folder = write(tmp_path, 2, engine, tiny)
    if lost == "moments":
        edit(folder, "critic.optimizer.safetensors", lambda _: save({}))
    elif lost == "optimizer file":
        (folder / "critic.optimizer.safetensors").unlink()
        edit_json(folder / "manifest.json", lambda manifest: manifest.pop("critic.optimizer.safetensors"))
    else:
        edit_state(folder, lambda record: record["engines"]["critic"].pop(lost))
    fresh = tiny.engine(precision="fp16")
    before = values(fresh)
    with pytest.raises(CheckpointError, match=f"init_from={folder}"):
        checkpoint.load(tmp_path, None, {"critic": fresh}, world=tiny.world)
    assert all(torch.equal(value, values(fresh)[key]) for key, value in before.items())
    record = checkpoint.init_from(folder, {"critic": fresh}, world=tiny.world)
    assert record["learned_from"] == ["unknown"]
    assert record["sha256"] == {
        "critic.safetensors": hashlib.sha256((folder / "critic.safetensors").read_bytes()).hexdigest()
    }
    assert all(torch.equal(value, values(fresh)[key]) for key, value in values(engine).items())
    assert fresh.deepspeed.global_steps == 0 and not any(fresh.inner_optimizer.state.values())


def test_weights_alone_start_a_run(tiny, tmp_path):
    trained = tiny.engine(precision="bf16")
    tiny.train(trained, 0, 5)
    write(tmp_path, 5, trained, tiny)
    fresh = tiny.engine(precision="bf16")
    checkpoint.init_from(tmp_path, {"critic": fresh}, world=tiny.world)
    # The first step is taken from the float32 master, so a master that kept the old weights would show here.
    tiny.train(fresh, 5, 6)
    moved = max((values(fresh)[k] - v).abs().max().item() for k, v in values(trained).items() if v.is_floating_point())
    # Adam's step is at most the learning rate, 1e-2, by its definition with beta1 = 0 at its first step; bf16 rounds
    # weights of size 1 to 2 ** -8.
    assert 0 < moved <= 1e-2 + 2**-8


def test_another_version_of_the_format_is_refused(tiny, tmp_path):
    folder = write(tmp_path, 1, tiny.engine(), tiny)
    edit_state(folder, lambda record: record.update(format_version=99))
    for name in (None, folder.name):
        with pytest.raises(CheckpointError, match="version 99"):
            checkpoint.load(tmp_path, name, {"critic": tiny.engine()}, world=tiny.world)
    with pytest.raises(CheckpointError, match="version 99"):
        checkpoint.read_weights(tmp_path, "critic")


def test_the_disk_needed_is_known_before(tiny, tmp_path, monkeypatch):
    engine = tiny.engine()
    extra = {"average": {"weight": torch.zeros(5, dtype=torch.bfloat16)}}
    expected = checkpoint.expected_bytes([engine], extra["average"].values())
    # 3 * 4 + 2 * 4 + 4 * 2 + 2 parameters three times, one int64, five averaged, four bytes each.
    assert expected == 30 * 4 * 3 + 8 + 5 * 4
    tiny.train(engine, 0, 1)
    saved = checkpoint.save(tmp_path, 2, {"critic": engine}, {}, keep_last=2, world=tiny.world, extra=extra)
    assert saved.num_bytes == expected and saved.seconds > 0
    tensors = (tensor for file in saved.path.glob("*.safetensors") for tensor in load_file(file).values())
    assert sum(tensor.nbytes for tensor in tensors) == expected
    usage = shutil.disk_usage(tmp_path)
    there = sum(file.stat().st_size for file in (tmp_path / "checkpoints").rglob("*") if file.is_file())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4 * 2**30 - there))
    checkpoint.check_disk(tmp_path, 2**30, keep_last=2, num_kept=1)
    with pytest.raises(ResourceError, match="5.00 GiB.* 4.00 GiB"):
        checkpoint.check_disk(tmp_path, 2**30, keep_last=3, num_kept=1)
