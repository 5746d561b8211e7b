"""A device or a precision that was asked for, or granted, and is not there: exit 6 with what there is instead."""

import os
import socket
import sys

import pytest
import torch

from vesselgan.core.errors import ResourceError
from vesselgan.runtime import distributed
from vesselgan.runtime.precision import emulation_notice


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


def has_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_without_a_request_the_device_is_found(monkeypatch):
    has_gpus(monkeypatch, 0)
    assert distributed.choose_device("auto", 0) == torch.device("cpu")
    has_gpus(monkeypatch, 2)
    assert distributed.choose_device("auto", 1) == torch.device("cuda", 1)
    assert distributed.choose_device("cpu", 0) == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "granted"), [("cuda", None), ("auto", "SLURM_JOB_GPUS"), ("auto", "SLURM_STEP_GPUS")]
)
def test_a_missing_gpu_is_exit_6(monkeypatch, device, granted):
    has_gpus(monkeypatch, 0)
    if granted:
        monkeypatch.setenv(granted, "0,1")
    with pytest.raises(ResourceError, match="cuda|GPU") as error:
        distributed.choose_device(device, 0)
    assert error.value.exit_code == 6
    assert distributed.choose_device("cpu", 0) == torch.device("cpu")


@pytest.mark.parametrize("on_node", [None, "1"])
def test_more_ranks_than_gpus_are_refused(monkeypatch, on_node):
    # "1": two tasks share the job's one GPU, as srun --ntasks=2 --gres=gpu:1 starts them.
    has_gpus(monkeypatch, 1)
    if on_node:
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", on_node)
    with pytest.raises(ResourceError, match="rank 1"):
        distributed.choose_device("auto", 1)


def test_a_task_takes_its_only_gpu(monkeypatch):
    # What srun --gpus-per-task=1 (or --gpu-bind=single:1) sets in the second of two tasks.
    has_gpus(monkeypatch, 1)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    monkeypatch.setenv("SLURM_STEP_GPUS", "1")
    assert distributed.choose_device("auto", 1) == torch.device("cuda", 0)
    with pytest.raises(ResourceError, match="rank 2"):
        distributed.choose_device("auto", 2)


def test_deepspeed_gets_the_tasks_device(afresh, monkeypatch):
    import deepspeed

    afresh()
    monkeypatch.setattr(distributed, "choose_device", lambda device, local_rank: torch.device("cuda", 0))
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **settings: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"} | place).items():
        monkeypatch.setenv(name, value)
    world = distributed.start("auto")
    assert (world.local_rank, os.environ["LOCAL_RANK"]) == (1, "0")


@pytest.mark.parametrize(("precision", "has_bf16", "faster"), [("fp16", True, "bf16"), ("bf16", False, "fp32")])
def test_an_emulated_precision_names_a_faster_one(monkeypatch, precision, has_bf16, faster):
    monkeypatch.setattr("vesselgan.models.blocks._cpu_has_bfloat16", lambda: has_bf16)
    cpu, words = torch.device("cpu"), {"program": "train x=1", "key": "variant.precision"}
    notice = emulation_notice(precision, cpu, **words)
    assert f"train x=1 --deepspeed_config ds_{faster}.json variant.precision={faster}" in notice
    assert emulation_notice(faster, cpu, **words) is None


def test_a_single_rank_needs_no_port(afresh, monkeypatch):
    afresh()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        # Again without leaving: a benchmark starts once for each candidate.
        assert distributed.start("cpu").size == distributed.start("cpu").size == 1
        distributed.stop()


def test_without_deepspeed_it_is_exit_6(afresh, monkeypatch):
    afresh()
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ResourceError, match="install.* deepspeed") as error:
        distributed.start("cpu")
    assert error.value.exit_code == 6


def test_gradients_wait_no_longer_than_others(tiny):
    from deepspeed.utils import groups

    # A group of DeepSpeed's own would wait for torch's half hour.
    assert tiny.engine().deepspeed.seq_data_parallel_group is torch.distributed.group.WORLD
    distributed.stop()
    assert groups._WORLD_GROUP is None


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_are_tried_unless_they_must_repeat(deterministic):
    with torch.backends.cudnn.flags():
        distributed.select_kernels(deterministic=deterministic)
        assert torch.backends.cudnn.deterministic is deterministic
        assert torch.backends.cudnn.benchmark is not deterministic


def test_joining_the_ranks_leaves_the_kernels(afresh):
    # Segmentation joins too, and its volumes must not depend on which kernel was fastest today.
    afresh()
    with torch.backends.cudnn.flags(benchmark=False, deterministic=False):
        distributed.start("cpu")
        assert not torch.backends.cudnn.benchmark
