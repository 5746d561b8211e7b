"""Whether a machine is fit for the work, in seconds and before a job waits for it: each finding with its remedy."""

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
from vesselgan.core.atomic_io import describe
from vesselgan.core.errors import ResourceError
from vesselgan.core.locks import wait_for_lock

GOOD, NOTE, BAD = "ok", "note", "BAD"
GIB = 2**30
ANSWER_S = 6.0
"""How long other programs, side by side, may take to answer."""
LEAST_S = 0.1
"""What an answer that is there needs to be read when the time is over."""
STALE_S = 900.0
"""Age of a lock of the extension cache from which no compiler can still be at work (the slowest operator took 80 s)."""
TRIAL_BYTES = 32 * 2**20
MPI = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
NO_ANSWER = "no answer"


@dataclass(frozen=True)
class Finding:
    name: str
    state: str
    """`ok`, `note` (good to know) or `BAD` (to be mended first)."""
    words: str
    remedy: str = ""


def examine(command: Command) -> None:
    """Print every finding, a table or one JSON object; ResourceError (exit 6) with what to mend."""
    began, config = time.perf_counter(), command.config
    findings = findings_of(config)
    host, seconds = socket.gethostname(), time.perf_counter() - began
    if command.wants_json:
        told = {"host": host, "seconds": round(seconds, 1), "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(told), flush=True)
    else:
        for finding in findings:
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            print(f"{finding.name:15} {finding.state:5} {finding.words}{remedy}", flush=True)
    if bad := [finding for finding in findings if finding.state == BAD]:
        raise ResourceError(f"{host}: to mend: " + "; ".join(f"{f.name}: {f.words}: {f.remedy}" for f in bad))


def findings_of(config: Doctor) -> list[Finding]:
    """Everything that was found, in the order of the printed table."""
    # Started first and read last, with one deadline: they take the longest, and several may hang.
    until = time.monotonic() + ANSWER_S
    driver = _start("nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader")
    mpi = _start(sys.executable, "-c", MPI)
    work = Path(config.work_dir)
    examinations: list[Callable[[], list[Finding]]] = [
        packages,
        lambda: gpus(_answer(driver, until), is_wanted=config.runtime.device == "cuda"),
        precisions,
        networks,
        lambda: [message_passing(_answer(mpi, until))],
        lambda: disk(work, config.min_free_gib),
        extension_locks,
    ]
    return [finding for examination in examinations for finding in examination()]


def packages() -> list[Finding]:
    there = {name: metadata.version(name) for name in ("torch", "deepspeed", "h5py", "numpy")}
    return [Finding("packages", GOOD, ", ".join(f"{name} {version}" for name, version in there.items()))]


def gpus(driver: str | None, *, is_wanted: bool) -> list[Finding]:
    """The driver as nvidia-smi tells it (None: no such program, or no answer), and what PyTorch sees of it."""
    build = torch.version.cuda
    granted = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        version = driver.split(",")[0] if driver not in (None, NO_ANSWER) else "unknown"
        words = f"{len(names)} x {names[0]}, driver {version}, CUDA {build}"
        return [Finding("GPU", GOOD, words)]
    if driver == NO_ANSWER:
        words = f"nvidia-smi did not answer within {ANSWER_S:g} s"
        return [Finding("GPU", BAD, words, "the driver hangs: take another node and tell who runs this one")]
    if driver is not None:
        words = f"the driver sees {driver.splitlines()[0]}, PyTorch {torch.__version__} (CUDA {build}) does not"
        remedy = "install a CUDA build of PyTorch that is not newer than the driver, or look at CUDA_VISIBLE_DEVICES"
        return [Finding("GPU", BAD, words, remedy)]
    if is_wanted or granted:
        why = "runtime.device=cuda was asked" if is_wanted else f"the job was granted GPU {granted}"
        return [
            Finding("GPU", BAD, f"{why}, and there is no driver here", "choose a node with a GPU (sbatch --gres=gpu:1)")
        ]
    return [Finding("GPU", NOTE, "none: trains on the CPU")]


def precisions() -> list[Finding]:
    """In which number types DeepSpeed trains here; it asks the same."""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        has = {"fp16": (major, minor) >= (7, 0), "bf16": torch.cuda.is_bf16_supported()}
    else:
        has = {"fp16": bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()), "bf16": True}
    found = []
    for name, is_there in has.items():
        other = "bf16" if name == "fp16" else "fp16"
        remedy = "" if is_there else f"instead: --deepspeed_config ds_{other}.json variant.precision={other}, or fp32"
        found.append(
            Finding(name, GOOD if is_there else NOTE, "trains" if is_there else "refused by DeepSpeed", remedy)
        )
    return found


