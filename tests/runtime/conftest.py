"""A tiny network in an engine of its own, and checkpoints of it."""

import pytest
import torch
from torch import nn

from vesselgan.runtime.distributed import World
from vesselgan.runtime.engine import Engine, wrap
from vesselgan.trainer.batch_plan import BatchPlan


class Tiny:
    """Makes equal engines, and trains them on batches that are functions of the step."""

    def __init__(self, world: World) -> None:
        self.world = world

    def engine(
        self, *, stage: int = 1, precision: str = "fp32", width: int = 4, batch_per_gpu: int | None = None
    ) -> Engine:
        raw = {"zero_optimization": {"stage": stage}, "gradient_clipping": 0.0}
        if precision == "fp16":
            raw["fp16"] = {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 3, "hysteresis": 1}
        if precision == "bf16":
            raw["bf16"] = {"enabled": True}
        settings = BatchPlan.of(2, batch_per_gpu, ranks=1).resolve(raw)
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, width, bias=False), nn.LayerNorm(width), nn.Linear(width, 2))
        module.register_buffer("num_batches", torch.tensor(2**40 + 1))  # beyond what float32 could hold
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2, betas=(0.0, 0.9), fused=True)
        return wrap("critic", module, optimizer, settings=settings, world=self.world)

    @staticmethod
    def train(engine: Engine, start: int, stop: int) -> None:
        for step in range(start, stop):
            batch = torch.sin(torch.arange(6.0).reshape(2, 3) + step).to(engine.dtype)
            for part in batch.chunk(engine.micro_batches):
                engine.backward(engine.module(part).float().square().mean())
                engine.step()
            engine.module.num_batches += 1


@pytest.fixture
def tiny(world: World) -> Tiny:
    return Tiny(world)
