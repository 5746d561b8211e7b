"""Whether this device computes what the mathematics says: half against float64, ZeRO, overflow, resume, sampling.

Each part returns its checks; a check is a number with the limit that it must not exceed.
Shapes: N batch, C channel, X Y Z voxels.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vesselgan.config.schema import Benchmark
from vesselgan.losses.flow_matching import denoising_errors, point_on_path
from vesselgan.losses.segmentation import dice_loss
from vesselgan.models.blocks import init_weights
from vesselgan.models.flow import FlowGenerator, init_flow_weights
from vesselgan.models.generator import latents
from vesselgan.models.unet import Unet
from vesselgan.runtime import distributed
from vesselgan.runtime.checkpoint import read_weights
from vesselgan.runtime.precision import torch_type
from vesselgan.tools.benchmark import step
from vesselgan.tools.benchmark.pipeline import run_command
from vesselgan.training.gan import critic_step, generator_step
from vesselgan.workflow.stage import module_command

PATCH_SHAPE, WIDTH = (32, 32, 16), 64
LOSS_SCALE = 4096.0
GREY_LEVEL = 2 / 255
"""Of an image in [-1, 1]."""


@dataclass(frozen=True)
class Check:
    """A measured number and what it may be at most."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit  # never for NaN


# Relative L2 distance of gradients, relative difference of losses. Half keeps 11 bits, bfloat16 8, and the generator's
# gradient passes both networks; an H100 in fp16 took 0.008 and 0.035, a loss that nearly cancels 0.006.
LIMITS = {
    "fp32": {"loss": 1e-4, "critic gradient": 1e-5, "generator gradient": 1e-4},
    "fp16": {"loss": 2e-2, "critic gradient": 3e-2, "generator gradient": 0.1},
    "bf16": {"loss": 0.1, "critic gradient": 0.2, "generator gradient": 0.4},
}


class RecordingEngine(step.BareEngine):
    """Keeps the gradients of the step, unscaled, in float64 on the CPU; the weights stay as they are."""

    def __init__(self, name: str, module: nn.Module, scale: float) -> None:
        super().__init__(name, module, 0.0, 0.9)
        self.scale = scale
        self.gradients: dict[str, Tensor] = {}

    def backward(self, loss: Tensor) -> None:
        (loss * self.scale).backward()

    def step(self) -> bool:
        for name, parameter in self.module.named_parameters():
            if parameter.grad is not None:
                self.gradients[name] = parameter.grad.double().cpu() / self.scale
                parameter.grad = None
        return True


def small(config: Benchmark) -> Benchmark:
    """The benchmark's variant at the size of the checks."""
    return replace(config, patch_shape=list(PATCH_SHAPE), variant=replace(config.variant, width=WIDTH), batch_size=4)


def step_against_float64(config: Benchmark) -> list[Check]:
    """Losses and gradients of one step in the variant's precision and in fp32 against float64 on the CPU."""
    config, device = small(config), distributed.choose_device(config.runtime.device, 0)
    exact, exact_gradients = _one_step(config, torch.device("cpu"), torch.float64, 1.0)
    checks = []
    for precision in dict.fromkeys(("fp32", config.variant.precision)):
        scale = LOSS_SCALE if precision == "fp16" else 1.0
        metrics, gradients = _one_step(config, device, torch_type(precision), scale)
        limits = LIMITS[precision]
        for name in ("loss/critic", "loss/gradient_penalty", "loss/generator"):
            error = abs(metrics[name] - exact[name]) / abs(exact[name])
            checks.append(Check(f"{precision}: {name}", error, limits["loss"]))
        for network, values in gradients.items():
            error = relative_distance(values, exact_gradients[network])
            checks.append(Check(f"{precision}: gradient of the {network}", error, limits[f"{network} gradient"]))
        checks.append(Check(f"{precision}: zeros in the penalty's gradient", metrics["gp/zero_fraction"], 1e-3))
    return checks


