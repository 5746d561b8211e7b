"""What a command says while it works: `log`, shown of rank 0 alone; warnings and errors of every rank.

A command's product (a table, JSON) is printed instead. In a notebook nothing is shown below a warning.
"""

import logging
import sys

log = logging.getLogger("vesselgan")


class _Console(logging.Handler):
    """Information on stdout, warnings and errors on stderr, one line each, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage(), file=stream)
        stream.flush()


class _RankFilter(logging.Filter):
    rank = 0

    def filter(self, record: logging.LogRecord) -> bool:
        return self.rank == 0 or record.levelno >= logging.WARNING


_filter = _RankFilter()


def set_up() -> None:
    """Show `log` on this process's stdout and stderr."""
    if not log.handlers:
        handler = _Console()
        handler.addFilter(_filter)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def set_rank(rank: int) -> None:
    """From here on this process is `rank`."""
    _filter.rank = rank
