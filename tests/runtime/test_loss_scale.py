"""The loss scale is applied before the backward and undone before the update: shown with SGD, which Adam would mask."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vesselgan.core.errors import NumericError
from vesselgan.runtime import checkpoint
from vesselgan.runtime.distributed import World
from vesselgan.runtime.engine import Engine, wrap
from vesselgan.trainer.batch_plan import BatchPlan

POWER = 10
RATE = 0.25


class Slope(nn.Module):
    """f(x) = mean <w, x>: its gradient is x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x_NF: Tensor) -> Tensor:
        return (x_NF * self.weight).float().sum(1).mean()


@pytest.fixture
def slope(world: World) -> Callable[..., Engine]:
    def make(precision: str, stage: int, *, turns: int = 1, **fp16: int) -> Engine:
        raw = {"zero_optimization": {"stage": stage}, "gradient_clipping": 0.0}
        if precision == "fp16":
            raw["fp16"] = {"enabled": True, "initial_scale_power": POWER, "hysteresis": 1} | fp16
        elif precision == "bf16":
            raw["bf16"] = {"enabled": True}
        settings = BatchPlan.of(2, 2 // turns, ranks=1).resolve(raw)
        module = Slope()
        optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
        return wrap("critic", module, optimizer, settings=settings, world=world)

    return make


def master(engine: Engine) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param

    (parameter,) = engine.parameters.values()
    return safe_get_full_fp32_param(parameter) if engine.is_partitioned else parameter.detach().clone()


def seen_in_backward(engine: Engine) -> list[Tensor]:
    seen: list[Tensor] = []
    (parameter,) = engine.parameters.values()
    parameter.register_hook(lambda gradient: seen.append(gradient.clone()))
    return seen


@pytest.mark.parametrize("stage", [1, 2])
def test_the_scale_stays_out_of_the_update(slope, stage):
    engine = slope("fp16", stage)
    seen = seen_in_backward(engine)
    x_NF = torch.tensor([[1.0, 2.0, -3.0, 0.5]] * 2)
    engine.backward(engine.module(x_NF.half()))
    assert engine.step()
    # Powers of two: exact. Not applied, the first would be x; not undone, the update 1024 times larger; undone without
    # having been applied (this DeepSpeed's stage 0), 1024 times smaller.
    assert seen[0].tolist() == [1024.0, 2048.0, -3072.0, 512.0] and seen[0].dtype == torch.float16
    assert master(engine).tolist() == [1 - 0.25, 1 - 0.5, 1 + 0.75, 1 - 0.125]
    assert engine.gradient_norm.item() == pytest.approx((1 + 4 + 9 + 0.25) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_smallest_gradients_move_the_master(slope, stage):
    from deepspeed.utils import safe_set_full_fp32_param

    engine = slope("fp16", stage)
    assert torch.tensor(2.0**-26).half() == 0
    (parameter,) = engine.parameters.values()
    # From zero, where float32 can hold so small a step.
    safe_set_full_fp32_param(parameter, torch.zeros(4))
    engine.backward(engine.module(torch.ones(2, 4).half()) * 2.0**-26)
    assert engine.step()
    assert master(engine).tolist() == [-RATE * 2.0**-26] * 4


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("fp32", 2), ("bf16", 1), ("fp16", 2)])
def test_two_turns_give_one_mean_update(slope, precision, stage):
    engine = slope(precision, stage, turns=2)
    for x, is_last in ((1.0, False), (3.0, True)):
        engine.backward(engine.module(torch.full((1, 4), x).to(engine.dtype)))
        assert engine.step() == is_last
    # The gradient of the whole batch is (1 + 3) / 2.
    assert master(engine).tolist() == [1 - RATE * 2.0] * 4


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("bf16", 2), ("fp16", 1)])
def test_an_infinite_loss_skips_the_update(slope, precision, stage):
    engine = slope(precision, stage, turns=2)
    for add in (float("inf"), 0.0):
        # The derivative of adding infinity is one: only the loss itself tells.
        engine.backward(engine.module(torch.ones(1, 4).to(engine.dtype)) + add)
        assert not engine.step()
    assert master(engine).tolist() == [1.0] * 4
    assert (engine.skipped_steps, engine.skips.bad_in_a_row, engine.skips.reason) == (1, 1, "loss")
    for _ in range(2):
        engine.backward(engine.module(torch.ones(1, 4).to(engine.dtype)))
        is_applied = engine.step()
    assert is_applied and engine.skips.bad_in_a_row == 0 and master(engine).tolist() == [1 - RATE] * 4


def test_the_scale_falls_and_grows_again(slope):
    engine = slope("fp16", 1, loss_scale_window=2, min_loss_scale=256)
    found = []
    for factor in (1e6, 1e6, 1e6, 1.0, 1.0, 1.0):
        engine.backward(engine.module(torch.ones(2, 4).half()) * factor)
        engine.step()
        found.append((engine.loss_scale, engine.skips.bad_in_a_row))
    # 1024 and 512 had a way down, 256 had none; the first good step ends the row.
    assert found == [(512, 0), (256, 0), (256, 1), (256, 0), (256, 0), (512, 0)]


def test_a_static_scale_has_no_way_out(slope):
    engine = slope("fp16", 1, loss_scale=8)
    engine.backward(engine.module(torch.ones(2, 4).half()) * 1e6)
    assert not engine.step()
    assert (engine.loss_scale, engine.skips.bad_in_a_row, engine.skips.reason) == (8, 1, "gradient")


def test_no_infinite_number_is_ever_saved(tiny, world, tmp_path):
    engine = tiny.engine(stage=0)
    tiny.train(engine, 0, 2)
    checkpoint.save(tmp_path, 2, {"critic": engine}, {}, keep_last=2, world=world)
    with torch.no_grad():
        engine.module[1].bias[1] = torch.inf
    averages = {"generator_ema": {"a": torch.tensor([1.0, torch.nan])}}
    for bad in ({"extra": averages}, {}):
        with pytest.raises(NumericError, match=r"\ba\b" if bad else "1.bias"):
            checkpoint.save(tmp_path, 3, {"critic": engine}, {}, keep_last=2, world=world, **bad)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == ["step_00000002"]
