"""A benchmark that is asked to stop takes what it has started with it, and says so in one line."""

import os
import signal
import subprocess
import sys

import pytest

from ...core.test_processes import RANK, is_alive, wait_until

DRIVER = """
import sys
from pathlib import Path
from vesselgan.config.compose import compose
from vesselgan.core import processes
from vesselgan.tools.benchmark import acceptance, run

def starts_a_command(config):
    processes.run_command((sys.executable, "-c", RANK, sys.argv[1]), Path(sys.argv[1]).with_name("log"), head="")

if __name__ == "__main__":
    run.DIRECTORIES["utility"] = starts_a_command
    acceptance.GROUPS = {"correctness": {"starts_a_command": starts_a_command}}
    words = ["target=acceptance", "parts=[correctness]"] if sys.argv[2] == "acceptance" else ["target=utility"]
    run.benchmark(compose("benchmark", [*words, f"out={sys.argv[1]}-out"]))
"""


@pytest.mark.parametrize(
    ("target", "number"), [("utility", signal.SIGTERM), ("utility", signal.SIGINT), ("acceptance", signal.SIGTERM)]
)
def test_a_stopped_benchmark_leaves_no_command_behind(tmp_path, target, number):
    """Its commands are children, or those of the process of a part."""
    driver, pids = tmp_path / "driver.py", tmp_path / "pids"
    driver.write_text(f"RANK = {RANK!r}\n{DRIVER}")
    pids.mkdir()
    words = [sys.executable, str(driver), str(pids), target]
    caller = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert wait_until(lambda: any(pids.iterdir()), 200)
        (pid,) = [int(path.name) for path in pids.iterdir()]
        caller.send_signal(number)
        _, errors = caller.communicate(timeout=100)
        assert caller.returncode == 128 + number
        assert errors.strip() == f"stopped by {number.name}; run the same command again"
        assert wait_until(lambda: not is_alive(pid), 30)
    finally:
        caller.kill()
        for path in pids.iterdir():
            if is_alive(int(path.name)):
                os.kill(int(path.name), signal.SIGKILL)
