"""The rates of this machine, for `plan`: probes of the training step, of Adam, of the link between ranks, of loading
and of the file system. One rank alone, then as many as share a node, all at once.
"""

# N batch, C channel, X Y Z voxels

import math
import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from vesselgan.config.schema import Benchmark, Machine
from vesselgan.core.atomic_io import describe, write_text
from vesselgan.core.errors import ResourceError, UsageError
from vesselgan.models.normalisation import BatchNorm3d
from vesselgan.runtime import distributed
from vesselgan.runtime.adam import AdamWithoutMomentum
from vesselgan.runtime.precision import torch_type
from vesselgan.runtime.provenance import collect
from vesselgan.tools.benchmark import loader, step

PROBED_NUMBERS = 16 * 2**20
"""Adam's parameters, and float32 of an all-reduce (64 MiB)."""
SMALL_CALLS = 200
STORAGE_MIB = 256


def run(config: Benchmark) -> dict[str, Any]:
    """The rates, as a row for `configs/machine`; written to config.machine_file where it is named."""
    machine = measure(config)
    if config.machine_file is not None:
        _write(Path(config.machine_file), machine)
    probe = {"variant": config.variant.name, "width": config.variant.width, "precision": config.variant.precision}
    probe |= {"patch_shape": list(config.patch_shape), "batch_size": config.batch_size}
    return {"machine": asdict(machine), "probe": probe}


def measure(config: Benchmark) -> Machine:
    """Rates of this machine with 1 and with config.ranks_per_node ranks (null: a rank per GPU, or per core)."""
    device = distributed.choose_device(config.runtime.device, 0)
    num_devices = torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1
    ranks = config.ranks_per_node or num_devices
    if config.batch_size < 2:
        raise UsageError("batch_size=1: steps of one patch and of batch_size are compared; take 2 or more")
    alone, shared = _probe_ranks(config, 1), _probe_ranks(config, ranks) if ranks > 1 else None
    hardware = collect()["hardware"]
    return Machine(
        description=f"{hardware['gpu'] or hardware['cpu']}, {time.strftime('%Y-%m-%d')}",
        device=device.type,
        ranks_per_node=ranks,
        tflop_per_s=alone["tflop_per_s"],
        tflop_per_s_shared=(shared or alone)["tflop_per_s"],
        overhead_ms=alone["overhead_ms"],
        overhead_ms_shared=(shared or alone)["overhead_ms"],
        update_mparameters_per_s=alone["update_mparameters_per_s"],
        update_mparameters_per_s_shared=(shared or alone)["update_mparameters_per_s"],
        # A machine of one rank has no link to measure; its network stays to be filled in.
        link_gib_per_s=shared["link_gib_per_s"] if shared else float("inf"),
        network_gib_per_s=None,
        call_ms=shared["call_ms"] if shared else 0.0,
        load_mvoxels_per_s=_measure_loading(config),
        storage_mib_per_s=_measure_storage(Path(config.folder) if config.folder else None),
    )


def _probe_ranks(config: Benchmark, size: int) -> dict[str, float]:
    """The slowest of `size` processes that probe at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_probe, args=(config, rank, size, port, queue)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise ResourceError(f"target=machine: a probe of {size} ranks failed, see above")
    rates = [queue.get() for _ in ranks]
    return {name: (max if name.endswith("_ms") else min)(rate[name] for rate in rates) for name in rates[0]}


def _probe(config: Benchmark, rank: int, size: int, port: int, queue: Any) -> None:
    """Put one rank's rates into `queue`."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = distributed.start(config.runtime.device)
    distributed.select_kernels(deterministic=False)
    torch.set_num_threads(config.threads)
    device = world.device
    weights = torch.nn.Parameter(torch.zeros(PROBED_NUMBERS, device=device))
    weights.grad = torch.full_like(weights, 1e-3)
    adam = AdamWithoutMomentum([weights], lr=1e-4, beta2=0.9)
    update_s = _seconds(adam.step, config.repeats, device)
    rates = {"update_mparameters_per_s": PROBED_NUMBERS / 1e6 / update_s}
    if size > 1:
        large, small = weights.grad, torch.zeros(1, device=device)
        sent_bytes = 2 * (size - 1) / size * large.nbytes
        rates["link_gib_per_s"] = sent_bytes / 2**30 / _seconds(lambda: dist.all_reduce(large), config.repeats, device)
        calls_s = _seconds(lambda: [dist.all_reduce(small) for _ in range(SMALL_CALLS)], config.repeats, device)
        rates["call_ms"] = 1e3 * calls_s / SMALL_CALLS
    rates |= rate_and_overhead(*(_step_without(config, batch, device, rates) for batch in (1, config.batch_size)))
    queue.put(rates)
    distributed.stop()


