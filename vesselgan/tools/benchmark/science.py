"""What training for a few minutes brings: U-Nets on synthetic and on real patches, Dice on unseen volumes."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config.schema import Benchmark
from vesselgan.formats.results import read_result
from vesselgan.runtime import distributed
from vesselgan.tools.benchmark.correctness import run_command
from vesselgan.workflow.stage import ROOT

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
        config, work, sizes, data = self.config, self.work, self.sizes, self._data()
        if config.cohort_dir is None:
            run_command(work, "-m", "data_prep.make_phantom", *sizes["cohort"], *data)
            run_command(work, "-m", "data_prep.build_shards", *sizes["shards"], *data)
        gan = ["--deepspeed_config", f"ds_{config.variant.precision}.json", "--run_dir", str(work / "gan")]
        gan += [f"variant={config.variant.name}", f"variant.precision={config.variant.precision}"]
        gan += [f"train.max_minutes={config.minutes}"]
        self._launch("train_gan", *gan, *sizes["gan"], *data)
        self._launch("generate", f"run={work / 'gan'}", *sizes["num_patches"])
        dice = {"threshold": self._dice("threshold", "evaluate=threshold")}
        for source in ("real", "synthetic"):
            run_dir, predictions = work / f"unet-{source}", work / f"predictions-{source}"
            learn = [f"data.source={source}", *sizes["unet"]]
            if source == "synthetic":
                learn += [f"synthetic={work / 'gan/synthetic'}", "data.label_threshold=null"]
            self._launch("train_unet", "--run_dir", str(run_dir), *learn, *data)
            self._launch("segment", f"run={run_dir}", "split=test", f"out={predictions}", *data)
            dice[source] = self._dice(source, "evaluate=segmentation", f"predictions={predictions}")
        return {"dice": dice, "synthetic_of_real": dice["synthetic"] / dice["real"]}

    def _data(self) -> list[str]:
        folder = [] if self.config.cohort_dir is None else [f"data.cohort_dir={self.config.cohort_dir}"]
        return ["data=phantom", f"work_dir={self.work}", *folder]

    def _launch(self, name: str, *arguments: str) -> None:
        run_command(self.work, str(ROOT / f"launch/{name}.py"), *arguments)

    def _dice(self, name: str, *settings: str) -> float:
        out = self.work / f"{name}.json"
        self._launch("evaluate", *settings, f"name={name}", "split=test", f"out={out}", *self._data())
        return float(read_result(out)["summary"]["all"]["dice"]["mean"])


PARTS = {"Dice of U-Nets on unseen volumes": dice_of_synthetic}
