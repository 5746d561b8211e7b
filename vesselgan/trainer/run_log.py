"""The run's log: lines on the screen and in a file, metrics in a file and in TensorBoard. Only rank 0 writes."""

import json
import os
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from vesselgan.config.compose import flat
from vesselgan.core.atomic_io import describe, open_to_append, write_bytes
from vesselgan.core.console import log, printable
from vesselgan.core.errors import DataError
from vesselgan.formats.run_dir import EVENTS, LOG, METRICS

BUFFER_BYTES = 2**20
"""Lines that a full disk does not take wait here, some thousand of them."""
HPARAMS = ("variant.", "data.", "train.")
"""Groups of settings that define a run."""


class RunLog:
    """Lines, scalars and images of one run that starts after `resume_step` steps.

    A disk that takes no line ends no run: lines are tried again with the next ones, TensorBoard's are given up.
    """

    def __init__(self, run_dir: Path, *, is_main: bool, resume_step: int = 0) -> None:
        self.is_main = is_main
        self._is_new = resume_step == 0
        if not is_main:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._metrics = open_to_append(run_dir / METRICS, BUFFER_BYTES)
        self._log = open_to_append(run_dir / LOG, BUFFER_BYTES)
        if self._is_new:
            # Events of a session that was killed before its first checkpoint.
            for events in (run_dir / EVENTS).glob("events.out.tfevents.*"):
                events.unlink()
        # purge_step hides from TensorBoard what came after the checkpoint in the interrupted session's events.
        self._writer: Any = SummaryWriter(str(run_dir / EVENTS), purge_step=resume_step + 1)

    def line(self, text: str) -> None:
        """One line on the screen, above the progress bar, and with its time (UTC) in the log file."""
        if self.is_main:
            log.info(text)
            self._log.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {printable(text)}\n")
            _try_flush(self._log)

    def scalars(self, step: int, metrics: dict[str, float]) -> None:
        """`metrics` at `step`, into the metrics file and TensorBoard."""
        if not self.is_main:
            return
        self._metrics.write(json.dumps({"step": step, **metrics}) + "\n")
        _try_flush(self._metrics)

        def add(writer: Any) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        self._to_tensorboard(add)

    def image(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """A uint8 RGB image at `step`."""
        if self.is_main:
            self._to_tensorboard(lambda writer: writer.add_image(name, image_HWC, step, dataformats="HWC"))

    def hparams(self, config: Any, *, metrics: list[str]) -> None:
        """The settings that define the run and the names of `metrics`, for TensorBoard's HParams page; once in a run's
        life."""
        if not self.is_main or not self._is_new:
            return
        from torch.utils.tensorboard.summary import hparams

        settings = {key: value for key, value in flat(config).items() if key.startswith(HPARAMS)}
        values = {
            key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()
        }

        # SummaryWriter.add_hparams would open a run of its own below this one.
        def add(writer: Any) -> None:
            for summary in hparams(values, dict.fromkeys(metrics, 0.0)):
                writer.file_writer.add_summary(summary)

        self._to_tensorboard(add)

    def flush(self) -> None:
        """Make the log durable: a checkpoint must not be newer than the log before it. Raises OSError."""
        if self.is_main:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
            self._to_tensorboard(lambda writer: writer.flush())

    def close(self) -> None:
        """Again: nothing. Raises OSError where the disk does not take what waits; the files are closed then too."""
        if self.is_main:
            with closing(self._metrics), closing(self._log):
                self._to_tensorboard(lambda writer: writer.close())
                self._writer = None

    def _to_tensorboard(self, call: Callable[[Any], None]) -> None:
        """`call` with TensorBoard's writer, while that can write: its thread ends at the first error."""
        try:
            if self._writer is not None:
                call(self._writer)
        except OSError as error:
            self._writer = None
            log.warning(f"TensorBoard events end here ({error.strerror}); {METRICS} continues")


def _try_flush(file: IO[str]) -> None:
    """Writes what waits in the file's buffer; what the disk does not take stays there."""
    try:
        file.flush()
    except OSError as error:
        log.warning(f"{file.name}: {describe(error)}; its lines wait in memory")


def cut_metrics(run_dir: Path, step: int) -> None:
    """Removes what was logged after `step`, the checkpoint's, and a last line that a killed run left half written.

    Raises DataError for any other damaged line.
    """
    path = run_dir / METRICS
    if not path.is_file():
        return
    lines, kept = path.read_bytes().splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line)
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise DataError(f"{path}: line {number} is damaged ({error}); remove the line") from error
    write_bytes(path, b"".join(line + b"\n" for line in kept))
