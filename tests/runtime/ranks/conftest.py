"""The same training in plain torch, and runs of `worker.py` on one rank and on two to hold against it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vesselgan.models.blocks import init_weights
from vesselgan.models.critic import Critic
from vesselgan.models.generator import Generator
from vesselgan.runtime.noise import NoiseSampler

PATCH, WIDTH, LATENT, BATCH, STEPS = (32, 32, 16), 16, 4, 4, 5
# Adam's first step has the gradient's sign and the learning rate's size, so a weight whose gradient lies within
# rounding of zero jumps either way: after 5 steps torch in float32 is off torch in float64 by 1e-4 to 1e-3 at most
# starts. At these two it is off by 3e-7 at most.
SEED = {"instance": 11, "spectral": 5}
# A critic with InstanceNorm starts with slopes near 30, a penalty in the thousands, and rounding amplified as much. Its
# slopes are linear in its head, so that, divided, puts them near 1 and the penalty near what it is in training.
HEAD = {"instance": 30.0, "spectral": 1.0}
CASES = {
    "instance": [("fp32", 0), ("fp32", 2), ("bf16", 2), ("fp16", 1)],
    "spectral": [("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16", 1), ("fp16", 1), ("fp16", 2)],
}
KINDS = (("fp32", 0), ("bf16", 1), ("fp16", 2))
STAGES = (0, 1, 2)
VARIANT = {"instance": "gp", "spectral": "sn"}
RATES = {"critic": 4e-4, "generator": 2e-4}
TYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The largest powers at which no step of these overflows; the critic with InstanceNorm has the larger gradients.
LOSS_SCALE_POWER = {"instance": 3, "spectral": 12}
INNER_SCALE = 1024.0


class PlainGan:
    """One process, the joined batch, torch's Adam on float32 masters; half weights are copies of them.

    fp64 computes everything in float64: what rounding alone would change.
    """

    def __init__(self, norm: str, precision: str) -> None:
        self.critic, self.generator = Critic(PATCH, WIDTH, norm), Generator(PATCH, WIDTH, LATENT)
        init_weights(self.critic, SEED[norm])
        init_weights(self.generator, SEED[norm] + 1)
        self.networks = {"critic": self.critic, "generator": self.generator}
        with torch.no_grad():
            self.critic.score.weight.div_(HEAD[norm])
        self.scale = 2.0 ** LOSS_SCALE_POWER[norm] if precision == "fp16" else 1.0
        self.dtype, self.wide = TYPES[precision], torch.promote_types(TYPES[precision], torch.float32)
        # DeepSpeed makes its masters from the half weights, so that is where both start.
        self.masters = {
            name: {
                key: p.detach().to(self.dtype).to(self.wide, copy=True)
                for key, p in network.named_parameters()
                if p.requires_grad
            }
            for name, network in self.networks.items()
        }
        self.adams = {
            name: torch.optim.Adam(list(masters.values()), lr=RATES[name], betas=(0.0, 0.9))
            for name, masters in self.masters.items()
        }
        for network in self.networks.values():
            network.to(self.dtype)
        self.draws = NoiseSampler(SEED[norm], BATCH, LATENT)
        self.first_sizes: dict[str, Tensor] = {}
        """Of the gradients."""

    def step(self, position: int, real: Tensor) -> dict[str, float]:
        """The critic's update on the losses of equation 1 and 2 written out, then the generator's."""
        real, z = real.to(self.dtype), self.draws.latents_NL(0, position).to(self.dtype)
        with torch.no_grad():
            fake = self.generator(z)
        epsilon = self.draws.epsilons_N(position).view(-1, 1, 1, 1, 1)
        # Real, fake, line: half gradients are rounded when they are added, so the order is the real loop's.
        score_real, score_fake = self.critic(real), self.critic(fake)
        x = torch.lerp(fake.to(self.wide), real.to(self.wide), epsilon.to(self.wide)).requires_grad_(True)
        if self.dtype == self.wide:
            (slope,) = torch.autograd.grad(INNER_SCALE * self.critic(x).sum(), x, create_graph=True)
        else:
            # The same numbers, rounded in other places.
            slope = self.critic.input_gradient(x, INNER_SCALE)
        norms = torch.sqrt(((slope.to(self.wide) / INNER_SCALE) ** 2).sum((1, 2, 3, 4)) + 1e-12)
        penalty = 10.0 * ((norms - 1) ** 2).mean()
        critic_loss = score_fake.mean() - score_real.mean() + penalty
        self._update("critic", critic_loss)
        generator_loss = -self.critic(self.generator(self.draws.latents_NL(1, position).to(self.dtype))).mean()
        self._update("generator", generator_loss)
        return {
            "loss/critic": critic_loss.item(),
            "loss/generator": generator_loss.item(),
            "loss/gradient_penalty": penalty.item(),
        }

    def _update(self, name: str, loss: Tensor) -> None:
        parameters = dict(self.networks[name].named_parameters())
        masters = self.masters[name]
        gradients = torch.autograd.grad(self.scale * loss, [parameters[key] for key in masters])
        for (key, master), gradient in zip(masters.items(), gradients, strict=True):
            master.grad = gradient.to(self.wide) / self.scale
            self.first_sizes.setdefault(f"{name}/{key}", master.grad.abs())
        self.adams[name].step()
        with torch.no_grad():
            for key, master in masters.items():
                parameters[key].copy_(master)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value.clone()
            for name, network in self.networks.items()
            for key, value in network.state_dict().items()
        }


def patches() -> Tensor:
    """[positions, N, C, X, Y, Z]: noise with bright bars, labelled."""
    source = torch.Generator().manual_seed(7)
    real = 0.2 * torch.randn((STEPS, BATCH, 2, *PATCH), generator=source) - 0.5
    real[:, :, 1] = 0.0
    for position in range(STEPS):
        for sample in range(BATCH):
            row = int(torch.randint(4, 28, (), generator=source))
            real[position, sample, 0, row - 1 : row + 2, :, 7:10] += 1.2
            real[position, sample, 1, row - 1 : row + 2, :, 7:10] = 1.0
    return real


def case(norm: str, precision: str, stage: int, *, words: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """One entry of worker.py's plan; `words` override settings."""
    settings = [f"variant={VARIANT[norm]}", f"variant.precision={precision}", f"variant.width={WIDTH}"]
    settings += [f"variant.latent_size={LATENT}", f"train.batch_size={BATCH}", f"train.seed={SEED[norm]}", *words]
    return {"norm": norm, "words": settings, "stage": stage, "steps": STEPS} | more