def _one_step(
    config: Benchmark, device: torch.device, dtype: torch.dtype, scale: float
) -> tuple[dict[str, float], dict[str, dict[str, Tensor]]]:
    """Metrics and, per network, gradients; weights rounded to half, so that every precision starts from the same."""
    networks = step.networks_of(config)
    for parameter in (p for network in networks for p in network.parameters()):
        parameter.data = parameter.data.half().float()
    critic: Any = RecordingEngine("critic", networks[0].to(device, dtype), scale)
    generator: Any = RecordingEngine("generator", networks[1].to(device, dtype), scale)
    real_NCXYZ = step.patches(config, torch.device("cpu")).half().to(device, torch.promote_types(dtype, torch.float32))
    noise = step.noise_of(config)
    metrics = critic_step(critic, generator, real_NCXYZ, noise, 0, config.variant)
    metrics |= generator_step(critic, generator, noise, 0)
    gradients = {engine.name: engine.gradients for engine in (critic, generator)}
    return {name: float(value) for name, value in metrics.items()}, gradients


def relative_distance(values: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """|values - exact|_2 / |exact|_2 over all tensors together."""
    difference = sum(float((values[name].double() - x.double()).square().sum()) for name, x in exact.items())
    return (difference / sum(float(x.double().square().sum()) for x in exact.values())) ** 0.5


def zero_stages(config: Benchmark) -> list[Check]:
    """Three steps in two DeepSpeed engines: ZeRO 1 against ZeRO 2, all weights finite."""
    config = small(config)
    weights = []
    for stage in (1, 2):
        engines, take_step = step.engines_and_step(config, zero_stage=stage)
        for number in range(3):
            take_step(number)
        weights.append({f"{e.name}.{n}": p.detach().float().cpu() for e in engines for n, p in e.parameters.items()})
    num_not_finite = sum(int((~x.isfinite()).sum()) for x in weights[0].values())
    precision = config.variant.precision
    return [
        # Over several ranks stage 2 adds gradients in another order; an H100 alone took 0.
        Check(f"{precision}: ZeRO 2 against ZeRO 1, weights", relative_distance(weights[1], weights[0]), 1e-3),
        Check(f"{precision}: weights that are not finite", num_not_finite, 0),
    ]


def bf16_run(config: Benchmark) -> list[Check] | str:
    """As `zero_stages`, in bfloat16, where that was not so already."""
    if config.variant.precision == "bf16":
        return "ZeRO was checked in bf16"
    return zero_stages(replace(config, variant=replace(config.variant, precision="bf16")))


def overflow(config: Benchmark) -> list[Check] | str:
    """An infinite loss halves the loss scale and changes no weight. Fp16 alone has a loss scale."""
    if config.variant.precision != "fp16":
        return f"no loss scale in {config.variant.precision}"
    (critic, _), take_step = step.engines_and_step(small(config), zero_stage=1)
    for number in range(step.WARMUP_STEPS):
        take_step(number)
    before, scale = {n: p.detach().clone() for n, p in critic.parameters.items()}, critic.loss_scale
    patch_NCXYZ = step.patches(small(config), critic.device)
    critic.backward(critic.module(patch_NCXYZ).sum() * torch.inf)
    is_applied = critic.step()
    changed = sum(int((p != before[n]).sum()) for n, p in critic.parameters.items())
    return [
        Check("weights changed by a step that overflowed", changed + is_applied, 0),
        Check("|loss scale over half of what it was - 1|", abs(critic.loss_scale / (scale / 2) - 1), 0),
    ]


def sampling(config: Benchmark) -> list[Check]:
    """The generator's samples on this device against the CPU's, in float32: at most half a grey level apart."""
    config, device = small(config), distributed.choose_device(config.runtime.device, 0)
    generator = step.networks_of(config)[1].eval()
    z_NL = latents(config.seed, range(4), config.variant.latent_size)
    with torch.inference_mode():
        expected_NCXYZ = generator(z_NL)
        patch_NCXYZ = generator.to(device)(z_NL.to(device)).cpu()
    levels = float((patch_NCXYZ - expected_NCXYZ).abs().max()) / GREY_LEVEL
    return [Check("largest difference of a voxel, grey levels", levels, 0.5)]


def unet(config: Benchmark) -> list[Check]:
    """The U-Net's loss and gradient in the variant's precision against float64 on the CPU."""
    generator = torch.Generator().manual_seed(config.seed)
    image_NCXYZ = torch.rand(2, 1, *PATCH_SHAPE, generator=generator) * 255
    label_NCXYZ = (image_NCXYZ > 200).float()

    def build() -> nn.Module:
        network = Unet([8, 16, 32], 0.0)
        init_weights(network, config.seed)
        return network

    def loss_of(network: nn.Module, device: torch.device) -> Tensor:
        return dice_loss(network(image_NCXYZ.to(device)), label_NCXYZ.to(device))

    return _against_float64(config, build, loss_of)


def flow(config: Benchmark) -> list[Check]:
    """The same of a flow."""
    generator = torch.Generator().manual_seed(config.seed)
    patch_NCXYZ = torch.rand(4, 2, *PATCH_SHAPE, generator=generator) * 2 - 1
    noise_NCXYZ = torch.randn(patch_NCXYZ.shape, generator=generator)
    time_N, position_N3 = torch.linspace(0.1, 0.9, 4), torch.rand(4, 3, generator=generator) * 2 - 1

    def build() -> nn.Module:
        network = FlowGenerator(PATCH_SHAPE, 32, has_position=True, time_shift=1.0, num_steps=1, guidance=0.0)
        init_flow_weights(network, config.seed)
        noise = torch.Generator().manual_seed(config.seed)
        for parameter in network.parameters():  # layers that begin at zero would hide what is before them
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=noise)
        return network

    def loss_of(network: nn.Module, device: torch.device) -> Tensor:
        assert isinstance(network, FlowGenerator)
        patch, noise, time, place = (x.to(device) for x in (patch_NCXYZ, noise_NCXYZ, time_N, position_N3))
        denoised = network.denoised(point_on_path(patch, noise, time), time, place)
        return denoising_errors(denoised, patch, time).mean()

    return _against_float64(config, build, loss_of)


