"""Checkpoints as directories: which one counts, which one goes, and what a kill leaves."""

import builtins
import errno
import gc
import io
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from vesselgan.core.errors import CheckpointError, ResourceError
from vesselgan.formats import checkpoint_folder
from vesselgan.runtime import checkpoint, tensor_files

from ..conftest import flip_bit


@pytest.fixture
def saved(tiny, tmp_path):
    """Save checkpoint `step`, whose weights and state are all `step`."""
    engine = tiny.engine(stage=0)

    def save(step: int, *, keep_last: int = 9, **options: object) -> Path:
        with torch.no_grad():
            for parameter in engine.parameters.values():
                parameter.fill_(float(step))
        given = {"keep_last": keep_last, "world": tiny.world, **options}
        return checkpoint.save(tmp_path, step, {"critic": engine}, {"value": step}, **given).path

    save.engine, save.world = engine, tiny.world
    return save


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir() if path.is_dir())


def newest(run_dir: Path) -> int:
    weights, state = checkpoint.read_weights(run_dir, "critic")
    assert (weights["0.weight"] == state["value"]).all()
    return state["value"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {"cut": cut, "flipped": flip_bit, "empty": lambda path: path.write_bytes(b""), "gone": Path.unlink}


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        *((kind, file) for kind in DAMAGES for file in ("critic.safetensors", "manifest.json")),
        ("flipped", "critic.optimizer.safetensors"),
        ("cut", "state.json"),
    ],
)
def test_a_damaged_newest_is_skipped(saved, tmp_path, capsys, kind, file):
    saved(2)
    folder = saved(3)
    if (kind, file) == ("flipped", "manifest.json"):
        (folder / file).write_text((folder / file).read_text().replace("sha256", "sha255"))
    else:
        DAMAGES[kind](folder / file)
    with pytest.raises(CheckpointError, match=f"step_00000003: {file}") as raised:
        checkpoint.load(tmp_path, "step_00000003", {"critic": saved.engine}, world=saved.world)
    assert raised.value.exit_code == 4
    assert checkpoint.load(tmp_path, None, {"critic": saved.engine}, world=saved.world) == {"value": 2}
    assert f"step_00000003: {file}" in capsys.readouterr().err
    assert (next(iter(saved.engine.parameters.values())) == 2).all()


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "critic.safetensors"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE, errno.EACCES, errno.EIO, errno.ENOMEM])
def test_an_unreadable_newest_is_not_damaged(saved, tmp_path, monkeypatch, number, file):
    saved(2)
    path, opened = saved(3) / file, io.open

    def refuse(name: object, *arguments: object, **options: object) -> object:
        if name == path:
            raise OSError(number, os.strerror(number), str(name))
        return opened(name, *arguments, **options)

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", refuse)
    for read in (
        lambda: checkpoint.load(tmp_path, None, {"critic": saved.engine}, world=saved.world),
        lambda: checkpoint.read_weights(tmp_path, "critic"),
    ):
        with pytest.raises(ResourceError, match=f"{path}: .*{os.strerror(number)}"):
            read()
    saved(4, keep_last=1)
    assert "step_00000003" in names(tmp_path) or file == "critic.safetensors"


def test_sampling_verifies_what_it_reads_and_no_more(saved, tmp_path):
    saved(1)
    folder = saved(2)
    flip_bit(folder / "critic.optimizer.safetensors")
    assert newest(tmp_path) == 2
    flip_bit(folder / "critic.safetensors")
    assert newest(tmp_path) == 1
    with pytest.raises(CheckpointError, match="sha256 differs"):
        checkpoint.read_weights(tmp_path, "critic", folder.name)


def test_without_a_whole_one_nothing_starts(saved, tmp_path):
    with pytest.raises(CheckpointError):
        checkpoint.read_weights(tmp_path, "critic")
    flip_bit(saved(1) / "critic.safetensors")
    with pytest.raises(CheckpointError, match="step_00000001"):
        checkpoint.load(tmp_path, None, {"critic": saved.engine}, world=saved.world)
    with pytest.raises(CheckpointError, match="`step_00000009`.* step_00000001"):
        checkpoint.load(tmp_path, "step_00000009", {"critic": saved.engine}, world=saved.world)


def test_the_last_stay_with_kept_and_best(saved, tmp_path):
    for step in range(1, 8):
        saved(step, keep_last=2, is_kept=step == 3, keep=["step_00000001"])
    assert names(tmp_path) == [f"step_{step:08d}" for step in (1, 3, 6, 7)]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000007"
    saved(8, keep_last=1)  # the best is another one now
    assert names(tmp_path) == ["step_00000003", "step_00000008"]


