"""What every rank does for itself, such as copying shards to its node's disk: one that fails ends all."""

import subprocess
import sys
from pathlib import Path

import torch

from vesselgan.runtime.distributed import World, run_on_all_ranks

PROGRAM = """
import sys
import torch, torch.distributed as dist
from vesselgan.core.errors import DataError, ResourceError
from vesselgan.runtime.distributed import World, run_on_all_ranks
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
world = World(rank, 2, rank, torch.device("cpu"))
told = [run_on_all_ranks(world, lambda: 10 * rank)]
def call():
    if rank == 1:
        raise ResourceError("the disk of node 2 is full")
try:
    run_on_all_ranks(world, call)
except ResourceError as error:
    told += [str(error), error.is_reported]
print(told)
dist.destroy_process_group()
"""


def test_each_rank_has_its_own_result_and_one_ranks_error_is_everybodys_told_once(tmp_path: Path) -> None:
    words = [[sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store")] for rank in (0, 1)]
    ranks = [subprocess.Popen(word, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for word in words]
    said = [rank.communicate(timeout=240) for rank in ranks]
    assert [out for out, _ in said] == [
        "[0, 'the disk of node 2 is full', True]\n",
        "[10, 'the disk of node 2 is full', False]\n",
    ], said


def test_alone_it_is_the_call() -> None:
    assert run_on_all_ranks(World(0, 1, 0, torch.device("cpu")), lambda: 7) == 7
