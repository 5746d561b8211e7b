"""A tiny network on the ranks of worker.py."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vesselgan.runtime import checkpoint
from vesselgan.runtime.distributed import World
from vesselgan.runtime.engine import Engine, wrap
from vesselgan.trainer.batch_plan import BatchPlan

BATCH = 4


def engine_of(world: World, stage: int) -> Engine:
    raw = {"zero_optimization": {"stage": stage}, "gradient_clipping": 0.0}
    settings = BatchPlan.of(BATCH, None, ranks=world.size).resolve(raw)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2, betas=(0.0, 0.9), fused=True)
    return wrap("critic", module, optimizer, settings=settings, world=world)


def train(engine: Engine, world: World, start: int, stop: int) -> None:
    """Each rank on its share of a global batch that is a function of the step."""
    for step in range(start, stop):
        batch = torch.sin(torch.arange(3.0 * BATCH).reshape(BATCH, 3) + step).chunk(world.size)[world.rank]
        engine.backward(engine.module(batch).square().mean())
        engine.step()


def run(case: dict[str, Any], start: dict[str, torch.Tensor], world: World, out: Path) -> dict[str, Any]:
    """Saves at step 4 and ends at 9, in the run directory `out`."""
    engine = engine_of(world, 2)
    for first, stop in ((0, 4), (4, 9)):
        train(engine, world, first, stop)
        checkpoint.save(out, stop, {"critic": engine}, {"ranks": world.size}, keep_last=9, world=world)
    return {}