def test_the_only_whole_one_is_never_deleted(saved, tmp_path):
    saved(1)
    for step in (2, 3):
        cut(saved(step) / "critic.safetensors")
    saved(4, keep_last=2)
    # 4 is whole and so is 1; 2 and 3 are of no use to anybody.
    assert names(tmp_path) == ["step_00000001", "step_00000004"]
    cut(tmp_path / "checkpoints" / "step_00000004" / "critic.safetensors")
    assert newest(tmp_path) == 1


def test_a_failed_delete_is_tried_again(saved, tmp_path, monkeypatch, capsys):
    saved(1)

    def held(path: Path, ignore_errors: bool = False) -> None:
        """As on NFS: a file that somebody has open is renamed to .nfs..., and its folder is not empty."""
        for file in Path(path).iterdir():
            file.rename(file.with_name(f".nfs{file.name}")) if file.suffix == ".safetensors" else file.unlink()
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", held)
        saved(2, keep_last=1)
        saved(2, keep_last=1)  # the same step again, as after a resume from before it
        assert newest(tmp_path) == 2
        left = [name for name in names(tmp_path) if name.endswith(".old")]
        assert len(left) == 2 and checkpoint_folder.names_in(tmp_path / "checkpoints") == ["step_00000002"]
    saved(3, keep_last=1)
    assert names(tmp_path) == ["step_00000003"]

    def refused(source: Path, target: Path) -> None:
        if str(target).endswith(".old"):
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(source, target)

    rename = os.rename
    monkeypatch.setattr(os, "rename", refused)
    capsys.readouterr()
    saved(4, keep_last=1)
    assert names(tmp_path) == ["step_00000003", "step_00000004"] and newest(tmp_path) == 4
    assert "step_00000003" in capsys.readouterr().err


def test_a_full_disk_leaves_the_earlier_whole(saved, tmp_path, monkeypatch):
    saved(1)
    write = tensor_files.write_chunks

    def full(path: Path, pieces: object) -> dict:
        if path.name == "critic.optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, pieces)

    monkeypatch.setattr(tensor_files, "write_chunks", full)
    with pytest.raises(ResourceError, match="step_00000002.partial"):
        saved(2)
    assert names(tmp_path) == ["step_00000001"] and newest(tmp_path) == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_folder_need_not_be_synced(saved, tmp_path, refuse_folders, number):
    saved(1)
    refuse_folders(number)
    if number == errno.EIO:  # a disk that fails is another matter
        with pytest.raises(ResourceError):
            saved(2)
    else:
        saved(2)
        assert newest(tmp_path) == 2


def test_going_back_by_name_sets_newer_aside(saved, tmp_path, capsys):
    for step in (1, 2, 3):
        saved(step)
    checkpoint.load(tmp_path, "step_00000001", {"critic": saved.engine}, world=saved.world)
    assert [name.split(".")[0] for name in names(tmp_path)] == ["step_00000001", "step_00000002", "step_00000003"]
    assert checkpoint_folder.names_in(tmp_path / "checkpoints") == ["step_00000001"]
    assert "step_00000003" in capsys.readouterr().err
    # Were the third still there, keep_last=1 would keep it and delete what was just saved.
    saved(2, keep_last=1)
    assert newest(tmp_path) == 2


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(6, 20))])
def test_a_kill_while_saving_loses_nothing_saved(saved, tmp_path, seed):
    """A forked child saves without a pause and says so after each; killed after a random while, at most one is lost."""
    saved(0)
    # 8 MB: writing takes longest.
    large = {"average": {f"weight{i}": torch.full((250_000,), float(i)) for i in range(8)}}
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        # Of the parent's many threads only this one lives on: their leftovers are not to be collected.
        gc.disable()
        try:
            for step in range(1, 10_000):
                saved(step, keep_last=2, extra=large)
                os.write(say, step.to_bytes(4, "little"))
        finally:
            os._exit(1)
    os.close(say)
    time.sleep(random.Random(seed).uniform(0.0, 0.4))
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL  # it lived until then
    said = b""
    while piece := os.read(hear, 65536):
        said += piece
    os.close(hear)
    last = int.from_bytes(said[-4:], "little") if said else 0
    checkpoint.load(tmp_path, None, {"critic": saved.engine}, world=saved.world)
    # The child may have been killed after it published and before it could say so.
    assert newest(tmp_path) in (last, last + 1)
    averages, _ = checkpoint.read_weights(tmp_path, "average") if newest(tmp_path) else (large["average"], None)
    assert all((averages[f"weight{i}"] == i).all() for i in range(8))
    saved(newest(tmp_path) + 1, keep_last=1)
    assert len(names(tmp_path)) == 1  # nothing of the killed save is left behind
    json.loads((tmp_path / "checkpoints" / names(tmp_path)[0] / "manifest.json").read_text())


def test_a_checkpoint_lists_its_own_files_alone(saved, tmp_path):
    path = saved(1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"../step_00000001/state.json": manifest["state.json"]}))
    assert "manifest.json" in checkpoint_folder.damage(path)
