"""What a command says while it works: `log`, shown of rank 0 alone; warnings and errors of every rank.

A command's product (a table, JSON) is printed instead. In a notebook nothing is shown below a warning. A closed pipe, a
full disk behind stdout or a terminal without the character ends no work.
"""

import atexit
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import TextIO, cast

log = logging.getLogger("vesselgan")

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that move the cursor, recolour or reorder a terminal's text; not tab and line feed."""


def printable(text: str) -> str:
    """`text` with control characters escaped: names from files reach terminals and logs."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 subject`, `2 subjects`; `plural` if it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """`key: before -> after` of every setting that differs."""
    changed = [key for key in dict.fromkeys([*after, *before]) if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in changed]


class _Stream:
    """stdout or stderr, for every writer of the process; a failed write is dropped and kept in `error`."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = open(os.devnull, "w") if stream is None else stream
        self.error: OSError | None = None
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self.error = error
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.error = error

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


class _Console(logging.Handler):
    """Information on stdout, warnings and errors on stderr, one line each, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        before = getattr(stream, "error", None)
        tqdm.write(prefix + printable(record.getMessage()), file=stream)
        stream.flush()
        if isinstance(stream, _Stream):
            stream.error = before  # a lost message is no lost product


class _RankFilter(logging.Filter):
    rank = 0

    def filter(self, record: logging.LogRecord) -> bool:
        return self.rank == 0 or record.levelno >= logging.WARNING


_filter = _RankFilter()


def set_up() -> None:
    """Show `log` on this process's stdout and stderr, whose failures end no work from here on."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), _Stream):
            setattr(sys, name, cast(TextIO, _Stream(getattr(sys, name))))
    if not log.handlers:
        atexit.register(_drop_the_rest)
        handler = _Console()
        handler.addFilter(_filter)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def lost_product() -> OSError | None:
    """Why something printed on stdout was lost; None if nothing was, or if its reader has left."""
    sys.stdout.flush()
    error = getattr(sys.stdout, "error", None)
    return None if error is None or error.errno == errno.EPIPE else error


def _drop_the_rest() -> None:
    """What could not be written must not fail once more, when the interpreter closes its streams."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_debug() -> bool:
    """Whether VESSELGAN_LOG=debug asks for what the libraries say too: DeepSpeed's lines, the profiler's."""
    return os.environ.get("VESSELGAN_LOG", "").lower() == "debug"


def set_rank(rank: int) -> None:
    """From here on this process is `rank`."""
    _filter.rank = rank
