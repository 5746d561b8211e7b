"""Whether a machine is fit for the work, within seconds and before a job waits for it: one line per health check."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch

from vesselgan.config.compose import Command
from vesselgan.config.schema import Doctor
from vesselgan.core import limits, locks
from vesselgan.core.atomic_io import PartialFile, describe, sync_folder, write_text
from vesselgan.core.errors import ResourceError
from vesselgan.core.memory import format_bytes
from vesselgan.core.names import on_one_line
from vesselgan.formats import checkpoint_folder
from vesselgan.runtime.precision import emulation_notice

OK, NOTE, BAD = "ok", "note", "BAD"
GIB = 2**30
TIMEOUT_S = 6.0
"""For nvidia-smi and MPI, which run side by side."""
MIN_READ_S = 0.1
"""Reading the output of a program that has ended, after the deadline."""
STALE_S = 900.0
"""Age of a lock of the extension cache from which no compiler can still be at work (the slowest operator took 80 s)."""
TRIAL_BYTES = 32 * 2**20
MPI = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
NO_ANSWER = "no answer"


@dataclass(frozen=True)
class HealthCheck:
    name: str
    status: str
    """`ok`, `note` (good to know) or `BAD` (fix it first)."""
    message: str
    remedy: str = ""


def check_machine(command: Command) -> None:
    """Print every check, as a table or one JSON object. Raises ResourceError if one is BAD, with its remedy."""
    start = time.perf_counter()
    checks = run_checks(command.config)
    host, seconds = socket.gethostname(), time.perf_counter() - start
    if command.wants_json:
        result = {"host": host, "seconds": round(seconds, 1), "checks": [asdict(check) for check in checks]}
        print(json.dumps(result), flush=True)
    else:
        for check in checks:
            remedy = f"; {check.remedy}" if check.remedy else ""
            print(on_one_line(f"{check.name:15} {check.status:5} {check.message}{remedy}"), flush=True)
    if failed := [check for check in checks if check.status == BAD]:
        raise ResourceError(f"{host}: fix " + "; ".join(f"{c.name}: {c.message}: {c.remedy}" for c in failed))


def run_checks(config: Doctor) -> list[HealthCheck]:
    """Returns all checks in the order of the printed table."""
    # Started first and read last, with one deadline: they take the longest, and several may hang.
    deadline = time.monotonic() + TIMEOUT_S
    driver = _start("nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader")
    mpi = _start(sys.executable, "-c", MPI)
    functions: list[Callable[[], list[HealthCheck]]] = [
        check_packages,
        lambda: check_gpus(_output(driver, deadline), is_wanted=config.runtime.device == "cuda"),
        check_precisions,
        check_network,
        lambda: [check_mpi(_output(mpi, deadline))],
        check_limits,
        lambda: check_disk(Path(config.work_dir), config.min_free_gib),
        check_extension_locks,
    ]
    return [check for function in functions for check in function()]


def check_packages() -> list[HealthCheck]:
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "deepspeed", "h5py", "numpy")]
    return [HealthCheck("packages", OK, ", ".join(versions))]


def check_gpus(driver: str | None, *, is_wanted: bool) -> list[HealthCheck]:
    """driver: nvidia-smi's output, NO_ANSWER, or None without such a program. Compared with what PyTorch sees."""
    build = torch.version.cuda
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        version = "unknown" if driver is None or driver == NO_ANSWER else driver.split(",")[0]
        return [HealthCheck("GPU", OK, f"{len(names)} x {names[0]}, driver {version}, CUDA {build}")]
    if driver == NO_ANSWER:
        message = f"nvidia-smi did not answer within {TIMEOUT_S:g} s"
        return [HealthCheck("GPU", BAD, message, "the driver hangs: take another node and report this one")]
    if driver is not None:
        message = f"the driver sees {driver.splitlines()[0]}, PyTorch {torch.__version__} (CUDA {build}) does not"
        remedy = "install a CUDA build of PyTorch that is not newer than the driver, or check CUDA_VISIBLE_DEVICES"
        return [HealthCheck("GPU", BAD, message, remedy)]
    granted = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS")
    if is_wanted or granted:
        reason = "runtime.device=cuda is set" if is_wanted else f"the job was granted GPU {granted}"
        remedy = "choose a node with a GPU (sbatch --gres=gpu:1)"
        return [HealthCheck("GPU", BAD, f"{reason}, but this node has no driver", remedy)]
    return [HealthCheck("GPU", NOTE, "none: trains on the CPU")]


