"""What a run tells: lines on the screen, metrics.jsonl, TensorBoard. Only rank 0 writes."""

import json
from pathlib import Path

import numpy as np

from vesselgan.files import write_text


class RunLog:
    """Scalars and pictures of one run; `resume_step` cuts what an interrupted run had written beyond its checkpoint."""

    def __init__(self, run_dir: Path, *, is_main: bool, resume_step: int = 0) -> None:
        self._is_main = is_main
        self._metrics = None
        self._writer = None
        if not is_main:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = run_dir / "metrics.jsonl"
        _cut_after(path, resume_step)
        self._metrics = path.open("a")
        # purge_step hides from TensorBoard what came after the checkpoint in the interrupted run's events.
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def line(self, text: str) -> None:
        """One line on the screen."""
        if self._is_main:
            print(text, flush=True)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """`values` at `step`, into metrics.jsonl and TensorBoard."""
        if not self._is_main:
            return
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture_HWC: np.ndarray) -> None:
        """A uint8 RGB picture at `step`."""
        if self._is_main:
            self._writer.add_image(name, picture_HWC, step, dataformats="HWC")

    def close(self) -> None:
        if self._is_main:
            self._metrics.close()
            self._writer.close()


def _cut_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:  # the last line of a killed run may be half written
            continue
    write_text(path, "".join(line + "\n" for line in kept))