def plan() -> dict[str, dict[str, Any]]:
    cases = {}
    for norm, kinds in CASES.items():
        scaler = {"fp16": {"initial_scale_power": LOSS_SCALE_POWER[norm], "loss_scale_window": 1000}}
        for kind, stage in kinds:
            cases[f"{norm}-{kind}-{stage}"] = case(norm, kind, stage, count_calls=kind == "fp32", **scaler)
        cases[f"{norm}-turns"] = case(norm, "fp32", 1, words=("train.batch_per_gpu=1",))
    return {"gan_on_ranks": cases | accidents(), "tiny_on_ranks": {"tiny": {"norm": "spectral"}}}


def accidents() -> dict[str, Any]:
    """Runs in which the last rank meets something that is not finite; positions, backwards and steps count from 0."""
    scaler = {"fp16": {"initial_scale_power": 12, "loss_scale_window": 2}}
    floor = {"fp16": {"initial_scale_power": 1, "min_loss_scale": 1}}
    nan = {"nan_in_input": [1]}
    found = {f"nan-input-{kind}-{stage}": case("spectral", kind, stage, **nan, **scaler) for kind, stage in KINDS}
    for kind, stage in KINDS:
        bad = {"network": "generator", "backwards": [1], "value": "nan"}
        found[f"nan-gradient-{kind}-{stage}"] = case("spectral", kind, stage, bad_gradient=bad, **scaler)
    overflow = {"network": "critic", "backwards": [1], "value": "inf"}
    found["overflow"] = case("spectral", "fp16", 1, bad_gradient=overflow, **scaler)
    found["floor"] = case("spectral", "fp16", 2, bad_gradient=overflow | {"backwards": list(range(1, 5))}, **floor)
    found["five-critic-steps"] = case("instance", "fp32", 1, words=("variant.n_critic=5",)) | {"steps": 1}
    found["one-patch"] = case("instance", "fp32", 1, words=("train.batch_size=1",)) | {"steps": 2}
    return found


class Results:
    """What the workers wrote, and what plain torch found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._plain: dict[tuple[str, str], PlainGan] = {}
        self._told = {size: [self._read(size, rank) for rank in range(size)] for size in (1, 2)}

    def _read(self, size: int, rank: int) -> dict[str, Any]:
        return json.loads((self.folder / f"ranks_{size}" / f"rank_{rank}.json").read_text())

    def record(self, size: int, name: str, rank: int = 0) -> dict[str, Any]:
        record = self._told[size][rank][name]
        assert "error" not in record, record["error"]
        return record

    def tensors(self, size: int, name: str, kind: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"ranks_{size}" / f"{name}.{kind}.safetensors")

    def plain(self, norm: str, precision: str) -> PlainGan:
        if (norm, precision) not in self._plain:
            gan = PlainGan(norm, precision)
            gan.record = [gan.step(position, real) for position, real in enumerate(patches())]
            self._plain[norm, precision] = gan
        return self._plain[norm, precision]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory, run_on_ranks: Callable[..., None]) -> Iterator[Results]:
    folder = tmp_path_factory.mktemp("ranks")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for norm in ("instance", "spectral"):
        save_file(PlainGan(norm, "fp32").state() | {"real": patches()}, folder / f"start_{norm}.safetensors")
    (folder / "plan.json").write_text(json.dumps(plan()))
    for size in (1, 2):
        run_on_ranks([str(Path(__file__).parent / "worker.py"), str(folder)], size=size)
    yield Results(folder)
    torch.set_num_threads(threads)
