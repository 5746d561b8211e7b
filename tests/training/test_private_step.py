"""The private network on real shards: no unit moves the sum by more than the clipping norm, whoever is with it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from vesselgan.config.compose import compose
from vesselgan.data.patches import ShardDataset
from vesselgan.data.positions import places_of
from vesselgan.formats.shards import ShardSet
from vesselgan.models.variants import build_networks, init_networks
from vesselgan.privacy.poisson import PoissonSampler
from vesselgan.privacy.run import plan_private_run
from vesselgan.privacy.step import critic_step, flow_step
from vesselgan.runtime.distributed import World
from vesselgan.runtime.noise import NoiseSampler, latents_by_patch_NL

CLIP = 1e-3
"""Below every unit's gradient, so that all are cut to it."""
POSITION = 3
SumOf = Callable[..., Tensor]


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank=rank, size=size, local_rank=0, device=torch.device("cpu"))


@pytest.fixture(params=["dpgan patch", "dpgan patient", "dp_flow patch", "dp_flow_label patient"])
def sum_of(request: pytest.FixtureRequest, work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> SumOf:
    """The clipped sum of one step, all of it flat, over ranks that take their parts in turn; `without` one record."""
    variant, unit = request.param.split()
    rate = {"patch": 8, "patient": 2}[unit]
    words = [f"variant={variant}", "variant.width=8", f"variant.dp.unit={unit}", f"variant.dp.clip_norm={CLIP}"]
    words += ["variant.dp.delta=1e-5", "variant.dp.noise_multiplier=1", "variant.dp.noise_seed=4"]
    words += ["data.augment=true"] if variant == "dpgan" else []
    config = compose("train_gan", [*words, f"train.batch_size={rate}", "train.num_workers=0"])
    shards = ShardSet(work_dir / "phantom" / "shards" / "gan" / "train")
    private = plan_private_run(config, shards, 10)
    is_given = variant == "dp_flow_label"
    dataset = ShardDataset(shards, scaling="volume", label_threshold=0.3, intensity="signed", with_tissue=is_given)
    whole = PoissonSampler.batch

    def run(*, without: int | None = None, ranks: int = 1) -> Tensor:
        monkeypatch.setattr(
            PoissonSampler, "batch", lambda self, position: [r for r in whole(self, position) if r != without]
        )
        total = torch.zeros(1)
        for rank in range(ranks):
            networks = build_networks(config.variant, shards.patch_shape)
            init_networks(networks, 1)
            generator = networks["generator"]
            engine = private.engine(networks[private.network], config.variant, world())
            engine.key, engine.counters.global_steps = private.key, POSITION
            engine._optimizer.noise_multiplier = 0.0
            seen: list[Tensor] = []
            parameters = list(engine.parameters.values())
            monkeypatch.setattr(
                engine.inner_optimizer, "step", lambda p=parameters, s=seen: s.extend(g.grad.flatten() for g in p)
            )
            draws = NoiseSampler(config.train.seed, config.train.batch_size, config.variant.latent_size)
            one = range(POSITION, POSITION + 1)
            batch = next(private.batches(dataset, one, config, world(rank, ranks), places_of(shards)))
            still = SimpleNamespace(module=generator, device=torch.device("cpu"), dtype=torch.float32)
            if variant.startswith("dp_flow"):
                flow_step(engine, batch, POSITION)
            else:
                critic_step(engine, still, batch, draws, POSITION, config.variant)
            assert (engine.batch.num_units, engine.batch.num_dropped) == (len(batch.indices), 0)
            total = total + torch.cat(seen).double() * config.train.batch_size
        return total

    run.records = lambda: whole(  # type: ignore[attr-defined]
        PoissonSampler(
            private.units, sample_rate=private.mechanism.sample_rate, key=private.key, positions=range(4), rank=0,
            world_size=1, augment=False,
        ),
        POSITION,
    )  # fmt: skip
    return run


def test_no_unit_moves_the_sum_further(sum_of: SumOf) -> None:
    everyone, records = sum_of(), sum_of.records()
    assert len(records) >= 2
    for record in records:
        # Sums in float32, and the 1e-6 that Opacus adds to a norm before it divides by it.
        assert (everyone - sum_of(without=record)).norm() <= CLIP * (1 + 1e-3), record


def test_ranks_share_one_sum(sum_of: SumOf) -> None:
    # Over ranks the units are added in another order, in float32.
    assert torch.allclose(sum_of(), sum_of(ranks=3), atol=1e-6 * CLIP, rtol=0)


def test_a_records_latent_is_its_own() -> None:
    three, one = latents_by_patch_NL(5, 7, [2, 9, 4], 8), latents_by_patch_NL(5, 7, [9], 8)
    assert three[1].equal(one[0])
    rows = [latents_by_patch_NL(*at, 8) for at in ((5, 7, [9]), (6, 7, [9]), (5, 8, [9]), (5, 7, [8]))]
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 4
    assert latents_by_patch_NL(5, 7, [], 8).shape == (0, 8)
