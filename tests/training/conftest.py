"""A work folder with a tiny shard set, and runs of the real entry script on it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing

from vesselgan.formats.shards import Record, write_manifest, write_shard

PATCH_SHAPE = (32, 32, 16)
Train = Callable[..., subprocess.CompletedProcess]
TrainHere = Callable[..., dict | None]


class StillEngine:
    """As much of an engine as a step calls; it updates nothing."""

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        self.name, self.module, self.device, self.dtype = name, module, torch.device("cpu"), torch.float32
        self.micro_batches, self.gradient_norm = 1, torch.zeros(())

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> bool:
        return True


def tiny_records(count: int) -> list[Record]:
    """Noise with one bright bar each, labelled; the brain is where x is large."""
    source = np.random.default_rng(7)
    records = []
    tissue = np.broadcast_to(np.repeat([0, 1, 2], [8, 8, 16])[:, None, None], PATCH_SHAPE).astype(np.uint8)
    for i in range(count):
        label = np.zeros(PATCH_SHAPE, np.uint8)
        row = int(source.integers(4, 28))
        label[row - 1 : row + 2, :, 7:10] = 1
        image = np.clip(60 + 10 * source.standard_normal(PATCH_SHAPE) + 150 * label, 0, 255).astype(np.float32)
        records.append(Record(image, label, f"sub-{i % 3}", (0, 0, 0), "grid", (0.0, 1000.0), 0, None, tissue))
    return records


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """work/ with work/phantom/shards/gan/train: 24 patches of three subjects."""
    work = tmp_path_factory.mktemp("work")
    folder = work / "phantom" / "shards" / "gan" / "train"
    folder.mkdir(parents=True)
    how = {"patch_shape": PATCH_SHAPE, "origin": "real"}
    shard = write_shard(folder / "shard_0000.h5", tiny_records(24), **how)
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    affine[:3, 3] = -61.5, -80.25, 12.75
    geometry = {"spacing_mm": [1.0, 1.0, 1.5], "affine": affine.tolist(), "shape": list(PATCH_SHAPE)}
    subjects = {f"sub-{i}": geometry | {"patient": f"sub-{i}"} for i in range(3)}
    facts = {"subjects": subjects, "spacing_mm": (1.0, 1.0, 1.5), "percentiles": (0.0, 99.99), "extra": {}}
    write_manifest(folder, shards=[shard], **how, **facts)
    return work


@pytest.fixture(scope="session")
def train(work_dir: Path, repository: Path) -> Train:
    """Run the command in a process of its own, on one rank or, through the deepspeed launcher, on several."""

    def run(
        run_dir: Path, *words: str, ranks: int = 1, script: str = "tests/training/quick_train.py"
    ) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD_SIZE"))}
        environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        python = Path(sys.executable)
        start = [str(python)]
        if ranks > 1:
            port = str(29500 + os.getpid() % 999)
            start = [str(python.parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", port]
            environment["PATH"] = f"{python.parent}:{environment['PATH']}"
        command = [*start, str(repository / script), "--run_dir", str(run_dir), f"work_dir={work_dir}"]
        command += ["variant.width=32", "train.num_workers=0", "train.image_every=1000", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    return run


def train_quickly(work_dir: Path, run_dir: Path, words: Sequence[str]) -> None:
    """Train in this process."""
    from vesselgan.config.compose import parse
    from vesselgan.training.run import train_gan

    fixed = [f"work_dir={work_dir}", "variant.width=8", "train.batch_size=2", "train.num_workers=0"]
    fixed += ["train.image_every=1000", "train.log_every=1", "runtime.device=cpu"]
    train_gan(parse("train_gan", None, [*fixed, *words, "--run_dir", str(run_dir)]))


def end_of(run_dir: Path) -> dict | None:
    """What finished.json says; None without one."""
    finished = run_dir / "finished.json"
    return json.loads(finished.read_text()) if finished.exists() else None


@pytest.fixture
def train_here(work_dir: Path, afresh: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> TrainHere:
    """Train in this process, on one rank; gives what finished.json says, None without one."""
    from .quick_train import QUICK

    for patch in QUICK:
        monkeypatch.setattr(*patch)

    def run(run_dir: Path, *words: str) -> dict | None:
        afresh()
        train_quickly(work_dir, run_dir, words)
        return end_of(run_dir)

    return run


def rank_main(rank: int, port: int, work_dir: Path, run_dir: Path, words: Sequence[str]) -> None:
    from .quick_train import QUICK

    for patch in QUICK:
        setattr(*patch)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({"DS_ACCELERATOR": "cpu"} | {name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    train_quickly(work_dir, run_dir, words)


@pytest.fixture(scope="session")
def train_on_two(work_dir: Path) -> TrainHere:
    """As `train_here`, on two ranks without a launcher."""

    def run(run_dir: Path, *words: str) -> dict | None:
        given = (free_port(), work_dir, run_dir, words)
        multiprocessing.start_processes(rank_main, given, nprocs=2, start_method="forkserver")
        return end_of(run_dir)

    return run
