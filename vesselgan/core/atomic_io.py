"""Files that are complete or absent: NAME.partial, fsync, rename, fsync of the folder. Standard library alone.

NAME.partial is created exclusively, so nothing is written through a link; a link under the final name is replaced.
"""

import errno
import hashlib
import io
import os
from pathlib import Path
from typing import IO, Any

from vesselgan.core.locks import no_follow, try_lock

PARTIAL = ".partial"


class PartialFile(io.RawIOBase):
    """A file for a writer that must not see errors: keeps the first failed write in `error` and ignores later ones.

    HDF5 cannot close a file whose last flush failed: it keeps the handle and crashes at exit. So the caller reads
    `error` after each piece. Locked until `publish` or `discard`.
    Raises OSError if it cannot be created, BlockingIOError if a living process writes the same file.
    """

    def __init__(self, path: str | Path) -> None:
        self.final = Path(path)
        self.path = self.final.with_name(self.final.name + PARTIAL)
        self.error: OSError | None = None
        self.final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(self.path)
        self.file = open(self.path, "xb+", buffering=0)
        try_lock(self.file)

    def write(self, data: Any, /) -> int:
        remaining = memoryview(data).cast("B")
        size = len(remaining)
        try:
            while self.error is None and len(remaining):
                remaining = remaining[self.file.write(remaining) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return self.file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: Any, /) -> int:
        return self.file.readinto(buffer)

    def publish(self) -> None:
        """Makes it durable under its final name. Raises OSError if this or an earlier write failed."""
        if self.error is not None:
            raise self.error
        try:
            os.fsync(self.file.fileno())
            _rename(self.path, self.final)
        except OSError as error:
            self.error = error
            raise
        self.file.close()

    def discard(self) -> None:
        """Closes and removes the file; does nothing after `publish`."""
        if not self.file.closed:
            self.file.close()
            self.path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a small text file completely or not at all. Raises OSError and leaves nothing behind if that fails."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes, *, mode: int = 0o666) -> None:
    """Writes a small file completely or not at all. Raises OSError and leaves nothing behind if that fails."""
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    file = open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode))
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _rename(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_private(path: str | Path, text: str) -> None:
    """`write_text`, readable by the owner alone from the first byte on."""
    write_bytes(path, text.encode("utf-8"), mode=0o600)


def open_to_append(path: str | Path, buffering: int = -1) -> IO[str]:
    """A log, made if it is missing. Raises OSError for a link."""
    return open(path, "a", buffering, encoding="utf-8", opener=no_follow)


def sync_folder(folder: Path) -> bool:
    """Makes the names in a folder durable; False on a file system that cannot (SMB, sshfs, some FUSE)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def sha256_of(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(error: OSError) -> str:
    """A failed write, for a message."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full or a quota is used up"
    return f"cannot be written ({error.strerror})"


def _remove_stale(partial: Path) -> None:
    """Removes the file of a killed writer, or a link. Raises BlockingIOError if its writer lives."""
    if partial.is_symlink():
        partial.unlink()
    try:
        with open(partial, "rb+") as file:
            if not try_lock(file):
                raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing it", str(partial))
    except FileNotFoundError:
        return
    partial.unlink(missing_ok=True)


def _rename(partial: Path, path: Path) -> None:
    os.replace(partial, path)
    sync_folder(path.parent)
