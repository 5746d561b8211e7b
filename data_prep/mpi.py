"""One process or many: the only module that knows MPI.

Start many with `mpiexec -n N python -m mpi4py -m vesselgan COMMAND ...`; without `-m mpi4py` a crash of one rank leaves
the others waiting. Ranks fail together: an error of one is gathered, printed once by rank 0, and ends them all.
"""

import fcntl
import os
import sys
import termios
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TextIO, TypeVar

from vesselgan.core import console
from vesselgan.core.console import log
from vesselgan.core.errors import ResourceError, UsageError, VesselganError, system_failures

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

Result = TypeVar("Result")
Item = TypeVar("Item")

# Where launchers tell their ranks how many there are.
LAUNCHER_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "PALS_SIZE", "MV2_COMM_WORLD_SIZE")
# Where launchers tell a rank which it is, some of them without the number.
RANK_VARIABLES = (
    "PMI_RANK",
    "PMIX_RANK",
    "OMPI_COMM_WORLD_RANK",
    "ALPS_APP_PE",
    "FLUX_TASK_RANK",
    "JSM_NAMESPACE_RANK",
)
# Set by srun for its tasks. SLURM_NTASKS does not tell: a batch script has it too, and is one process. mpiexec may
# start its ranks through srun, several to a task.
STEP_TASKS = "SLURM_STEP_NUM_TASKS"
PROGRESS_TAG = 11
INTERRUPTED = 130  # a shell's code for a command that Ctrl-C ended


class MpiWorld(NamedTuple):
    """The ranks of this job."""

    rank: int
    size: int
    comm: "Comm | None"
    """None: one process, no MPI."""


class RanksFailed(VesselganError):
    """The errors of any ranks, the same on all of them; rank 0 prints it."""

    def __init__(self, errors: Mapping[int, VesselganError]) -> None:
        messages = dict.fromkeys(str(error) for _, error in sorted(errors.items()))
        super().__init__("\n       ".join(messages))
        self.exit_code = errors[min(errors)].exit_code


def get_world(environment: Mapping[str, str] | None = None) -> MpiWorld:
    """Join the other ranks; one process, which leaves MPI alone, where no launcher speaks of ranks.

    Login nodes abort a process that starts MPI outside a job. UsageError when a launcher started more ranks than MPI
    connected (each would do everything); ResourceError when it started several and mpi4py finds no MPI library.
    """
    environment = os.environ if environment is None else environment
    variables = (*LAUNCHER_VARIABLES, STEP_TASKS)
    sizes = {name: int(environment[name]) for name in variables if environment.get(name, "").isdigit()}
    num_ranks = max(sizes.values(), default=1)
    if num_ranks == 1 and not any(name in environment for name in RANK_VARIABLES):
        return MpiWorld(0, 1, None)
    shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        if num_ranks > 1:
            raise ResourceError(
                f"{shown} say several ranks, but mpi4py has no MPI library ({str(error).splitlines()[0]}); "
                "load the site's MPI or install one: pip install mpich"
            ) from error
        return MpiWorld(0, 1, None)
    comm = MPI.COMM_WORLD
    if sizes.get(STEP_TASKS, 1) > comm.size:
        raise UsageError(
            f"Slurm started {sizes[STEP_TASKS]} tasks ({STEP_TASKS}) but MPI connects {comm.size}: each would do all "
            "the work; start with srun --mpi=pmi2 (srun --mpi=list names what there is), or ask for --ntasks=1"
        )
    if comm.size == 1 and num_ranks > 1:
        raise UsageError(
            f"{shown} say several ranks but MPI connects only this one: the launcher belongs to another MPI "
            "than mpi4py's; use the mpiexec of the environment that mpi4py is installed in"
        )
    return MpiWorld(comm.rank, comm.size, comm if comm.size > 1 else None)


def run(configure: Callable[[], Result], work: Callable[[Result, MpiWorld], None]) -> None:
    """`work` with what `configure` returns, on every rank; ends the process by the rules of vesselgan.core.errors."""
    comm, rank = None, 0
    console.set_up()
    try:
        config, config_error = None, None
        try:
            config = configure()
        except VesselganError as error:
            config_error = error
        world = get_world()
        comm, rank = world.comm, world.rank
        console.set_rank(rank)
        _gather(world, None, config_error)
        with system_failures():
            work(config, world)  # type: ignore[arg-type]  # _gather raises unless there is a config
    except VesselganError as error:
        is_shared = isinstance(error, RanksFailed)
        if not is_shared or rank == 0:
            log.error(str(error))
        _exit(comm, error.exit_code, abort=not is_shared)
    except KeyboardInterrupt:
        log.warning("stopped; nothing incomplete is left, and the same command resumes")
        _exit(comm, INTERRUPTED, abort=True)
    except Exception:
        if comm is None:
            raise
        traceback.print_exc()  # as mpi4py would, but read before the end
        _exit(comm, 1, abort=True)


def gather_results(world: MpiWorld, call: Callable[[], Result]) -> list[Result]:
    """`call` on every rank; the results in the order of ranks, on every rank. An error of one rank is raised on all."""
    try:
        return _gather(world, call(), None)
    except RanksFailed:
        raise
    except VesselganError as error:
        return _gather(world, None, error)
    except MemoryError as error:
        text = f"out of memory on rank {world.rank} ({error}); start fewer ranks on a node, or ask for more memory"
        return _gather(world, None, ResourceError(text))


