"""Saved on two ranks at ZeRO stage 2, taken up on one at stage 1."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import torch

from vesselgan.runtime import checkpoint

SCRIPT = Path(__file__).with_name("tiny_on_ranks.py")


def test_two_ranks_resume_as_one(world, repository, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository), "WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "two")]
    ranks = [subprocess.Popen(command, env=common | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]

    described = importlib.util.spec_from_file_location("tiny_on_ranks", SCRIPT)
    tiny = importlib.util.module_from_spec(described)
    described.loader.exec_module(tiny)
    shutil.copytree(tmp_path / "two/checkpoints/step_00000004", tmp_path / "one/checkpoints/step_00000004")
    engine = tiny.engine_of(world, 1)
    assert checkpoint.load(tmp_path / "one", None, {"critic": engine}, world=world) == {"ranks": 2}
    tiny.train(engine, world, 4, 9)
    first, unbroken = (checkpoint.read_weights(tmp_path / "two", "critic", f"step_0000000{step}")[0] for step in (4, 9))
    for key, value in engine.module.state_dict().items():
        # Sums over two ranks are added in another order; five steps move weights by up to 5e-2.
        torch.testing.assert_close(value, unbroken[key], rtol=0.0, atol=1e-6)
        assert (value - first[key]).abs().max() > 1e-3, key
