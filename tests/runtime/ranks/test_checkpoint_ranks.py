"""Saved on two ranks at ZeRO stage 2, taken up on one at stage 1."""

import shutil

import torch

from vesselgan.runtime import checkpoint

from .tiny_on_ranks import engine_of, train


def test_two_ranks_resume_as_one(results, world, tmp_path):
    two = results.folder / "ranks_2/tiny"
    shutil.copytree(two / "checkpoints/step_00000004", tmp_path / "checkpoints/step_00000004")
    engine = engine_of(world, 1)
    assert checkpoint.load(tmp_path, None, {"critic": engine}, world=world) == {"ranks": 2}
    train(engine, world, 4, 9)
    first, unbroken = (checkpoint.read_weights(two, "critic", f"step_0000000{step}")[0] for step in (4, 9))
    for key, value in engine.module.state_dict().items():
        # Sums over two ranks are added in another order; five steps move weights by up to 5e-2.
        torch.testing.assert_close(value, unbroken[key], rtol=0.0, atol=1e-6)
        assert (value - first[key]).abs().max() > 1e-3, key