def run_on_rank0(world: MpiWorld, call: Callable[[], Result]) -> Result:
    """`call` on rank 0 alone; its result, or its error, on every rank."""
    return gather_results(world, lambda: call() if world.rank == 0 else None)[0]  # type: ignore[return-value]


def partition(
    world: MpiWorld, items: Sequence[Item], *, weight: Callable[[Item], float] = lambda item: 1
) -> list[Item]:
    """This rank's slice of `items`: contiguous, and as nearly the same weight on every rank as that allows."""
    weights = [weight(item) for item in items]
    total, before, mine = sum(weights), 0.0, []
    for item, own in zip(items, weights, strict=True):
        if int((before + own / 2) * world.size / total) == world.rank:
            mine.append(item)
        before += own
    return mine


def map_items(
    world: MpiWorld, items: Sequence[Item], call: Callable[[Item], Result], *, description: str, unit: str = "subject"
) -> list[Result]:
    """`call` on every item, each on one rank, with a progress bar; the results in the items' order, on every rank."""

    def map_mine() -> list[Result]:
        results = []
        with ProgressBar(world, len(items), description=description, unit=unit) as progress:
            for item in partition(world, items):
                results.append(call(item))
                progress.update()
        return results

    return [result for of_rank in gather_results(world, map_mine) for result in of_rank]


def _gather(world: MpiWorld, result: Any, error: VesselganError | None) -> list[Any]:
    if world.comm is None:
        if error is not None:
            raise error
        return [result]
    outcomes = world.comm.allgather((result, error))
    errors = {rank: rank_error for rank, (_, rank_error) in enumerate(outcomes) if rank_error is not None}
    if errors:
        raise RanksFailed(errors)
    return [rank_result for rank_result, _ in outcomes]


class ProgressBar:
    """How much of `total` all ranks have done, shown by rank 0: tqdm on a terminal, a line every so often elsewhere.

    As a context: on leaving, rank 0 keeps counting until all ranks are done.
    """

    def __init__(self, world: MpiWorld, total: int, *, description: str, unit: str, line_every_s: float = 10.0) -> None:
        self.comm, self.is_rank0 = world.comm, world.rank == 0
        self.total, self.description, self.line_every_s = total, description, line_every_s
        self.num_done, self.num_unsent, self.num_received = 0, 0, 0
        self.sends: list[Any] = []
        self.started_s = self.updated_s = time.monotonic()
        self.bar: Any = None
        if self.is_rank0 and total and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=description, unit=unit, file=sys.stderr)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if self.comm is not None and (kind is None or issubclass(kind, (VesselganError, MemoryError))):
            self._send(self.comm)
            barrier = self.comm.Ibarrier()
            while not barrier.Test():
                self._receive()
                time.sleep(0.01)
            # Every message has been sent by now; rank 0 receives what is still on its way.
            num_sent = sum(self.comm.allgather(len(self.sends)))
            while self.is_rank0 and self.num_received < num_sent:
                self._receive()
            for request in self.sends:
                request.Wait()
        if self.bar is not None:
            self.bar.close()

    def update(self, count: int = 1) -> None:
        """Count `count` more pieces of this rank's work as done."""
        if self.is_rank0:
            self._add(count)
            self._receive()
        elif self.comm is not None:
            self.num_unsent += count
            if time.monotonic() - self.updated_s > 0.5:
                self._send(self.comm)

    def _send(self, comm: "Comm") -> None:
        if self.num_unsent:
            self.sends.append(comm.isend(self.num_unsent, dest=0, tag=PROGRESS_TAG))
            self.num_unsent, self.updated_s = 0, time.monotonic()

    def _receive(self) -> None:
        while self.is_rank0 and self.comm is not None and self.comm.iprobe(tag=PROGRESS_TAG):
            self.num_received += 1
            self._add(self.comm.recv(tag=PROGRESS_TAG))

    def _add(self, count: int) -> None:
        self.num_done += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.monotonic() - self.updated_s > self.line_every_s:
            self.updated_s = time.monotonic()
            left_s = (self.updated_s - self.started_s) * (self.total - self.num_done) / self.num_done
            line = f"{self.description}: {self.num_done} of {self.total}, about {left_s:.0f} s left"
            log.info(line)


def _exit(comm: "Comm | None", exit_code: int, *, abort: bool) -> NoReturn:
    """End MPI, then the process: all ranks in order or, where one fails alone (`abort`), the others too."""
    if comm is not None:
        from mpi4py import MPI

        if abort:
            _wait_until_read(sys.stderr)
            comm.Abort(exit_code)
        comm.barrier()  # the first rank to leave ends the others: not before rank 0 has printed the error
        MPI.Finalize()
    sys.exit(exit_code)


def _wait_until_read(stream: TextIO, timeout_s: float = 5.0) -> None:
    """Wait until the launcher has read what was printed: Abort has it kill everything, unread lines included."""
    stream.flush()
    end_s = time.monotonic() + timeout_s
    try:
        while time.monotonic() < end_s:
            if not int.from_bytes(fcntl.ioctl(stream.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder):
                break
            time.sleep(0.01)
    except OSError:
        return  # a file or a terminal has no reader
    time.sleep(0.2)  # from the launcher's pipe to its own output
