"""Commands as processes: codes come through, logs are kept, and nothing outlives its launcher."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vesselgan.core import processes
from vesselgan.core.errors import ResourceError

# Every rank writes its process id, then waits for far longer than any test.
RANK = "import os, sys, time\nopen(f'{sys.argv[-1]}/{os.getpid()}', 'w').close()\ntime.sleep(600)\n"
DRIVER = """
import signal, sys
from pathlib import Path
from vesselgan.core import processes
def stop(number, frame): raise SystemExit(128 + number)
signal.signal(signal.SIGTERM, stop)
processes.run_command(tuple(sys.argv[2:]), Path(sys.argv[1]), head="")
"""


def python(code: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *words)


def is_alive(pid: int) -> bool:
    """Alive and not a zombie that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(claim: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if claim():
            return True
        time.sleep(0.05)
    return False


def test_a_command_leaves_code_and_output(tmp_path):
    log = tmp_path / "log"
    code = "import sys; print('to one'); print('to the other', file=sys.stderr); sys.exit(5)"
    for _ in range(2):  # the log is added to
        assert processes.run_command(python(code), log, head="") == 5
    assert [log.read_text().splitlines().count(text) for text in ("to one", "to the other")] == [2, 2]


@pytest.mark.parametrize(
    ("launcher", "lanes", "threads"),
    [((), 1, 8), ((), 2, 4), (("mpiexec", "-n", "2"), 1, 4), (("python", "deepspeed", "--num_gpus", "2"), 2, 2)],
)
def test_lanes_and_ranks_share_the_cores(tmp_path, monkeypatch, launcher, lanes, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    shown = tmp_path / "threads"
    # The launcher's words are read, not run.
    command = (*launcher, *python(f"import os; open({str(shown)!r}, 'w').write(os.environ['OMP_NUM_THREADS'])"))
    monkeypatch.setattr(processes, "_with_ports", lambda words: list(words[len(launcher) :]))
    logs = [tmp_path / f"log-{lane}" for lane in range(lanes)]
    assert processes.run_commands([[command]] * lanes, logs, head="") == [0] * lanes
    assert shown.read_text() == str(threads)


def test_a_port_is_filled_in(tmp_path):
    processes.run_command(
        python("import sys; print(1024 < int(sys.argv[1]) < 65536)", processes.PORT),
        tmp_path / "log",
        head="",
    )
    assert processes.last_line(tmp_path / "log") == "True"


def test_a_command_inherits_no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "PMI_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.setenv(name, "1")
    kept = {"RANKING", "OMPI_MCA_plm", "PMIX_MCA_gds"}
    for name in kept:
        monkeypatch.setenv(name, "kept")
    found = processes.environment(2)
    assert found["OMP_NUM_THREADS"] == "2"
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "PMI_RANK", "OMPI_COMM_WORLD_RANK"} & set(found)
    assert all(found[name] == "kept" for name in kept)
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    # never zero threads, however many ranks share a core
    assert processes.environment(0)["OMP_NUM_THREADS"] == "1"


def test_a_missing_program_is_a_resource_error():
    with pytest.raises(ResourceError, match="no-such-program"):
        processes.beside_python("no-such-program")


def test_what_a_command_leaves_running_is_ended(tmp_path):
    code = f"import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {RANK!r}, {str(tmp_path)!r}])"
    waits = f"{code}\nwhile not [n for n in os.listdir({str(tmp_path)!r}) if n.isdigit()]: time.sleep(0.01)"
    assert processes.run_command(python(waits), tmp_path / "log", head="") == 0
    (pid,) = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert not is_alive(pid)


def test_one_that_ignores_being_asked_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "SECONDS_TO_STOP", 0.3)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)"
    deaf += "; time.sleep(600)"
    process = subprocess.Popen(python(deaf), stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"deaf\n"
    processes.end_group(process)
    assert process.returncode == -signal.SIGKILL


LAUNCHERS = {
    "deepspeed": (sys.executable, "{deepspeed}", "--num_gpus", "2", "--master_port", processes.PORT, "{script}"),
    "mpiexec": ("{mpiexec}", "-n", "2", sys.executable, "{script}"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_do_not_outlive_a_terminated_caller(launcher, tmp_path):
    script, pids = tmp_path / "rank.py", tmp_path / "pids"
    script.write_text(RANK)
    pids.mkdir()
    places = {"{script}": str(script), f"{{{launcher}}}": processes.beside_python(launcher)}
    command = [*(places.get(word, word) for word in LAUNCHERS[launcher]), str(pids)]
    caller = subprocess.Popen(python(DRIVER, str(tmp_path / "log"), *command))
    try:
        # two interpreters that import DeepSpeed come before the ranks
        assert wait_until(lambda: len(list(pids.iterdir())) == 2, 120), (tmp_path / "log").read_text()
        caller.terminate()
        assert caller.wait(timeout=60) == 128 + signal.SIGTERM
        ranks = [int(path.name) for path in pids.iterdir()]
        assert wait_until(lambda: not any(is_alive(pid) for pid in ranks), 5)
    finally:
        caller.kill()
        for path in pids.iterdir():
            if is_alive(int(path.name)):
                os.kill(int(path.name), signal.SIGKILL)
