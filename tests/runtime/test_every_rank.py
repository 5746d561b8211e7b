"""What every rank does for itself, such as copying shards to its node's disk: one that fails ends all."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vesselgan.core.errors import ResourceError
from vesselgan.runtime.distributed import World, run_on_all_ranks


def rank_main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = World(rank, 2, rank, torch.device("cpu"))

    def fail_on_one() -> None:
        if rank == 1:
            raise ResourceError("the disk of node 2 is full")

    found = [run_on_all_ranks(world, lambda: 10 * rank)]
    try:
        run_on_all_ranks(world, fail_on_one)
    except ResourceError as error:
        found += [str(error), error.is_printed_elsewhere]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_one_ranks_error_is_everybodys_told_once(tmp_path):
    mp.start_processes(rank_main, (tmp_path,), nprocs=2, start_method="forkserver")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert found == [[0, "the disk of node 2 is full", True], [10, "the disk of node 2 is full", False]]


def test_alone_it_is_the_call():
    assert run_on_all_ranks(World(0, 1, 0, torch.device("cpu")), lambda: 7) == 7
