"""A run that reads from the node's copy is the run that reads the shards themselves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vesselgan.core.errors import UsageError


def test_a_staged_run_is_the_same_run(
    train_here: Callable, work_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["variant=sn", "train.max_steps=2"]
    opened: list[str] = []
    from vesselgan.formats.shard_file import ShardFile

    plain = ShardFile.__init__

    def note(self: ShardFile, path: Path, **facts: object) -> None:
        opened.append(str(path))
        plain(self, path, **facts)

    monkeypatch.setattr(ShardFile, "__init__", note)
    assert train_here(tmp_path / "copied", *words, f"data.local_copy_dir={tmp_path}/node") is not None
    assert opened and all(path.startswith(str(tmp_path / "node")) for path in opened)
    assert train_here(tmp_path / "shared", *words) is not None
    name = "checkpoints/step_00000002/critic.safetensors"
    assert (tmp_path / "copied" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()
    inputs = [json.loads((tmp_path / run / "provenance.json").read_text())["inputs"] for run in ("copied", "shared")]
    assert inputs[0] == inputs[1]
    with pytest.raises(UsageError, match="NOT_THERE"):
        train_here(tmp_path / "none", *words, "data.local_copy_dir=$NOT_THERE")
