"""Fixtures that every test may use."""

import copy
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Ranks that need no launcher are forked from a server that has imported these once.
multiprocessing.set_forkserver_preload(["vesselgan.training.run", "torch._dynamo", "pytest"])

# Under nohup or in the background these are ignored, here and in every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

LAUNCHER_WORDS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")
HOLD_LOCK = """
import sys
from pathlib import Path
from vesselgan.core import locks
file = locks.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def shown_log() -> Iterator[None]:
    """Messages are shown as in a command of one rank."""
    from vesselgan.core import console

    console.set_up()
    yield
    console.set_rank(0)


@pytest.fixture(autouse=True, scope="session")
def composed_once() -> Iterator[None]:
    """The same words are composed once: Hydra takes a quarter of a second each time."""
    from vesselgan.config import compose

    honest = compose._composed
    once = functools.cache(lambda command, overrides: honest(command, list(overrides)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "_composed", lambda command, words: copy.deepcopy(once(command, tuple(words))))
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread and one seed, for every test of a network."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def run_on_ranks(repository: Path) -> Callable[..., None]:
    """Runs Python with these words on `size` ranks, as a launcher does: a process each, named by the environment."""

    def run(words: list[str], *, size: int = 2) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(size)}
        common = os.environ | place | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        names = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
        ranks = [subprocess.Popen([sys.executable, *words], env=common | name, **pipes) for name in names]
        try:
            outputs = [rank.communicate(timeout=400)[0] for rank in ranks]
            assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(outputs)
        finally:
            for rank in ranks:
                rank.kill()

    return run


@pytest.fixture(autouse=True)
def no_rank_is_left_behind() -> Iterator[None]:
    """A test that starts DeepSpeed in this process ends it (`afresh`); else all after it would count as its rank."""
    before = {word: os.environ.get(word) for word in LAUNCHER_WORDS}
    yield
    after = {word: os.environ.pop(word, None) for word in LAUNCHER_WORDS}
    os.environ.update({word: value for word, value in before.items() if value is not None})
    assert after == before


@pytest.fixture
def afresh() -> Iterator[Callable[[], None]]:
    """Call it before each start of DeepSpeed in this process; after the test nothing of DeepSpeed is left.

    DeepSpeed keeps the groups of the first start for ever, and `start` writes the launcher's variables.
    """
    import deepspeed.comm.comm
    import torch.distributed as dist
    from deepspeed.utils import groups

    environment, first = dict(os.environ), dict(vars(groups))

    def forget() -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        deepspeed.comm.comm.cdb = None
        vars(groups).update(first)
        os.environ.clear()
        os.environ.update(environment)

    yield forget
    forget()


@pytest.fixture
def world(afresh: Callable[[], None]) -> Any:
    """This process as the one rank of a CPU run: a runtime.distributed.World."""
    from vesselgan.runtime import distributed

    afresh()
    return distributed.start("cpu")


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    """Rewrite a JSON file after `change` has altered what it holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def flip_bit(path: Path, place: int | None = None) -> None:
    """Of the byte at `place`, by default the middle one."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def write_shards(
    folder: Path, records: list[Any], *, files: int = 1, subjects: dict[str, dict[str, Any]] | None = None, **facts: Any
) -> Path:
    """A set of the records in `files` shards; subjects: what the manifest says of one beside its place.

    A subject's volume ends where the last of its patches does.
    """
    from vesselgan.formats.shards import write_manifest, write_shard

    origin = "real" if records[0].score_XYZ is None else "synthetic"
    how = {"patch_shape": records[0].image_XYZ.shape, "origin": origin}
    infos = [write_shard(folder / f"shard-{k}.h5", records[k::files], **how) for k in range(files)]
    spacing_mm = facts.get("spacing_mm", (1.0, 1.0, 1.0))
    place = {"spacing_mm": list(spacing_mm), "affine": np.diag([*spacing_mm, 1.0]).tolist()}
    entries: dict[str, dict[str, Any]] = {}
    for record in records:
        end_3 = np.array(record.corner) + record.image_XYZ.shape
        shape = np.maximum(end_3, entries.get(record.subject, {}).get("shape", end_3)).tolist()
        entries[record.subject] = place | {"shape": shape} | (subjects or {}).get(record.subject, {})
    facts = {"spacing_mm": spacing_mm, "percentiles": (0.0, 99.99), "extra": {}} | facts
    write_manifest(folder, shards=infos, subjects=entries, **how, **facts)
    return folder


def write_subject(folder: Path, split: str, arrays: dict[str, Any], affine: Any, **facts: Any) -> Any:
    """A subject whose volumes are `arrays`, by role (image, label, mask), in `folder`; facts: unlike the default."""
    from vesselgan.formats.cohort import Subject
    from vesselgan.formats.volumes import sha256_of_voxels, write_volume

    paths = {role: folder / f"{role}.nii.gz" for role in arrays}
    arrays = {role: array.astype(np.float32 if role == "image" else np.uint8) for role, array in arrays.items()}
    for role, path in paths.items():
        write_volume(path, arrays[role], affine)
    spacing_mm = tuple(np.diag(affine)[:3].tolist())
    common = {"shape": arrays["image"].shape, "spacing_mm": spacing_mm, "limits": (0.0, 255.0), "num_clipped": 0}
    common |= {f"{role}_sha256": sha256_of_voxels(array) for role, array in arrays.items()}
    return Subject(split, **({"mask": None} | paths), **(common | facts))


def make_bar(seed: int) -> tuple[Any, Any]:
    """(image, label) of 16^3 voxels: noise around 60 with a bar of 4 x 4 at 200, air (0) in one corner."""
    rng = np.random.default_rng(seed)
    label = np.zeros((16, 16, 16), np.uint8)
    y, z = rng.integers(3, 10, 2)
    label[:, y : y + 4, z : z + 4] = 1
    image = np.clip(60 + 8 * rng.normal(size=label.shape) + 140 * label, 1, 255)
    image[:2, :2, :2] = 0
    return image.astype(np.float32), label


def write_set(
    folder: Path, seeds: Sequence[int], subjects: list[str], *, kind: str = "vessel", make: Callable = make_bar
) -> Path:
    """Shards whose record i is make(seeds[i]) of subjects[i % len(subjects)]; kind="synthetic": of a run `tiny`."""
    from vesselgan.formats.shards import Record

    records, is_synthetic = [], kind == "synthetic"
    for place, seed in enumerate(seeds):
        image, label = make(seed)
        score = (0.8 * label).astype(np.float16) if is_synthetic else None
        tissue = None if is_synthetic else np.full_like(label, place % 3)
        subject = subjects[place % len(subjects)]
        records.append(Record(image, label, subject, (0, 0, 0), kind, (0.0, 900.0), 0, score, tissue))
    extra = {"run": "tiny", "threshold": 0.3} if is_synthetic else {}
    return write_shards(folder, records, spacing_mm=(0.5, 0.5, 0.8), extra=extra)


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., None]:
    """Writes a run directory with one checkpoint: its configuration, tensors by file, the patches' manifest, more."""

    def write(
        run_dir: Path, config: Any, files: dict[str, Any], manifest: Any = None, *, number: int = 1, **state: Any
    ) -> None:
        from safetensors.torch import save_file

        from vesselgan.config import compose
        from vesselgan.formats.checkpoint_folder import FORMAT_VERSION

        folder = run_dir / "checkpoints" / f"step_{number:08d}"
        folder.mkdir(parents=True)
        (run_dir / "config.yaml").write_text(compose.to_yaml(config))
        for name, tensors in files.items():
            save_file(tensors, folder / f"{name}.safetensors")
        state = {"step": 1, "manifest": manifest} | state
        content = {"format_version": FORMAT_VERSION, "step": 1, "engines": {}, "is_kept": False, "state": state}
        (folder / "state.json").write_text(json.dumps(content))
        entries = {
            path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
            for path in folder.iterdir()
        }
        (folder / "manifest.json").write_text(json.dumps(entries))

    return write


@pytest.fixture
def refuse_folders(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From its call on, fsync of a folder fails with this errno, of a file it does not."""

    def refuse(number: int) -> None:
        fsync = os.fsync

        def of_files(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", of_files)

    return refuse


@pytest.fixture
def hold_lock() -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """Starts a process that holds a lock."""
    started: list[subprocess.Popen[bytes]] = []

    def start(path: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", HOLD_LOCK, str(path)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