def check_precisions() -> list[HealthCheck]:
    """Whether this machine computes in the half precisions, or stores them and computes in float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checks = []
    for name in ("fp16", "bf16"):
        notice = emulation_notice(name, device, program="vesselgan train-gan", key="variant.precision")
        checks.append(HealthCheck(name, OK, "trains") if notice is None else HealthCheck(name, NOTE, notice))
    return checks


def check_network() -> list[HealthCheck]:
    """The ranks' backend, and whether this host's name, where they would meet, resolves to an outside address."""
    import torch.distributed as dist

    if torch.cuda.is_available() and not dist.is_nccl_available():
        backend = HealthCheck("NCCL", BAD, "this PyTorch has none", "install PyTorch's own CUDA build")
    elif torch.cuda.is_available():
        backend = HealthCheck("NCCL", OK, ".".join(map(str, torch.cuda.nccl.version())))
    else:
        backend = HealthCheck("NCCL", NOTE, "not needed: ranks on CPUs use gloo")
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    try:
        address = str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError as error:
        remedy = "set MASTER_ADDR to an address of rank 0's node that the others reach (slurm/site.sh)"
        return [backend, HealthCheck("host name", BAD, f"{host} does not resolve ({error.strerror})", remedy)]
    if address.startswith("127."):
        remedy = "for ranks on several nodes set MASTER_ADDR (slurm/site.sh)"
        return [backend, HealthCheck("host name", NOTE, f"{host} is {address}, which no other node reaches", remedy)]
    return [backend, HealthCheck("host name", OK, f"{host} is {address}")]


def check_mpi(version: str | None) -> HealthCheck:
    """version: of the library that mpi4py loads, NO_ANSWER, or None without a library."""
    if version == NO_ANSWER:
        message = f"its library did not load within {TIMEOUT_S:g} s"
        return HealthCheck("MPI", BAD, message, "check the node's file systems")
    if version is None:
        return HealthCheck("MPI", BAD, "mpi4py finds no library", "load the site's MPI module, or pip install mpich")
    name = " ".join(version.splitlines()[0].split(",")[0].split()).rstrip(chr(0))
    return HealthCheck("MPI", OK, f"{name}, mpi4py {metadata.version('mpi4py')}")


def check_limits() -> list[HealthCheck]:
    problems = limits.problems(uses_gpu=torch.cuda.is_available())
    bad = [HealthCheck("limits", BAD, *problem.split(": ", 1)) for problem in problems]
    return bad or [HealthCheck("limits", OK, "TMPDIR, open files, device numbers")]


def check_disk(work_dir: Path, min_free_gib: float) -> list[HealthCheck]:
    """`check_folder` of work_dir or its nearest parent that exists, and of every other disk that lies in it."""
    try:
        folder = next(folder for folder in (work_dir, *work_dir.absolute().parents) if folder.exists()).absolute()
        folders = {path.stat().st_dev: path for path in [*folder.iterdir(), folder] if path.is_dir()}
    except OSError as error:
        return [HealthCheck("write", BAD, f"{work_dir}: {describe(error)}", "name another work_dir")]
    if folder != work_dir.absolute():
        folders = {0: folder}
    return [check for path in reversed(folders.values()) for check in check_folder(path, min_free_gib)]


def check_folder(folder: Path, min_free_gib: float) -> list[HealthCheck]:
    """Free space, and a trial of the very calls with which runs and shards are written."""
    free = shutil.disk_usage(folder).free
    space = HealthCheck("disk", OK, f"{format_bytes(free)} free in {folder}")
    if free < min_free_gib * GIB:
        remedy = f"make room for {min_free_gib:g} GiB, or name another work_dir"
        space = HealthCheck("disk", BAD, space.message, remedy)
    trial = folder / f".vesselgan-doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        trial.mkdir()
        try:
            checks = [_try_write(trial / "bytes"), _try_publish(trial), _try_locks(trial / "lock")]
            return [space, *checks, _try_hdf5(trial / "file.h5")]
        finally:
            shutil.rmtree(trial, ignore_errors=True)
    except OSError as error:
        remedy = "check permissions and quota, or name another work_dir"
        return [space, HealthCheck("write", BAD, f"{folder}: {describe(error)}", remedy)]


def _try_write(path: Path) -> HealthCheck:
    block, start = os.urandom(2**20), time.perf_counter()
    with path.open("wb") as file:
        for _ in range(TRIAL_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    mb_per_s = TRIAL_BYTES / 1e6 / (time.perf_counter() - start)
    if path.stat().st_size != TRIAL_BYTES or path.read_bytes()[-len(block) :] != block:
        return HealthCheck("write", BAD, "a file reads back differently", "report it to who runs the file system")
    return HealthCheck("write", OK, f"{mb_per_s:.0f} MB/s, with fsync")


def _try_publish(trial: Path) -> HealthCheck:
    """A shard and a checkpoint, published as runs do."""
    shard = PartialFile(trial / "shard")
    shard.write(b"patches")
    shard.publish()
    partial = trial / "step.partial"
    write_text(partial / "state.json", "{}")
    checkpoint_folder.publish(partial, trial / "step")
    checkpoint_folder.delete(trial / "step")
    if sync_folder(trial):
        return HealthCheck("rename", OK, "files and folders are published and durable")
    remedy = "what was just saved may be lost when the power fails; nothing else is"
    return HealthCheck("rename", NOTE, "this file system syncs no folder", remedy)


def _try_locks(path: Path) -> HealthCheck:
    with locks.acquire(path) as file:
        try:
            locks.wait_for_lock(file)
        except OSError as error:
            remedy = "let no two jobs write into one run or one cohort; mount it with locks where you can"
            return HealthCheck("locks", NOTE, f"none on this file system ({error.strerror})", remedy)
    return HealthCheck("locks", OK, "held")


def _try_hdf5(path: Path) -> HealthCheck:
    """HDF5 locks the files it opens by default. vesselgan opens shards without; other programs may not."""
    import h5py

    try:
        with h5py.File(path, "w", locking=True) as file:
            file["a"] = 1
    except OSError:
        remedy = "for other programs set HDF5_USE_FILE_LOCKING=FALSE; vesselgan needs none"
        return HealthCheck("HDF5 locking", NOTE, "refused by this file system", remedy)
    return HealthCheck("HDF5 locking", OK, f"HDF5 {h5py.version.hdf5_version}")


def check_extension_locks() -> list[HealthCheck]:
    """Locks in PyTorch's cache of compiled operators whose compiler is gone: the next start would wait for ever."""
    cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache/torch_extensions")
    locks = [lock for pattern in ("*/lock", "*/*/lock") for lock in cache.glob(pattern)]
    stale = [str(lock) for lock in sorted(locks) if time.time() - lock.stat().st_mtime > STALE_S]
    if stale:
        message = f"{len(stale)} stale locks: the next start would wait for a compiler that is gone"
        return [HealthCheck("extensions", BAD, message, f"rm {' '.join(stale)}")]
    return [HealthCheck("extensions", OK, f"{cache}: {'in use' if locks else 'no locks'}")]


def _start(*command: str) -> subprocess.Popen[str] | None:
    if shutil.which(command[0]) is None:
        return None
    return subprocess.Popen(
        command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _output(process: subprocess.Popen[str] | None, deadline: float) -> str | None:
    """Its output; None without such a program or if it failed, NO_ANSWER if it still runs at the deadline."""
    if process is None:
        return None
    try:
        output, _ = process.communicate(timeout=max(MIN_READ_S, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return NO_ANSWER
    return output.strip() if process.returncode == 0 and output.strip() else None
