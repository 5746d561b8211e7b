"""Ranks: when a process may be alone, and that many fail as one."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from data_prep import mpi
from data_prep.mpi import MpiWorld
from vesselgan.core.errors import DataError, ResourceError, UsageError

from .conftest import python_on_ranks, run


def connect(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let mpi4py connect `size` ranks."""
    package = ModuleType("mpi4py")
    package.MPI = SimpleNamespace(COMM_WORLD=SimpleNamespace(rank=0, size=size))
    monkeypatch.setitem(sys.modules, "mpi4py", package)


@pytest.mark.parametrize("size", [None, 7])
def test_without_a_launcher_mpi_is_not_touched(monkeypatch, size):
    if size is None:
        monkeypatch.setitem(sys.modules, "mpi4py", None)  # import mpi4py raises ImportError
    else:
        connect(monkeypatch, size)  # to import it is to start it
    assert mpi.get_world({}) == MpiWorld(0, 1, None)
    assert mpi.get_world({"SLURM_NTASKS": "1", "PMI_SIZE": "1", "MPI_LOCALNRANKS": "no"}) == MpiWorld(0, 1, None)


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_without_a_library_several_ranks_are_refused(monkeypatch, variable):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ResourceError, match=f"{variable}=2"):
        mpi.get_world({variable: "2"})


def test_slurm_tasks_without_mpi_are_refused(monkeypatch):
    srun = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}
    connect(monkeypatch, 1)
    with pytest.raises(UsageError, match="4 tasks .* MPI connects 1"):
        mpi.get_world(srun)
    connect(monkeypatch, 2)
    with pytest.raises(UsageError, match="4 tasks .* MPI connects 2"):
        mpi.get_world(srun)
    assert mpi.get_world({"SLURM_STEP_NUM_TASKS": "2"})[:2] == (0, 2)
    assert mpi.get_world({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"})[:2] == (0, 2)


def test_a_batch_script_may_start_mpiexec(monkeypatch):
    connect(monkeypatch, 1)
    assert mpi.get_world({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"})[:2] == (0, 1)
    connect(monkeypatch, 8)  # mpiexec starts one helper per node through srun, and that one the ranks
    assert mpi.get_world({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "8"})[:2] == (0, 8)


def test_a_launcher_may_name_the_rank_alone(monkeypatch):
    connect(monkeypatch, 8)
    assert mpi.get_world({"ALPS_APP_PE": "3"})[:2] == mpi.get_world({"PMIX_RANK": "0"})[:2] == (0, 8)


def test_the_launcher_of_another_mpi_is_refused(monkeypatch):
    connect(monkeypatch, 1)
    with pytest.raises(UsageError, match="OMPI_COMM_WORLD_SIZE=2"):
        mpi.get_world({"OMPI_COMM_WORLD_SIZE": "2"})


def test_one_process_meets_its_own_error():
    world = MpiWorld(0, 1, None)
    assert mpi.gather_results(world, lambda: 7) == [7] and mpi.run_on_rank0(world, lambda: 8) == 8

    def fail() -> None:
        raise DataError("bad")

    with pytest.raises(DataError, match="^bad$"):
        mpi.gather_results(world, fail)


@pytest.mark.parametrize(("count", "size"), [(0, 3), (2, 3), (7, 3), (9, 3), (5, 1)])
def test_shares_are_whole_ordered_and_even(count, size):
    parts = [mpi.partition(MpiWorld(rank, size, None), list(range(count))) for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_neighbours_of_unequal_weight_are_shared_by_weight():
    items = [50, 250, 250]
    assert [mpi.partition(MpiWorld(r, 2, None), items, weight=float) for r in range(2)] == [[50, 250], [250]]


def on_two_ranks(tmp_path: Path, work: str) -> subprocess.CompletedProcess:
    """Run `work(config, world)`, given as source, under the real mpiexec."""
    script = tmp_path / "job.py"
    head = "import sys, time\nfrom data_prep import mpi\nfrom vesselgan.core.errors import DataError, UsageError\n"
    script.write_text(f"{head}{work}\nmpi.run(lambda: 'settings', work)\n")
    return run([*python_on_ranks(2), str(script)])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("DataError('sub-7 is broken')", 3, "error: sub-7 is broken\n"),
        ("MemoryError('Unable to allocate 8 GiB')", 6, "error: out of memory on rank 1"),
    ],
)
def test_one_ranks_error_ends_both(tmp_path, error, code, said):
    fail = f"def fail(world):\n    if world.rank == 1: raise {error}\n"
    work = "def work(config, world):\n    mpi.gather_results(world, lambda: fail(world))\n    print('went on')"
    done = on_two_ranks(tmp_path, fail + work)
    assert (done.returncode, done.stdout) == (code, "") and done.stderr.startswith(said)


def test_unconnected_tasks_of_slurm_are_exit_2(tmp_path, monkeypatch):
    pytest.importorskip("mpi4py.MPI")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    done = run([sys.executable, "-m", "data_prep.build_shards", "data=phantom", f"work_dir={tmp_path / 'work'}"])
    assert (done.returncode, done.stdout) == (2, "") and "SLURM_STEP_NUM_TASKS" in done.stderr
    assert not (tmp_path / "work").exists()


def test_ctrl_c_is_one_line_and_exit_130(capsys, monkeypatch):
    monkeypatch.setattr(mpi, "get_world", lambda: MpiWorld(0, 1, None))

    def work(config: str, world: MpiWorld) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        mpi.run(lambda: "settings", work)
    assert end.value.code == 130 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_failing_rank_leaves_no_rank_waiting(tmp_path):
    for what, code in (("DataError('lost')", 3), ("KeyError('lost')", 1)):
        work = f"def work(config, world):\n    if world.rank == 1: raise {what}\n    world.comm.barrier()"
        done = on_two_ranks(tmp_path, work)
        assert done.returncode == code and "lost" in done.stderr, done.stderr


def test_rank_0_counts_the_progress_of_all_ranks(tmp_path):
    done = on_two_ranks(
        tmp_path,
        "def work(config, world):\n"
        "    with mpi.ProgressBar(world, 60, description='shards', unit='pair', line_every_s=0.0) as progress:\n"
        "        for _ in range(20 if world.rank == 0 else 40):\n"
        "            progress.update()\n"
        "            time.sleep(0.005 if world.rank == 0 else 0.02)\n"
        "    if world.rank == 0: print(config, progress.num_done)",
    )
    *lines, last = done.stdout.splitlines()
    assert (done.returncode, last) == (0, "settings 60"), done.stderr
    counts = [int(line.split()[1]) for line in lines]
    assert counts == sorted(counts) and len(set(counts)) > 20  # on the way, not at the end alone
