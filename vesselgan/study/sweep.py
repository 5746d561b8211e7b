"""Which GAN to take: checkpoints, learning rates and batch sizes ranked by the U-Nets that their patches train.

As the paper chose its hyper-parameters: by segmentation on the real validation set. No test subject is read.
"""

import itertools
import json
from pathlib import Path

from vesselgan.config.schema import Study
from vesselgan.errors import UsageError
from vesselgan.files import write_text
from vesselgan.stages import Stage, script
from vesselgan.study.steps import Gan, Walker, choose_threshold, gans_of, settings_for, word

FORMAT_VERSION = 1


def run_sweep(config: Study, home: Path) -> Path:
    """Train what the grid asks for, rank it and the runs that are named; the file with the ranking, best first."""
    grid = grid_of(config, home)
    if not config.runs and not grid:
        raise UsageError("study=sweep needs runs=[DIR], sweep.learning_rates=[4e-4,2e-4] or sweep.batch_sizes=[4,8]")
    gans = gans_of(config.runs, config.sweep.checkpoints)
    walker = Walker(home)
    for gan, stage in grid:
        walker.walk(stage)
        gans.append(gan)
    records = [choose_threshold(config, home, gan, walker) for gan in gans]
    ranked = sorted(records, key=lambda record: -record["validation_dice"])
    by_name = {gan.name: gan for gan in gans}
    for record in ranked:
        gan = by_name[record["gan"]]
        record |= {"variant": gan.variant, "run": gan.run.resolve().name, "checkpoint": gan.checkpoint}
    out = home / "ranking.json"
    result = {"format_version": FORMAT_VERSION, "ranked_by": "validation_dice", "unet_steps": config.unet.max_steps}
    write_text(out, json.dumps(result | {"ranking": ranked}, indent=1) + "\n")
    print()
    for place, record in enumerate(ranked, 1):
        score, threshold = record["validation_dice"], record["label_threshold"]
        print(f"{place:3}  {score:.4f}  {record['gan']}, label threshold {threshold:g}")
    return out


def grid_of(config: Study, home: Path) -> list[tuple[Gan, Stage]]:
    """A GAN for every critic's learning rate (the generator's keeps its ratio) with every batch size."""
    sweep, variant = config.sweep, config.variant
    if not sweep.learning_rates and not sweep.batch_sizes:
        return []
    ratio = variant.learning_rate_generator / variant.learning_rate_critic
    found = []
    rates, batches = (
        sweep.learning_rates or [variant.learning_rate_critic],
        sweep.batch_sizes or [config.train.batch_size],
    )
    for rate, batch_size in itertools.product(rates, batches):
        name = f"{variant.name}-rate-{rate:g}-batch-{batch_size}"
        run_dir = home / "trained" / name
        own = {
            "variant.learning_rate_critic": rate,
            "variant.learning_rate_generator": rate * ratio,
            "train.batch_size": batch_size,
        }
        shared = settings_for("train_gan", config, "data", "variant", "train", "runtime")
        words = [w for w in shared if w.split("=")[0] not in own]
        command = script("train_gan", "--run_dir", str(run_dir), *words, *(word(*item) for item in own.items()))
        stage = Stage(f"gan-{name}", f"GAN {name}", (command,), (run_dir / "finished.json",))
        found.append((Gan(name, run_dir, variant.name, None), stage))
    return found