def _against_float64(
    config: Benchmark, build: Callable[[], nn.Module], loss_of: Callable[[nn.Module, torch.device], Tensor]
) -> list[Check]:
    """Loss and gradient of a network in the variant's precision on the device, against float64 on the CPU."""
    device = distributed.choose_device(config.runtime.device, 0)
    precision = config.variant.precision
    results = []
    for where, dtype in ((torch.device("cpu"), torch.float64), (device, torch_type(precision))):
        network = build().to(where, dtype)
        loss = loss_of(network, where)
        scale = LOSS_SCALE if dtype == torch.float16 else 1.0
        (loss * scale).backward()
        gradients = {n: p.grad.double().cpu() / scale for n, p in network.named_parameters() if p.grad is not None}
        results.append((loss.item(), gradients))
    (exact, exact_gradients), (value, gradients) = results
    limits = LIMITS[precision]
    return [
        Check(f"{precision}: loss", abs(value - exact) / abs(exact), limits["loss"]),
        Check(f"{precision}: gradient", relative_distance(gradients, exact_gradients), limits["generator gradient"]),
    ]


def resume(config: Benchmark) -> list[Check]:
    """Ten steps and ten more after a restart, against twenty, with deterministic kernels, through the launcher."""
    with tempfile.TemporaryDirectory(prefix="vesselgan-") as name:
        work = Path(name)
        data = ["data=phantom", f"work_dir={work}"]
        run_command(work, "-m", "data_prep.make_phantom", "phantom.num_subjects=5", *data)
        run_command(work, "-m", "data_prep.build_shards", "purposes=[gan]", *data)
        train = [
            *data,
            "preset=demo",
            f"variant={config.variant.name}",
            f"variant.precision={config.variant.precision}",
        ]
        train += [f"runtime.device={config.runtime.device}", "runtime.deterministic=true", "variant.width=32"]
        for run, steps in (("straight", 20), ("resumed", 10), ("resumed", 20)):
            arguments = [*train, f"train.max_steps={steps}", "allow_config_change=[train.max_steps]"]
            arguments += ["--deepspeed_config", f"ds_{config.variant.precision}.json", "--run_dir", str(work / run)]
            run_command(work, "-m", *module_command("train_gan"), *arguments)
        weights = [_last_weights(work / run) for run in ("straight", "resumed")]
    # Equal to the bit where every kernel repeats, as on a CPU and an H100.
    return [Check("weights, straight against resumed", relative_distance(weights[1], weights[0]), 1e-5)]


def _last_weights(run_dir: Path) -> dict[str, Tensor]:
    networks = {name: read_weights(run_dir, name)[0] for name in ("critic", "generator")}
    return {f"{name}.{key}": x for name, weights in networks.items() for key, x in weights.items()}


PARTS: dict[str, Any] = {
    "step against float64": step_against_float64,
    "ZeRO": zero_stages,
    "overflow": overflow,
    "bf16": bf16_run,
    "sampling": sampling,
    "U-Net": unet,
    "flow": flow,
    "resume": resume,
}
