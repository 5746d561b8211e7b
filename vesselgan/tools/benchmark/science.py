"""What training for a few minutes brings: U-Nets on real patches, a GAN's and a flow's, Dice on unseen volumes."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config.compose import compose
from vesselgan.config.schema import Benchmark
from vesselgan.formats.run_dir import RunDir
from vesselgan.runtime import distributed
from vesselgan.tools.benchmark.pipeline import Pipeline
from vesselgan.workflow.study.steps import settings_for

# On a GPU the volumes of the paper, with patches of an eighth of its size; a CPU tries on the demo's whether it runs.
# The demo's preset takes the place of what the variant itself states, not of what was set beside it.
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
    "gan patches": ["num_patches=50"],
    "flow": ["preset=demo_flow"],
    "flow patches": ["num_patches=50"],
    "unet": ["preset=demo", "unet.max_steps=20"],
}
UNTRAINED_THRESHOLDS = {"gan": 1e-4, "flow": 0.45}
"""Of SMALL, for labels of networks that have learned nothing: a GAN's scores lie near 0, a flow's from 0.35 to 0.5."""


def dice_of_synthetic(config: Benchmark) -> dict[str, Any]:
    """Mean Dice of the best threshold and of U-Nets on real and on synthetic patches, test subjects; training steps.

    The variant and a flow train for config.minutes each, by the seconds of a step in a short training before; on a CPU
    the flow takes one step. Raises UsageError unless variant.name is a file of configs/variant.
    """
    is_gpu = distributed.choose_device(config.runtime.device, 0).type == "cuda"
    with tempfile.TemporaryDirectory(prefix="vesselgan-") as name:
        return _Study(config, Path(name), is_gpu).run()


@dataclass
class _Study:
    config: Benchmark
    work: Path
    is_gpu: bool

    def run(self) -> dict[str, Any]:
        config, work, sizes = self.config, self.work, self.sizes
        is_flow = config.variant.flow is not None
        generators = {config.variant.name: ("flow" if is_flow else "gan", own_settings(config))}
        if not is_flow:
            # What one would take today.
            generators["flow_label"] = ("flow", ["variant=flow_label"])
        folder = [] if config.cohort_dir is None else [f"data.cohort_dir={config.cohort_dir}"]
        pipeline = Pipeline(work, ["data=phantom", f"work_dir={work}", *folder], sizes["unet"])
        if config.cohort_dir is None:
            pipeline.make_phantom(sizes["cohort"], sizes["shards"])
        dice = {"threshold": pipeline.dice("threshold", "test", "evaluate=threshold")["all"]}
        dice["real"] = pipeline.dice_of_unet("real", "test", "data.source=real")["all"]
        steps = {}
        for name, (kind, own) in generators.items():
            settings = [*sizes[kind], *own]
            steps[name] = self._steps(pipeline, kind, name, settings)
            dice[name] = self._of_samples(pipeline, kind, name, settings, steps[name])
        return {"dice": dice, "share of real": {name: dice[name] / dice["real"] for name in generators}, "steps": steps}

    @property
    def sizes(self) -> dict[str, list[str]]:
        return FULL_SIZE if self.is_gpu else SMALL

    def _steps(self, pipeline: Pipeline, kind: str, name: str, settings: list[str]) -> int:
        """That fill the minutes: a limit of time would end a training while its learning rates are still high."""
        if kind == "flow" and not self.is_gpu:
            return 1
        step_s = pipeline.seconds_of_step(self.work / f"probe-{name}", *settings)
        return max(1, round(60 * self.config.minutes / step_s))

    def _of_samples(self, pipeline: Pipeline, kind: str, name: str, settings: list[str], steps: int) -> float:
        """Dice of a U-Net on what the variant makes after its steps; kind: whose patches."""
        run_dir = self.work / f"run-{name}"
        pipeline.train_gan(run_dir, steps, *settings)
        makes_labels = compose("train_gan", settings).variant.condition is None
        threshold = [f"label_threshold={UNTRAINED_THRESHOLDS[kind]}"] if makes_labels and not self.is_gpu else []
        pipeline.launch("generate", f"run={run_dir}", *self.sizes[f"{kind} patches"], *threshold)
        learn = ("data.source=synthetic", f"synthetic={RunDir(run_dir).synthetic}")
        return pipeline.dice_of_unet(name, "test", *learn)["all"]


def own_settings(config: Benchmark) -> list[str]:
    """The choice of config.variant and each of its settings that differs from it, as settings of train_gan."""
    choice = f"variant={config.variant.name}"
    stated = settings_for("train_gan", compose("train_gan", [choice]), "variant")
    return [choice, *(setting for setting in settings_for("train_gan", config, "variant") if setting not in stated)]


PARTS = {"Dice of U-Nets on unseen volumes": dice_of_synthetic}
