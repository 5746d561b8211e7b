"""One process or many: the only module that knows MPI.

Start many with `mpiexec -n N python -m mpi4py -m data_prep.VERB ...`; without `-m mpi4py` a crash of one rank leaves
the others waiting. Ranks fail together: what goes wrong on one is gathered, said once by rank 0, and ends them all.
"""

import fcntl
import os
import sys
import termios
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeVar

from vesselgan.core.errors import ResourceError, UsageError, VesselganError

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

Result = TypeVar("Result")
Item = TypeVar("Item")

# What launchers tell their ranks about how many there are.
LAUNCHER_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "PALS_SIZE", "MV2_COMM_WORLD_SIZE")
# What srun tells its tasks. SLURM_NTASKS says no such thing: a batch script has it too, and is one process. mpiexec may
# start its ranks through srun, several to a task.
STEP_TASKS = "SLURM_STEP_NUM_TASKS"
_PROGRESS_TAG = 11
INTERRUPTED = 130  # a shell's code for a command that Ctrl-C ended


class World(NamedTuple):
    """This process among its fellows."""

    rank: int
    size: int
    comm: "Comm | None"
    """None: one process, no MPI."""


class RanksFailed(VesselganError):
    """What went wrong on any rank, the same on all of them; rank 0 alone says it."""

    def __init__(self, errors: Mapping[int, VesselganError]) -> None:
        messages: dict[str, None] = dict.fromkeys(str(error) for _, error in sorted(errors.items()))
        super().__init__("\n       ".join(messages))
        self.exit_code = errors[min(errors)].exit_code


def world(environment: Mapping[str, str] | None = None) -> World:
    """Join the other ranks; alone when nothing says that there are others.

    UsageError when a launcher started more ranks than MPI connected (each would do everything); ResourceError when a
    launcher started several and mpi4py finds no MPI library.
    """
    environment = os.environ if environment is None else environment
    variables = (*LAUNCHER_VARIABLES, STEP_TASKS)
    claimed = {name: int(environment[name]) for name in variables if environment.get(name, "").isdigit()}
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        if max(claimed.values(), default=1) > 1:
            raise ResourceError(
                f"{_named(claimed)} say several ranks, but mpi4py has no MPI library ({str(error).splitlines()[0]}); "
                "load the site's MPI or install one: pip install mpich"
            ) from error
        return World(0, 1, None)
    comm = MPI.COMM_WORLD
    if claimed.get(STEP_TASKS, 1) > comm.size:
        raise UsageError(
            f"Slurm started {claimed[STEP_TASKS]} tasks ({STEP_TASKS}) but MPI connects {comm.size}: each would do all "
            "the work; "
            "start with srun --mpi=pmi2 (srun --mpi=list names what there is), or ask for --ntasks=1"
        )
    if comm.size == 1 and max(claimed.values(), default=1) > 1:
        raise UsageError(
            f"{_named(claimed)} say several ranks but MPI connects only this one: the launcher belongs to another MPI "
            "than mpi4py's; use the mpiexec of the environment that mpi4py is installed in"
        )
    return World(comm.rank, comm.size, comm if comm.size > 1 else None)


def run(configure: Callable[[], Result], work: Callable[[Result, World], None]) -> None:
    """`work` with what `configure` returns, on every rank; ends the process by the rules of vesselgan.core.errors."""
    here = None
    try:
        try:
            config, error = configure(), None
        except VesselganError as caught:
            config, error = None, caught
        here = world()
        _gather(here, None, error)
        work(config, here)
    except VesselganError as error:
        is_shared = isinstance(error, RanksFailed)
        if not is_shared or here.rank == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        if here is not None and here.comm is not None:
            _leave(here, error.exit_code, alone=not is_shared)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; nothing half-made is left, and the same command goes on", file=sys.stderr, flush=True)
        if here is not None and here.comm is not None:
            _leave(here, INTERRUPTED, alone=True)
        sys.exit(INTERRUPTED)
    except Exception:
        if here is None or here.comm is None:
            raise
        traceback.print_exc()  # as mpi4py would, but heard before the end
        _leave(here, 1, alone=True)


def together(here: World, call: Callable[[], Result]) -> list[Result]:
    """`call` on every rank; its results in the order of ranks, on every rank. One rank's error is every rank's."""
    try:
        return _gather(here, call(), None)
    except RanksFailed:
        raise
    except VesselganError as error:
        return _gather(here, None, error)
    except MemoryError as error:
        text = f"out of memory on rank {here.rank} ({error}); start fewer ranks on a node, or ask for more memory"
        return _gather(here, None, ResourceError(text))