def rate_and_overhead(few: tuple[float, float], many: tuple[float, float]) -> dict[str, float]:
    """The line through two steps, each (seconds, 10^12 operations). ResourceError where the larger took no longer."""
    (few_s, few_tflop), (many_s, many_tflop) = few, many
    if many_s <= few_s:
        raise ResourceError(
            f"target=machine: a step took {1e3 * many_s:.1f} ms, one of a single patch {1e3 * few_s:.1f} ms: the "
            "machine is busy with something else, or the patches are too small; repeats=N takes more readings"
        )
    # Where many patches are the slower ones, for want of cache, there is no overhead to see.
    tflop_per_s = max(many_tflop / many_s, (many_tflop - few_tflop) / (many_s - few_s))
    return {"tflop_per_s": tflop_per_s, "overhead_ms": max(0.0, 1e3 * (many_s - many_tflop / tflop_per_s))}


def _step_without(
    config: Benchmark, batch_size: int, device: torch.device, rates: dict[str, float]
) -> tuple[float, float]:
    """Seconds of a step of `batch_size` patches, updates and collective calls taken off, and its 10^12 operations."""
    config = replace(config, batch_size=batch_size)
    engines = step.bare_engines(config, device, torch_type(config.variant.precision))
    once = step.ours(config, device, *engines)
    step_s = _seconds(lambda: once(0), config.repeats, device)
    updated = sum(p.numel() for engine in engines for p in engine.module.parameters() if p.requires_grad)
    norms = sum(isinstance(module, BatchNorm3d) for module in engines[1].module.modules())
    step_s -= updated / 1e6 / rates["update_mparameters_per_s"]
    # Two forwards and a backward, of all ranks together.
    step_s -= 3 * norms * rates.get("call_ms", 0.0) / 1e3
    return step_s, step.our_flop(config) / 1e12


def _seconds(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median wall time of a call, the ranks starting together; two before do not count."""
    times = []
    for number in range(-2, repeats):
        distributed.barrier()
        start = time.perf_counter()
        call()
        step.wait(device)
        if number >= 0:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _measure_loading(config: Benchmark) -> float:
    """10^6 voxels a second of pairs made ready for the GAN by one reader, files in the page cache."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        dataset = loader.phantom_dataset(Path(folder), config)
        pairs = range(config.num_patches)
        seconds = _seconds(lambda: [dataset.read([i]) for i in pairs], config.repeats, torch.device("cpu"))
    return len(pairs) * math.prod(config.patch_shape) / 1e6 / seconds


def _measure_storage(folder: Path | None) -> float:
    """MiB a second of a file that is not in the page cache."""
    with TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "probe"
        block = os.urandom(2**20)
        with path.open("wb") as file:
            for _ in range(STORAGE_MIB):
                file.write(block)
            os.fsync(file.fileno())
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while file.read(2**20):
                pass
            return STORAGE_MIB / (time.perf_counter() - start)


def _write(path: Path, machine: Machine) -> None:
    import yaml

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(asdict(machine), sort_keys=False))
    except OSError as error:
        raise ResourceError(f"machine_file={path}: {describe(error)}; name another file") from error
