"""Which BatchNorm statistics samples are made with: running ones lag behind the weights, standing ones do not."""

from pathlib import Path

import torch
from torch import Tensor

from vesselgan.models.blocks import BatchNorm3d
from vesselgan.models.generator import Generator, latents
from vesselgan.runtime.checkpoint import read_weights

WIDTH, LATENT, BATCH = 8, 128, 4
# Rates at which the weights move in so few steps as far as a real run's do between two looks at it.
WORDS = ("variant=sn", "variant.precision=fp32", "train.max_steps=60", f"train.batch_size={BATCH}")
WORDS += ("variant.learning_rate_generator=5e-3", "variant.learning_rate_critic=5e-3", "variant.ema_decay=0.9")


def load(run_dir: Path, kind: str) -> Generator:
    """The generator as `generate` loads it with weights=`kind`."""
    weights = read_weights(run_dir, "generator_ema" if kind == "ema" else "generator")[0]
    if kind == "standing":
        weights |= read_weights(run_dir, "generator_standing")[0]
    generator = Generator((32, 32, 16), WIDTH, LATENT)
    generator.load_state_dict(weights)
    return generator.eval()


@torch.no_grad()
def met_in_batches(generator: Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """What each normalisation sees in training mode: mean and variance, averaged over 50 latent batches of 4."""
    parts = {name: part for name, part in generator.named_modules() if isinstance(part, BatchNorm3d)}
    seen: dict[str, list[Tensor]] = {name: [] for name in parts}
    for name, part in parts.items():
        part.update_running_stats = lambda mean_C, variance_C, name=name: seen[name].append(
            torch.stack([mean_C, variance_C])
        )
    generator.train()
    for batch in range(50):
        generator(latents(5, range(BATCH * batch, BATCH * (batch + 1)), LATENT))
    generator.eval()
    for part in parts.values():
        del part.update_running_stats
    return {name: tuple(torch.stack(values).mean(0)) for name, values in seen.items()}


@torch.no_grad()
def error_of(generator: Generator) -> float:
    """How far the statistics in use are from those of the batches: mean over layers and channels, in batch SDs."""
    errors, parts = [], dict(generator.named_modules())
    for name, (mean_C, variance_C) in met_in_batches(generator).items():
        errors.append((parts[name].running_mean - mean_C).abs() / variance_C.sqrt())
        errors.append((parts[name].running_var / variance_C).sqrt().sub(1).abs())
    return float(torch.cat(errors).mean())


def test_samples_use_statistics_of_their_weights(train_here, tmp_path, monkeypatch):
    monkeypatch.setattr("vesselgan.training.average.STANDING_BATCHES", 100)
    assert train_here(tmp_path / "run", *WORDS) is not None
    generators = {kind: load(tmp_path / "run", kind) for kind in ("standing", "running", "ema")}
    errors = {kind: error_of(generator) for kind, generator in generators.items()}
    # Measured: 0.005, 0.005 and 0.088. Means over a hundred batches and over fifty differ by sampling noise alone.
    assert errors["standing"] < 0.02 and errors["ema"] < 0.02
    assert errors["running"] > 3 * errors["standing"]
    z_NL = latents(1, range(3), LATENT)
    for kind, generator in generators.items():
        with torch.no_grad():
            alone, among = generator(z_NL[:1]), generator(z_NL)[:1]
            in_training = generator.train()(z_NL)[:1]
        # Sums in another order are all that differs.
        torch.testing.assert_close(alone, among, atol=1e-6, rtol=0, msg=kind)
        # With the statistics of its batch, as the authors' code samples, it would depend on its neighbours.
        assert (in_training - alone).abs().max() > 1e-3, kind
