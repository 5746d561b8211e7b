"""Commands as processes: each in a session of its own, its output in a log, nothing of it left behind.

Standard library alone.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from vesselgan.core.errors import ResourceError

PORT = "{port}"
"""In a command: a free port, found when it starts."""
SECONDS_TO_STOP, SECONDS_TO_DIE = 15.0, 5.0
# What another launcher left in the environment would make our processes ranks of its own.
FOREIGN_RANKS = re.compile(r"(RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_SIZE|MASTER_ADDR|MASTER_PORT|PMI_.*|OMPI_.*)")


def beside_python(program: str) -> str:
    """The `program` of this environment, else of the PATH; ResourceError when there is none."""
    path = Path(sys.executable).parent / program
    found = str(path) if path.is_file() else shutil.which(program)
    if found is None:
        raise ResourceError(f"{program} is not installed: pip install -e '.[mpich]', or load the site's own")
    return found


def run_command(command: tuple[str, ...], log: Path, *, num_ranks: int, head: str) -> int:
    """Run to the end, output appended to `log`, its last line shown behind `head` on a terminal; the exit code.

    The command gets a session of its own and nothing of it outlives this call: a launcher that is told to stop leaves
    its ranks behind, so the whole process group is.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words = [word.replace(PORT, str(free.getsockname()[1])) for word in command]
    started = time.monotonic()
    process = None
    try:
        process = _start(words, log, num_ranks)
        while True:
            try:
                return process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                _show(head, clock(time.monotonic() - started), log)
    finally:
        _show(head, "", None)
        if process is not None:
            end_group(process)


def _start(words: list[str], log: Path, num_ranks: int) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        output.write(f"$ {' '.join(words)}\n".encode())
        output.flush()
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(num_ranks),
            start_new_session=True,
        )


def environment(num_ranks: int) -> dict[str, str]:
    """This process's, without another launcher's ranks, the cores divided over ours."""
    kept = {key: value for key, value in os.environ.items() if not FOREIGN_RANKS.fullmatch(key)}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    kept["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // num_ranks))
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left of the process's group: asked first, then killed."""
    for number, patience in ((signal.SIGTERM, SECONDS_TO_STOP), (signal.SIGKILL, SECONDS_TO_DIE)):
        deadline = time.monotonic() + patience
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


def last_line(log: Path) -> str:
    """The last thing said in `log`; a progress bar overwrites its line, so a return ends one too."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = re.split(rb"[\r\n]+", file.read().strip())
    return lines[-1].decode(errors="replace").strip()


def clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02} s"


def _show(head: str, time_text: str, log: Path | None) -> None:
    """Rewrite the stage's line on a terminal; elsewhere it stays as it was begun."""
    if sys.stdout.isatty():
        line = head + time_text + (f"  {last_line(log)}" if log is not None else "")
        print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
