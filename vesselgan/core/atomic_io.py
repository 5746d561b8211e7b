"""Files that are whole or not there: NAME.partial, fsync, rename, fsync of the folder. Standard library alone."""

import errno
import hashlib
import io
import os
from pathlib import Path

from vesselgan.core.locks import try_lock

PARTIAL = ".partial"


class PartialFile(io.RawIOBase):
    """The file behind a writer that must not see errors: remembers the first failed write, swallows what follows.

    HDF5 cannot close a file whose last flush failed: it keeps the handle and crashes at exit. So it never hears of it
    and its caller asks `error` after each piece. Held under a file lock until `publish` or `discard`.
    OSError when it cannot be created, BlockingIOError when a living process is writing the same file.
    """

    def __init__(self, path: str | Path) -> None:
        self.final = Path(path)
        self.path = self.final.with_name(self.final.name + PARTIAL)
        self.error: OSError | None = None
        self.final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(self.path)
        self.file = open(self.path, "xb+", buffering=0)
        try_lock(self.file)

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while self.error is None and len(rest):
                rest = rest[self.file.write(rest) :]
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

    def readinto(self, buffer: bytearray | memoryview) -> int:
        return self.file.readinto(buffer)

    def publish(self) -> None:
        """Make it durable under its final name; OSError when any write failed or this one does."""
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
        """Close and remove what was written; nothing to do after `publish`."""
        if not self.file.closed:
            self.file.close()
            self.path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file whole or not at all. OSError, with nothing left behind, when that fails."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a small file whole or not at all. OSError, with nothing left behind, when that fails."""
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _rename(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_private(path: str | Path, text: str) -> None:
    """`write_text`, readable by the owner alone from the first byte on."""
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    write_text(path, text)


def sha256_of(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(error: OSError) -> str:
    """A failed write in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full or a quota is used up"
    return f"cannot be written ({error.strerror})"


def _remove_stale(partial: Path) -> None:
    """Remove what a killed writer left; BlockingIOError when its writer lives."""
    try:
        with open(partial, "rb+") as file:
            if not try_lock(file):
                raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing it", str(partial))
    except FileNotFoundError:
        return
    partial.unlink(missing_ok=True)


def _rename(partial: Path, path: Path) -> None:
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
