"""Commands as processes: each in a session of its own, with a log, and none of its processes left behind.

Standard library alone.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vesselgan.core.errors import ResourceError

PORT = "{port}"
"""In a command: a free port, found when it starts."""
SECONDS_TO_STOP, SECONDS_TO_DIE = 15.0, 5.0
# Variables of another launcher, which would make our processes its ranks. MCA parameters (OMPI_MCA_plm, PMIX_MCA_gds)
# are settings of the site: on some machines Open MPI starts no process without them.
FOREIGN_RANKS = re.compile(
    r"RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_SIZE|MASTER_ADDR|MASTER_PORT|PMI_.*|PMIX_(?!MCA_).*|OMPI_(COMM|UNIVERSE)_.*"
)


def beside_python(program: str) -> str:
    """The path of a program of this environment, else of PATH. Raises ResourceError if there is none."""
    path = Path(sys.executable).parent / program
    executable = str(path) if path.is_file() else shutil.which(program)
    if executable is None:
        raise ResourceError(f"{program} is not installed: pip install 'vesselgan[mpich]', or load the site's own")
    return executable


def run_command(command: tuple[str, ...], log: Path, *, threads: int | None = None, head: str) -> int:
    """As `run_commands`, of one."""
    (code,) = run_commands([[command]], [log], threads=threads, head=head)
    assert code is not None
    return code


def run_commands(
    lanes: Sequence[Sequence[tuple[str, ...]]],
    logs: Sequence[Path],
    *,
    threads: int | None = None,
    head: str,
    has_more_to_do: Callable[[tuple[str, ...]], object] = lambda command: False,
) -> list[int | None]:
    """Runs lanes side by side, the commands of each in order; returns the lanes' exit codes, None for one that was
    ended because another failed.

    has_more_to_do: of a command that ended with 0; what follows in its lane is then not started.
    threads: CPU threads of a process; None: the cores are divided over the lanes, and in each over a launcher's ranks.
    The output of a lane goes to its log, the last line of the first that still runs to the terminal. A launcher that
    gets a signal leaves its ranks behind, so the signal goes to the whole process group.
    """
    started = time.monotonic()
    current, waiting = [lane[0] for lane in lanes], [list(lane[1:]) for lane in lanes]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command, log in zip(current, logs, strict=True):
            processes.append(_start(command, log, len(lanes), threads))
        while True:
            for number, (process, lane) in enumerate(zip(processes, waiting, strict=True)):
                if lane and process.poll() == 0:
                    end_group(process)
                    if has_more_to_do(current[number]):
                        lane.clear()
                        continue
                    current[number] = lane.pop(0)
                    processes[number] = _start(current[number], logs[number], len(lanes), threads)
            running = [log for process, log in zip(processes, logs, strict=True) if process.poll() is None]
            if any(process.returncode for process in processes) or not (running or any(waiting)):
                return [process.returncode for process in processes]
            if not running:  # it ended since the lanes were looked at
                continue
            _show(head, clock(time.monotonic() - started), running[0])
            with contextlib.suppress(subprocess.TimeoutExpired):
                processes[logs.index(running[0])].wait(timeout=0.5)
    finally:
        _show(head, "", None)
        for process in processes:
            end_group(process)


def _with_ports(command: tuple[str, ...]) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return [argument.replace(PORT, str(free.getsockname()[1])) for argument in command]


def ranks_of(command: Sequence[str]) -> int:
    """Processes that a launcher starts for it (`mpiexec -n 2`, `deepspeed --num_gpus 2`), else one."""
    places = (place for place, word in enumerate(command[:4]) if word in ("-n", "--num_gpus"))
    return next((int(command[place + 1]) for place in places), 1)


def _start(command: tuple[str, ...], log: Path, num_lanes: int, threads: int | None) -> subprocess.Popen[bytes]:
    arguments = _with_ports(command)
    threads = threads or len(os.sched_getaffinity(0)) // (num_lanes * ranks_of(command))
    with log.open("ab") as output:
        output.write(f"$ {' '.join(arguments)}\n".encode())
        output.flush()
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(threads),
            start_new_session=True,
        )


def environment(threads: int) -> dict[str, str]:
    """This process's environment without another launcher's variables, with so many CPU threads."""
    variables = {key: value for key, value in os.environ.items() if not FOREIGN_RANKS.fullmatch(key)}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', os.defpath)}"
    variables["OMP_NUM_THREADS"] = str(max(1, threads))
    variables["PYTHONUNBUFFERED"] = "1"
    return variables


def end_group(process: subprocess.Popen[Any]) -> None:
    """Ends what is left of the process group: SIGTERM first, then SIGKILL."""
    for number, seconds in ((signal.SIGTERM, SECONDS_TO_STOP), (signal.SIGKILL, SECONDS_TO_DIE)):
        deadline = time.monotonic() + seconds
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


def last_line(log: Path) -> str:
    """The last line of `log`; a progress bar overwrites its line, so a carriage return ends one too."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = re.split(rb"[\r\n]+", file.read().strip())
    return lines[-1].decode(errors="replace").strip()


def clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02} s"


def _show(head: str, time_text: str, log: Path | None) -> None:
    """Rewrites the line on a terminal."""
    if sys.stdout.isatty():
        line = head + time_text + (f"  {last_line(log)}" if log is not None else "")
        print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
