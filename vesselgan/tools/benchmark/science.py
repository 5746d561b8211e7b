"""What training for a few minutes brings: U-Nets on real patches, a GAN's and a flow's, Dice on unseen volumes."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Benchmark
from vesselgan.formats.run_dir import RunDir
from vesselgan.runtime import distributed
from vesselgan.tools.benchmark.pipeline import Pipeline

# On a GPU the volumes of the paper, with patches of an eighth of its size; on a CPU the demo's.
FULL_SIZE = {
    "cohort": ["phantom.num_subjects=8", "phantom.shape=[312,384,127]", "phantom.spacing_mm=[0.5,0.5,0.7]"],
    "shards": ["data.prepare.patch_shape=[64,64,32]", "data.prepare.split.validation=1", "data.prepare.split.test=2"],
    "gan": [],
    "flow": ["train.batch_size=16"],
    "unet": ["unet.max_steps=1000"],
    "num_patches": ["num_patches=1000"],
}
SMALL: dict[str, list[str]] = {
    "cohort": [],
    "shards": [],
    "gan": ["preset=demo"],
    "flow": ["preset=demo_flow"],
    "unet": ["preset=demo", "unet.max_steps=20"],
    # Scores of so short a training lie near zero.
    "num_patches": ["num_patches=50", "label_threshold=1e-4"],
}


def dice_of_synthetic(config: Benchmark) -> dict[str, Any]:
    """Mean Dice of the best threshold and of U-Nets on real and on synthetic patches, test subjects.

    The variant and a flow train for config.minutes each.
    """
    is_gpu = distributed.choose_device(config.runtime.device, 0).type == "cuda"
    with tempfile.TemporaryDirectory(prefix="vesselgan-") as name:
        return _Study(config, Path(name), FULL_SIZE if is_gpu else SMALL).run()


@dataclass
class _Study:
    config: Benchmark
    work: Path
    sizes: dict[str, list[str]]

    def run(self) -> dict[str, Any]:
        config, work, sizes = self.config, self.work, self.sizes
        folder = [] if config.cohort_dir is None else [f"data.cohort_dir={config.cohort_dir}"]
        pipeline = Pipeline(work, ["data=phantom", f"work_dir={work}", *folder], sizes["unet"])
        if config.cohort_dir is None:
            pipeline.make_phantom(sizes["cohort"], sizes["shards"])
        dice = {"threshold": pipeline.dice("threshold", "test", "evaluate=threshold")["all"]}
        dice["real"] = pipeline.dice_of_unet("real", "test", "data.source=real")["all"]
        variant = config.variant
        dice[variant.name] = self._of_samples(pipeline, variant.name, variant.precision, sizes["gan"])
        # What one would take today, in the precision that its optimizer needs.
        dice["flow"] = self._of_samples(pipeline, "flow", "fp32", sizes["flow"])
        return {"dice": dice, "share of real": {name: dice[name] / dice["real"] for name in (variant.name, "flow")}}

    def _of_samples(self, pipeline: Pipeline, variant: str, precision: str, settings: list[str]) -> float:
        """Dice of a U-Net on what the variant makes after the minutes."""
        run_dir = self.work / f"run-{variant}"
        words = ["--deepspeed_config", f"ds_{precision}.json", "--run_dir", str(run_dir), f"variant={variant}"]
        words += [f"variant.precision={precision}", f"train.max_minutes={self.config.minutes}"]
        pipeline.launch("train_gan", *words, *settings, *pipeline.data)
        pipeline.launch("generate", f"run={run_dir}", *self.sizes["num_patches"])
        learn = ("data.source=synthetic", f"synthetic={RunDir(run_dir).synthetic}")
        return pipeline.dice_of_unet(variant, "test", *learn)["all"]


PARTS = {"Dice of U-Nets on unseen volumes": dice_of_synthetic}
