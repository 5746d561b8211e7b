"""The errors a user can mend, each with the exit code that its kind has everywhere in the project.

0 done, 2 usage or configuration, 3 bad data, 4 checkpoint, 5 numeric, 6 resource, 7 privacy. Exit 1 is our defect.
"""

import sys
from collections.abc import Callable


class VesselganError(Exception):
    """Something the user can mend: says what happened, where, and what to do."""

    exit_code = 1
    is_told = False
    """Set on the ranks that need not print it: one of them does."""


class UsageError(VesselganError, ValueError):
    """A setting or an argument is wrong."""

    exit_code = 2


class DataError(VesselganError, ValueError):
    """A volume, a cohort or a shard is not usable."""

    exit_code = 3


class NewerFormatError(DataError):
    """A file of a later version of this program: it may be whole, so nothing may be written over it."""


class CheckpointError(VesselganError):
    """A checkpoint is damaged, foreign or not the one asked for."""

    exit_code = 4


class NumericError(VesselganError):
    """Training left the finite numbers."""

    exit_code = 5


class ResourceError(VesselganError):
    """Memory, disk, a device or a package is missing."""

    exit_code = 6


class PrivacyError(VesselganError):
    """A privacy rule forbids the step."""

    exit_code = 7


def exit_on_error(call: Callable[[], None]) -> None:
    """Run `call`; a VesselganError becomes one line on stderr and its exit code, anything else a traceback (exit 1)."""
    try:
        call()
    except VesselganError as error:
        if not error.is_told:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
