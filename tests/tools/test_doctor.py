"""What the doctor finds, on this machine and on machines that are made up; and that it ends with what to mend."""

import errno
import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch

from vesselgan.config.compose import parse
from vesselgan.core.errors import ResourceError
from vesselgan.tools import doctor
from vesselgan.tools.doctor import BAD, NOTE, OK


def soon() -> float:
    """A deadline that a shell script's start can keep."""
    return time.monotonic() + 2.0


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU")


def test_this_machine_is_examined_and_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    doctor.check_machine(parse("doctor", None, [f"work_dir={tmp_path / 'new' / 'below'}", "min_free_gib=0", "--json"]))
    result = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in result["checks"]}
    names = (
        "packages, GPU, fp16, bf16, NCCL, host name, MPI, disk, write, rename, locks, HDF5 locking, limits, extensions"
    )
    assert set(names.split(", ")) <= checks.keys() and result["host"] == socket.gethostname()
    assert {check["status"] for check in result["checks"]} <= {OK, NOTE}
    assert list(tmp_path.iterdir()) == []


def test_what_is_bad_ends_with_exit_6(tmp_path, monkeypatch):
    lock = tmp_path / "extensions/py311_cu126/fused_adam/lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    os.utime(lock, (time.time() - doctor.STALE_S - 5,) * 2)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    with pytest.raises(ResourceError) as caught:
        doctor.check_machine(parse("doctor", None, [f"work_dir={tmp_path}", "min_free_gib=1e9"]))
    assert caught.value.exit_code == 6
    assert str(lock) in str(caught.value) and "disk: " in str(caught.value)
    os.utime(lock)  # a compiler is at work
    assert [check.status for check in doctor.check_extension_locks()] == [OK]


@no_gpu
def test_a_promised_or_unusable_gpu_is_bad(monkeypatch):
    assert [check.status for check in doctor.check_gpus(None, is_wanted=False)] == [NOTE]
    (wanted,) = doctor.check_gpus(None, is_wanted=True)
    assert wanted.status == BAD and "runtime.device" in wanted.message
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    (granted,) = doctor.check_gpus(None, is_wanted=False)
    assert granted.status == BAD and "0,1" in granted.message
    (unseen,) = doctor.check_gpus("550.54, NVIDIA H100, 81559 MiB", is_wanted=False)
    assert unseen.status == BAD and "NVIDIA H100" in unseen.message


def test_a_driver_is_asked_through_its_own_program(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '550.54, NVIDIA H100, 81559 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert doctor._output(doctor._start("nvidia-smi"), soon()) == "550.54, NVIDIA H100, 81559 MiB"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert doctor._output(doctor._start("nvidia-smi"), soon()) is None
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    assert doctor._output(doctor._start("nvidia-smi"), time.monotonic() + 0.3) == doctor.NO_ANSWER
    assert doctor._output(doctor._start("no-such-program"), soon()) is None


def test_programs_that_hang_share_one_deadline():
    began = time.monotonic()
    hanging = [doctor._start("sleep", "600"), doctor._start("sleep", "600")]
    done = doctor._start("echo", "there")
    assert [doctor._output(process, began + 0.5) for process in hanging] == [doctor.NO_ANSWER] * 2
    assert doctor._output(done, began + 0.5) == "there"  # its answer is not lost because another was waited for
    assert time.monotonic() - began < 0.9


def test_a_missing_mpi_or_host_is_bad(monkeypatch):
    assert doctor.check_mpi(None).status == doctor.check_mpi(doctor.NO_ANSWER).status == BAD
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    name = doctor.check_network()[-1]
    assert name.status == BAD and "MASTER_ADDR" in name.remedy
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert doctor.check_network()[-1].status == NOTE  # enough for one node


def test_a_folder_that_cannot_be_written_is_bad(tmp_path, monkeypatch):
    def refuse(self: Path, mode: int = 0o777) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    room, write = doctor.check_disk(tmp_path, 0.0)
    assert room.status == OK and write.status == BAD and "Permission denied" in write.message


def test_a_file_is_no_work_dir(tmp_path):
    (tmp_path / "work").touch()
    for work_dir in (tmp_path / "work", tmp_path / "work/runs"):
        (check,) = doctor.check_disk(work_dir, 0.0)
        assert check.status == BAD and str(work_dir) in check.message


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_without_fsync_is_a_note(tmp_path, refuse_folders, number):
    refuse_folders(number)
    checks = {check.name: check.status for check in doctor.check_disk(tmp_path, 0.0)}
    assert (checks["rename"], checks["write"]) == (NOTE, OK)


def test_what_a_save_cannot_do_is_bad(tmp_path, refuse_folders):
    refuse_folders(errno.EIO)
    assert doctor.check_disk(tmp_path, 0.0)[-1].status == BAD
    assert list(tmp_path.iterdir()) == []


def test_half_on_a_cpu_is_emulated_not_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fp16, _ = doctor.check_precisions()
    assert fp16.status == NOTE and "variant.precision=" in fp16.message
