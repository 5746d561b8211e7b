"""What is said ends no work, whatever stands behind stdout and stderr."""

import os
import subprocess
import sys

import pytest

from vesselgan.core.console import log

WORK = """
import sys
from tqdm import tqdm
from vesselgan.core.console import log
from vesselgan.core.errors import exit_on_error

def work():
    for step in tqdm(range(3), disable=False, mininterval=0):
        log.info("step %d of N\\u00fcrnberg", step)
        log.warning("slow")
    if "print" in sys.argv:
        print("a table", flush=True)
    open(sys.argv[1], "w").write("done")

exit_on_error(work)
"""


@pytest.mark.parametrize("behind", ["pipe", "/dev/full"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_lost_stream_ends_no_work(tmp_path, stream, behind):
    if behind == "pipe":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(behind, os.O_WRONLY)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: write}
    done = subprocess.run([sys.executable, "-c", WORK, str(tmp_path / "out")], **streams, check=False)
    os.close(write)
    assert (done.returncode, (tmp_path / "out").read_text()) == (0, "done")
    assert b"Error" not in (done.stderr or b"") + (done.stdout or b"")


def test_a_lost_product_is_exit_6(tmp_path):
    with open("/dev/full", "wb") as full:
        words = [sys.executable, "-c", WORK, str(tmp_path / "out"), "print"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 6 and done.stderr.splitlines()[-1].startswith("error: stdout: ")


def test_an_ascii_terminal_shows_every_name(tmp_path):
    words = [sys.executable, "-c", WORK, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, capture_output=True, env=environment, check=False)
    assert done.returncode == 0 and rb"N\xfcrnberg" in done.stdout


def test_messages_carry_no_escape_sequence(capsys):
    log.warning("sub-\x1b[2J\x1b]0;title\x07\r\u202e01: a\tb\nc")
    assert capsys.readouterr().err == "warning: sub-\\x1b[2J\\x1b]0;title\\x07\\r\\u202e01: a\tb\nc\n"
