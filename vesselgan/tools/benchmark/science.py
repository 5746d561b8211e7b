"""What training for a few minutes brings: U-Nets on synthetic and on real patches, Dice on unseen volumes."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Benchmark
from vesselgan.runtime import distributed
from vesselgan.tools.benchmark.pipeline import Pipeline

# On a GPU the volumes of the paper, with patches of an eighth of its size; on a CPU the demo's.
FULL_SIZE = {
    "cohort": ["phantom.num_subjects=8", "phantom.shape=[312,384,127]", "phantom.spacing_mm=[0.5,0.5,0.7]"],
    "shards": ["data.prepare.patch_shape=[64,64,32]", "data.prepare.split.validation=1", "data.prepare.split.test=2"],
    "gan": [],
    "unet": ["unet.max_steps=1000"],
    "num_patches": ["num_patches=1000"],
}
SMALL: dict[str, list[str]] = {
    "cohort": [],
    "shards": [],
    "gan": ["preset=demo"],
    "unet": ["preset=demo", "unet.max_steps=20"],
    # Scores of so short a training lie near zero.
    "num_patches": ["num_patches=50", "label_threshold=1e-4"],
}


def dice_of_synthetic(config: Benchmark) -> dict[str, Any]:
    """Mean Dice of the best threshold and of U-Nets on real and on synthetic patches, test subjects.

    The GAN trains for config.minutes.
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
        gan = ["--deepspeed_config", f"ds_{config.variant.precision}.json", "--run_dir", str(work / "gan")]
        gan += [f"variant={config.variant.name}", f"variant.precision={config.variant.precision}"]
        gan += [f"train.max_minutes={config.minutes}"]
        pipeline.launch("train_gan", *gan, *sizes["gan"], *pipeline.data)
        pipeline.launch("generate", f"run={work / 'gan'}", *sizes["num_patches"])
        dice = {"threshold": pipeline.dice("threshold", "test", "evaluate=threshold")["all"]}
        for source in ("real", "synthetic"):
            patches = [f"synthetic={work / 'gan/synthetic'}"] if source == "synthetic" else []
            dice[source] = pipeline.dice_of_unet(source, "test", f"data.source={source}", *patches)["all"]
        return {"dice": dice, "synthetic_of_real": dice["synthetic"] / dice["real"]}


PARTS = {"Dice of U-Nets on unseen volumes": dice_of_synthetic}
