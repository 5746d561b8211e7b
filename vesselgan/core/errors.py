"""The errors that a user can correct; each class has one exit code everywhere in the project.

0 done, 2 usage or configuration, 3 bad data, 4 checkpoint, 5 numeric, 6 resource, 7 privacy. Exit 1 is our defect.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vesselgan.core.console import log, lost_product, set_up

SYSTEM_ERRNOS = {
    number
    for name in "EMFILE ENFILE ESTALE EACCES EPERM EIO ENOMEM EAGAIN EBUSY EINTR ETIMEDOUT ENODEV ENXIO EREMOTEIO "
    "ENOTCONN ECONNRESET ECONNREFUSED EHOSTDOWN EHOSTUNREACH".split()
    if (number := getattr(errno, name, None)) is not None
}
"""Why the operating system does not read a file whose content may be whole."""
MISPLACED = {errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG}
"""What lies where a file belongs is none: a folder, a link in a circle."""
FULL_OR_READ_ONLY = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class VesselganError(Exception):
    """An error that the user can correct. The message: what is wrong, where, what to do."""

    exit_code = 1
    is_printed_elsewhere = False
    """Whether another rank prints it, so that this one need not."""


class UsageError(VesselganError, ValueError):
    """A setting or an argument is wrong."""

    exit_code = 2


class DataError(VesselganError, ValueError):
    """A volume, a cohort or a shard is not usable."""

    exit_code = 3


class NewerFormatError(DataError):
    """A file of a later version of this program: it may be valid, so nothing may overwrite it."""


class CheckpointError(VesselganError):
    """A checkpoint is damaged, of another run or not the one named."""

    exit_code = 4


class NumericError(VesselganError):
    """Values in training are not finite."""

    exit_code = 5


class ResourceError(VesselganError):
    """Memory, disk, a device or a package is missing."""

    exit_code = 6


class PrivacyError(VesselganError):
    """A privacy rule forbids the step."""

    exit_code = 7


def check_readable(path: str | Path, error: Exception) -> None:
    """Raises ResourceError if `error`, met while reading `path`, is the system's: it says nothing of the content.

    Every reader of an artifact calls this before it names a file damaged; see `reading`.
    """
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if isinstance(number, int) and number in SYSTEM_ERRNOS:
        raise ResourceError(
            f"{path}: cannot be read now ({os.strerror(number)}), which is no damage; look at open files (ulimit -n), "
            "permissions, memory and the file server, then try again with the same command"
        ) from error


@contextmanager
def reading(path: str | Path, remedy: str) -> Iterator[None]:
    """Raises DataError for what shows, in reading a file and what it says, that it is damaged; see `check_readable`."""
    try:
        yield
    except VesselganError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        check_readable(path, error)
        raise DataError(f"{path}: cannot be read or is damaged ({type(error).__name__}: {error}); {remedy}") from error


@contextmanager
def system_failures() -> Iterator[None]:
    """Raises ResourceError for what the operating system refuses within: a full disk, a permission, a file server.

    DataError for a named file that is none.
    """
    try:
        yield
    except OSError as error:
        if error.errno in MISPLACED and error.filename is not None:
            raise DataError(
                f"{error.filename}: {error.strerror}, where a file of this command belongs; put back what was "
                "there, or make it again"
            ) from error
        if error.errno not in SYSTEM_ERRNOS | FULL_OR_READ_ONLY:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        raise ResourceError(
            f"{where}{error.strerror}; look at disk space, quota, permissions and the file server, then repeat the "
            "same command"
        ) from error


def exit_on_error(call: Callable[[], None]) -> None:
    """Runs `call`; a VesselganError becomes one line on stderr and its exit code, others a traceback (exit 1)."""
    set_up()
    try:
        with system_failures():
            call()
        if (lost := lost_product()) is not None:
            raise ResourceError(f"stdout: the output is incomplete ({lost.strerror}); make room and repeat the command")
    except VesselganError as error:
        if not error.is_printed_elsewhere:
            log.error(str(error))
        sys.exit(error.exit_code)
