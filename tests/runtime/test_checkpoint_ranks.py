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


def test_two_ranks_at_stage_2_go_on_as_one_at_stage_1(world, repository, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    python = Path(sys.executable)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD_SIZE"))}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(repository)}
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    command = [python.parent / "deepspeed", "--num_gpus", "2", "--master_port", str(port), SCRIPT, tmp_path / "two"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    described = importlib.util.spec_from_file_location("tiny_on_ranks", SCRIPT)
    tiny = importlib.util.module_from_spec(described)
    described.loader.exec_module(tiny)
    (tmp_path / "one" / "checkpoints").mkdir(parents=True)
    shutil.copytree(tmp_path / "two/checkpoints/step_00000004", tmp_path / "one/checkpoints/step_00000004")
    engine = tiny.engine_of(world, 1)
    assert checkpoint.load(tmp_path / "one", None, {"critic": engine}, world=world) == {"ranks": 2}
    tiny.train(engine, world, 4, 9)
    unbroken, _ = checkpoint.read_weights(tmp_path / "two", "critic", "step_00000009")
    first, _ = checkpoint.read_weights(tmp_path / "two", "critic", "step_00000004")
    for key, value in engine.module.state_dict().items():
        # Sums over two ranks are added in another order; five steps move weights by up to 5e-2.
        torch.testing.assert_close(value, unbroken[key], rtol=0.0, atol=1e-6)
        assert (value - first[key]).abs().max() > 1e-3, key