def networks() -> list[Finding]:
    """What ranks talk through, and whether this host's name, where they would meet, leads to it."""
    import torch.distributed as dist

    if torch.cuda.is_available() and not dist.is_nccl_available():
        backend = Finding("NCCL", BAD, "this PyTorch has none", "install PyTorch's own CUDA build")
    elif torch.cuda.is_available():
        backend = Finding("NCCL", GOOD, ".".join(map(str, torch.cuda.nccl.version())))
    else:
        backend = Finding("NCCL", NOTE, "not needed: ranks on CPUs talk through gloo")
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    try:
        address = socket.getaddrinfo(host, None)[0][4][0]
    except OSError as error:
        remedy = "set MASTER_ADDR to an address of rank 0's node that the others reach (slurm/site.sh)"
        return [backend, Finding("host name", BAD, f"{host} leads nowhere ({error.strerror})", remedy)]
    if address.startswith("127."):
        remedy = "for ranks on several nodes set MASTER_ADDR (slurm/site.sh)"
        return [backend, Finding("host name", NOTE, f"{host} is {address}, which no other node reaches", remedy)]
    return [backend, Finding("host name", GOOD, f"{host} is {address}")]


def message_passing(answer: str | None) -> Finding:
    """answer: MPI's name as mpi4py tells it in a process of its own; None where it has no library."""
    if answer == NO_ANSWER:
        return Finding("MPI", BAD, f"its library did not load within {ANSWER_S:g} s", "look at the node's file systems")
    if answer is None:
        return Finding("MPI", BAD, "mpi4py finds no library", "load the site's MPI module, or pip install mpich")
    name = " ".join(answer.splitlines()[0].split(",")[0].split()).rstrip(chr(0))
    return Finding("MPI", GOOD, f"{name}, mpi4py {metadata.version('mpi4py')}")


def disk(work: Path, min_free_gib: float) -> list[Finding]:
    """Room, a trial of writing, locks and HDF5 where the work will lie."""
    there = next(folder for folder in (work, *work.absolute().parents) if folder.exists())
    free_gib = shutil.disk_usage(there).free / GIB
    words = f"{free_gib:.1f} GiB free in {there.absolute()}"
    remedy = f"make room for {min_free_gib:g} GiB, or name another work_dir"
    room = Finding("disk", GOOD, words) if free_gib >= min_free_gib else Finding("disk", BAD, words, remedy)
    trial = there / f".vesselgan-doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        trial.mkdir()
        try:
            return [room, _write(trial / "bytes"), _locks(trial / "lock"), _hdf5(trial / "file.h5")]
        finally:
            shutil.rmtree(trial, ignore_errors=True)
    except OSError as error:
        remedy = "see to its rights and quota, or name another work_dir"
        return [room, Finding("write", BAD, f"{there.absolute()}: {describe(error)}", remedy)]


def _write(path: Path) -> Finding:
    block, began = os.urandom(2**20), time.perf_counter()
    with path.open("wb") as file:
        for _ in range(TRIAL_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    rate = TRIAL_BYTES / 1e6 / (time.perf_counter() - began)
    if path.stat().st_size != TRIAL_BYTES or path.read_bytes()[-len(block) :] != block:
        return Finding("write", BAD, "what was written is not what is read", "tell who runs the file system")
    return Finding("write", GOOD, f"{rate:.0f} MB/s, durable")


def _locks(path: Path) -> Finding:
    remedy = "no two jobs may write into one run or one cohort; mount it with locks (flock) where you can"
    with path.open("w") as file:
        try:
            wait_for_lock(file)
        except OSError as error:
            return Finding("locks", NOTE, f"none on this file system ({error.strerror})", remedy)
    return Finding("locks", GOOD, "held")


def _hdf5(path: Path) -> Finding:
    """HDF5 locks what it opens by default; vesselgan's shards are opened without, other programs may not be able to."""
    import h5py

    try:
        with h5py.File(path, "w", locking=True) as file:
            file["a"] = 1
    except OSError:
        remedy = "for other programs: HDF5_USE_FILE_LOCKING=FALSE; vesselgan's own reading needs none"
        return Finding("HDF5 locking", NOTE, "refused by this file system", remedy)
    return Finding("HDF5 locking", GOOD, f"HDF5 {h5py.version.hdf5_version}")


def extension_locks() -> list[Finding]:
    """Locks in PyTorch's cache of compiled operators whose compiler is gone: the next start would wait for ever."""
    default = Path.home() / ".cache/torch_extensions"
    home = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or default)
    locks = [lock for pattern in ("*/lock", "*/*/lock") for lock in home.glob(pattern)]
    stale = [str(lock) for lock in sorted(locks) if time.time() - lock.stat().st_mtime > STALE_S]
    if stale:
        words = f"{len(stale)} stale: the next start waits for a compiler that is gone"
        return [Finding("extensions", BAD, words, f"rm {' '.join(stale)}")]
    return [Finding("extensions", GOOD, f"{home}: {'in use' if locks else 'no locks'}")]


def _start(*words: str) -> subprocess.Popen[str] | None:
    if shutil.which(words[0]) is None:
        return None
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(words, text=True, **quiet)


def _answer(process: subprocess.Popen[str] | None, until: float) -> str | None:
    """What it printed; None when there is no such program or it failed, NO_ANSWER when it was not done at `until`."""
    if process is None:
        return None
    try:
        said, _ = process.communicate(timeout=max(LEAST_S, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return NO_ANSWER
    return said.strip() if process.returncode == 0 and said.strip() else None
