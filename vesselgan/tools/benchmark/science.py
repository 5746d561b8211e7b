"""What training for a few minutes brings: U-Nets on real patches, a GAN's and a flow's, Dice on unseen volumes."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Benchmark
from vesselgan.formats.run_dir import RunDir
from vesselgan.runtime import distributed
from vesselgan.tools.benchmark.pipeline import Pipeline

# On a GPU the volumes of the paper, with patches of an eighth of its size; a CPU tries on the demo's whether it runs.
FULL_SIZE = {
    "cohort": ["phantom.num_subjects=8", "phantom.shape=[312,384,127]", "phantom.spacing_mm=[0.5,0.5,0.7]"],
    "shards": ["data.prepare.patch_shape=[64,64,32]", "data.prepare.split.validation=1", "data.prepare.split.test=2"],
    "gan": [],
    "gan patches": ["num_patches=1000"],
    "flow": ["train.batch_size=16"],
    "flow patches": ["num_patches=1000"],
    "unet": ["unet.max_steps=1000"],
}
SMALL: dict[str, list[str]] = {
    "cohort": ["phantom.num_subjects=5"],
    "shards": ["data.prepare.num_vessel_patches_gan=40", "data.prepare.num_vessel_patches_unet=40"],
    "gan": ["preset=demo"],
    # Label scores of networks that have learned nothing: a GAN's lie near 0, a flow's between 0.35 and 0.5.
    "gan patches": ["num_patches=50", "label_threshold=1e-4"],
    "flow": ["preset=demo_flow", "train.max_steps=1"],
    "flow patches": ["num_patches=50", "label_threshold=0.45"],
    "unet": ["preset=demo", "unet.max_steps=20"],
}


def dice_of_synthetic(config: Benchmark) -> dict[str, Any]:
    """Mean Dice of the best threshold and of U-Nets on real and on synthetic patches, test subjects.

    The variant and a flow train for config.minutes each; on a CPU the flow takes one step.
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
        is_flow = config.variant.flow is not None
        generators = {config.variant.name: ("flow" if is_flow else "gan", config.variant.precision)}
        if not is_flow:
            # What one would take today, in the precision that its optimizer needs.
            generators["flow_label"] = ("flow", "fp32")
        for name, (kind, precision) in generators.items():
            dice[name] = self._of_samples(pipeline, kind, name, precision)
        return {"dice": dice, "share of real": {name: dice[name] / dice["real"] for name in generators}}

    def _of_samples(self, pipeline: Pipeline, kind: str, variant: str, precision: str) -> float:
        """Dice of a U-Net on what the variant makes after the minutes; kind: whose settings."""
        run_dir = self.work / f"run-{variant}"
        words = ["--deepspeed_config", f"ds_{precision}.json", "--run_dir", str(run_dir), f"variant={variant}"]
        words += [f"variant.precision={precision}", f"train.max_minutes={self.config.minutes}"]
        pipeline.launch("train_gan", *words, *self.sizes[kind], *pipeline.data)
        pipeline.launch("generate", f"run={run_dir}", *self.sizes[f"{kind} patches"])
        learn = ("data.source=synthetic", f"synthetic={RunDir(run_dir).synthetic}")
        return pipeline.dice_of_unet(variant, "test", *learn)["all"]


PARTS = {"Dice of U-Nets on unseen volumes": dice_of_synthetic}
