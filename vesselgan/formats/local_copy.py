"""A copy of shards on a node's own disk: made and verified by the node's first process, read by all of them."""

import hashlib
import os
import re
import shutil
import time
from pathlib import Path

from vesselgan.core.atomic_io import PARTIAL, describe, open_to_append, write_bytes
from vesselgan.core.errors import DataError, ResourceError, UsageError, reading
from vesselgan.core.locks import wait_for_lock
from vesselgan.core.memory import format_bytes
from vesselgan.formats.shards import MANIFEST, ShardInfo, read_manifest, verify

PIECE_BYTES = 4 * 2**20


def copy_to_node(folder: Path, to: str) -> tuple[Path, float | None]:
    """Returns (the copy of `folder` below `to`, seconds that copying took; None if the copy exists).

    `to` may name variables of this node ($TMPDIR). The copy is named after its manifest, so jobs share it: that names
    the shards' content, and whose patches they are, which can change alone. Every byte is compared with the manifest's
    sha256 when copied; an existing copy is compared by size and structure, and each patch with its own checksum when
    read.
    Raises UsageError for a variable that is not set, ResourceError for a disk that is full or cannot be written,
    DataError for damaged shards.
    """
    if any(name.strip("{}") not in os.environ for name in re.findall(r"\$(\w+|\{[^}]*\})", to)):
        raise UsageError(
            f"data.local_copy_dir={to}: that variable is not set on this node; name a folder of its own disk"
        )
    home = Path(os.path.expandvars(to))
    with reading(folder / MANIFEST, "make the shards again"):
        manifest = (folder / MANIFEST).read_bytes()
    target = home / f"vesselgan-{hashlib.sha256(manifest).hexdigest()[:16]}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Held while copying: the other processes of this node wait here, then find the copy.
        with open_to_append(home / f"{target.name}.lock") as lock:
            wait_for_lock(lock)
            if (target / MANIFEST).is_file() and not verify(target, deep=False):
                return target, None
            start = time.perf_counter()
            _copy(folder, target)
            return target, time.perf_counter() - start
    except OSError as error:
        raise ResourceError(
            f"data.local_copy_dir={to}: {home}: {describe(error)}; name another folder, or null"
        ) from error


def _copy(folder: Path, target: Path) -> None:
    manifest = read_manifest(folder)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    needed, free = sum(shard.bytes for shard in manifest.shards), shutil.disk_usage(target).free
    if needed > free:
        raise ResourceError(
            f"{target}: the shards of {folder} need {format_bytes(needed)}, the disk has {format_bytes(free)}: "
            "make room, name another data.local_copy_dir, or null"
        )
    for shard in manifest.shards:
        _copy_shard(folder, target, shard)
    # Last: its presence means that all shards are there.
    write_bytes(target / MANIFEST, (folder / MANIFEST).read_bytes())


def _copy_shard(folder: Path, target: Path, shard: ShardInfo) -> None:
    digest, partial = hashlib.sha256(), target / (shard.file + PARTIAL)
    with reading(folder / shard.file, "make the shards again"):
        source = (folder / shard.file).open("rb")
    with source, partial.open("xb") as copy:
        while piece := source.read(PIECE_BYTES):
            digest.update(piece)
            copy.write(piece)
    if digest.hexdigest() != shard.sha256:
        raise DataError(
            f"{folder / shard.file}: its bytes changed (sha256 differs from the manifest's); make the shards again: "
            "`vesselgan build-shards data.prepare.repair=true`"
        )
    os.replace(partial, target / shard.file)
