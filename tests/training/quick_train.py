"""launch/train_gan.py without what is most of so short a run."""

import runpy
from pathlib import Path

from vesselgan.training import average, run_summary, sample_images
from vesselgan.training.cost import StepCost

QUICK = [
    (average, "STANDING_BATCHES", 3),
    (sample_images, "SIDE", 16),  # pixels
    (run_summary, "step_cost", lambda setup: StepCost(flop=1, standing_bytes=2**19, peak_bytes=2**20)),
]

if __name__ == "__main__":
    for place, name, value in QUICK:
        setattr(place, name, value)
    runpy.run_path(str(Path(__file__).parents[2] / "launch" / "train_gan.py"), run_name="__main__")