def run_on_rank0(here: World, call: Callable[[], Result]) -> Result:
    """`call` on rank 0 alone; its result, or its error, on every rank."""
    return together(here, lambda: call() if here.rank == 0 else None)[0]


def partition(here: World, items: Sequence[Item], *, weight: Callable[[Item], float] = lambda item: 1) -> list[Item]:
    """This rank's part of `items`: neighbours stay together, and the parts weigh as nearly the same as that allows."""
    weights = [weight(item) for item in items]
    total, before, mine = sum(weights), 0, []
    for item, own in zip(items, weights, strict=True):
        if int((before + own / 2) * here.size / total) == here.rank:
            mine.append(item)
        before += own
    return mine


def _gather(here: World, result: Any, error: VesselganError | None) -> list[Any]:
    if here.comm is None:
        if error is not None:
            raise error
        return [result]
    outcomes = here.comm.allgather((result, error))
    errors = {rank: failed for rank, (_, failed) in enumerate(outcomes) if failed is not None}
    if errors:
        raise RanksFailed(errors)
    return [done for done, _ in outcomes]


class Progress:
    """How much of `total` all ranks have done, shown by rank 0: a bar on a terminal, now and then a line elsewhere.

    `advance` after each piece of work on any rank. As a context: on leaving, rank 0 keeps counting until all are done.
    """

    def __init__(self, here: World, total: int, *, what: str, unit: str, line_every_s: float = 10.0) -> None:
        self.here, self.total, self.what, self.unit, self.line_every_s = here, total, what, unit, line_every_s
        self.done, self.pending, self.received = 0, 0, 0
        self.sends = []
        self.started_s = self.spoken_s = time.monotonic()
        self.bar = None

    def __enter__(self) -> "Progress":
        if self.here.rank == 0 and self.total and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.total, desc=self.what, unit=self.unit, file=sys.stderr)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.here.comm is not None and (kind is None or issubclass(kind, VesselganError)):
            self._send()
            arrived = self.here.comm.Ibarrier()
            while not arrived.Test():
                self._receive()
                time.sleep(0.01)
            # Every message has been sent by now; rank 0 takes what is still on its way.
            sent = self.here.comm.gather(len(self.sends))
            while self.here.rank == 0 and self.received < sum(sent[1:]):
                self._receive()
            for request in self.sends:
                request.Wait()
        if self.bar is not None:
            self.bar.close()

    def advance(self, count: int = 1) -> None:
        """`count` more pieces are done here."""
        if self.here.rank == 0:
            self._add(count)
            self._receive()
        else:
            self.pending += count
            if time.monotonic() - self.spoken_s > 0.5:
                self._send()

    def _send(self) -> None:
        if self.here.rank != 0 and self.pending:
            self.sends.append(self.here.comm.isend(self.pending, dest=0, tag=_PROGRESS_TAG))
            self.pending, self.spoken_s = 0, time.monotonic()

    def _receive(self) -> None:
        while self.here.rank == 0 and self.here.comm is not None and self.here.comm.iprobe(tag=_PROGRESS_TAG):
            self.received += 1
            self._add(self.here.comm.recv(tag=_PROGRESS_TAG))

    def _add(self, count: int) -> None:
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.monotonic() - self.spoken_s > self.line_every_s:
            self.spoken_s = time.monotonic()
            rest_s = (self.spoken_s - self.started_s) * (self.total - self.done) / self.done
            print(f"{self.what}: {self.done} of {self.total}, about {rest_s:.0f} s left", file=sys.stderr, flush=True)


def _leave(here: World, exit_code: int, *, alone: bool) -> None:
    """End MPI before the process ends with an error: all ranks in order, or, where one fails alone, the others too."""
    from mpi4py import MPI

    if alone:
        _wait_until_read(sys.stderr)
        here.comm.Abort(exit_code)
    here.comm.barrier()  # the first rank to leave ends the others: not before rank 0 has spoken
    MPI.Finalize()


def _wait_until_read(stream: TextIO, timeout_s: float = 5.0) -> None:
    """Return when the launcher has taken what was printed: Abort has it kill everything, unread lines included."""
    stream.flush()
    end_s = time.monotonic() + timeout_s
    try:
        while time.monotonic() < end_s:
            if not int.from_bytes(fcntl.ioctl(stream.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder):
                break
            time.sleep(0.01)
    except OSError:
        return  # a file or a terminal: written is written
    time.sleep(0.2)  # from the launcher's hand to its own output


def _named(claimed: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={count}" for name, count in claimed.items())
