"""Tables 3 and A.1 for any cohort: U-Nets on real, on each GAN's patches and on both, scored on every test cohort.

Beside them always two reference rows: the best global threshold, and a U-Net whose labels were shuffled.
"""

from pathlib import Path
from typing import Any

from vesselgan.config.schema import Study
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.cohort import COHORT, ROLES, Cohort
from vesselgan.formats.predictions import Predictions
from vesselgan.formats.results import write_result
from vesselgan.formats.shards import read_manifest
from vesselgan.workflow.stage import Stage
from vesselgan.workflow.study import steps

THRESHOLD = "threshold"
UNET_KEYS = ("steps", "skipped_steps", "best_checkpoint", "validation_dice")
"""Of every U-Net in sources.json."""


def run_sources(config: Study, home: Path) -> Path:
    """Run the comparison; returns the report's page. Raises UsageError or DataError before any command starts."""
    gans = steps.gans_of(config, [])
    cohorts = cohorts_of(config)
    if config.image.weights is not None and not Path(config.image.weights).is_file():
        raise DataError(f"image.weights={config.image.weights}: no such file; name MedicalNet's, or leave it out")
    runner = steps.StageRunner(home)
    thresholds = {gan.name: steps.choose_threshold(config, home, gan, runner)["label_threshold"] for gan in gans}
    rows = []
    for source in sources_of(gans, thresholds):
        row = row_of(source, home)
        for seed in config.seeds:
            run_unet(config, home, source, seed, cohorts, runner, row)
        rows.append(row)
    rows.append(run_threshold(config, home, cohorts, runner))
    images = run_images(config, home, gans, thresholds, runner)
    study = {
        "cohorts": list(cohorts),
        "seeds": config.seeds,
        "unet_steps": config.unet.max_steps,
        "unet_batch_size": config.unet.batch_size,
        "num_patches": config.num_patches,
        "rows": rows,
    }
    write_result(home / "sources.json", study)
    comparison = home / "results/comparison.json"
    settings = {"evaluate": "comparison", "name": config.name, "sources": home / "sources.json", "out": comparison}
    scores = [home / name for row in rows for by_seed in row["results"].values() for name in by_seed.values()]
    words, inputs = steps.command("evaluate", settings), (home / "sources.json", *scores)
    runner.run(Stage("comparison", "everything compared with real", (words,), (comparison,), inputs=inputs))
    return run_report(config, home, gans, (comparison, *images), runner)


def run_report(
    config: Study, home: Path, gans: list[steps.Gan], results: tuple[Path, ...], runner: steps.StageRunner
) -> Path:
    """The page of all results, with patches of every GAN."""
    settings = {
        "results": home / "results",
        "runs": [str(gan.run) for gan in gans],
        "synthetic": [str(steps.synthetic_dir(home, gan)) for gan in gans],
        "cohorts": config.test_cohorts,
        "error_maps": home / "errors",
        "out": home / "report",
    }
    words = steps.command("report", settings, *steps.settings_for("report", config, "data"))
    page = home / "report/index.html"
    runner.run(Stage("report", "report", (words,), (page,), inputs=results))
    return page


def run_images(
    config: Study, home: Path, gans: list[steps.Gan], thresholds: dict[str, float], runner: steps.StageRunner
) -> list[Path]:
    """Score every GAN's patches on features, if the study names a network; remove scores of other GANs."""
    has_network = config.image.extractor is not None or config.image.weights is not None
    stages = [steps.image_stage(config, home, gan, thresholds[gan.name]) for gan in gans if has_network]
    results = [stage.outputs[0] for stage in stages]
    for path in (home / "results").glob("image-*.json"):
        if path not in results:  # The report reads the whole folder.
            path.unlink()
    for stage in stages:
        runner.run(stage)
    return results


def sources_of(gans: list[steps.Gan], thresholds: dict[str, float]) -> list[steps.TrainingSource]:
    """The rows of the tables: real, each GAN, real with each GAN, and the first GAN with its labels shuffled."""
    synthetic = [steps.synthetic_source(gan, thresholds[gan.name]) for gan in gans]
    mixed = [
        steps.TrainingSource(f"real+{s.name}", "both", f"U-Net on real and {s.name}", s.gan, s.label_threshold)
        for s in synthetic
    ]
    first = synthetic[0]
    title = f"U-Net on {first.name}, labels shuffled"
    shuffled = steps.TrainingSource("shuffled", "shuffled", title, first.gan, first.label_threshold)
    return [steps.TrainingSource("real", "real", "U-Net on real", None, None), *synthetic, *mixed, shuffled]


def row_of(source: steps.TrainingSource, home: Path) -> dict[str, Any]:
    """`gan` identifies the patches by run and weights, so that other results about them can be found."""
    generation = read_manifest(steps.synthetic_dir(home, source.gan)).extra if source.gan else None
    return {
        "name": source.name,
        "kind": source.kind,
        "title": source.title,
        "variant": source.gan.variant if source.gan else None,
        "gan": generation and {key: generation.get(key) for key in ("run", "weights_sha256")},
        "label_threshold": source.label_threshold,
        "runs": {},
        "results": {},
    }


def run_unet(
    config: Study,
    home: Path,
    source: steps.TrainingSource,
    seed: int,
    cohorts: dict[str, str],
    runner: steps.StageRunner,
    row: dict[str, Any],
) -> None:
    """Train a U-Net, segment and score every cohort's test subjects, and add its results to `row`."""
    training = steps.unet_stage(config, home, source, seed)
    runner.run(training)
    facts = steps.unet_facts(home, source, seed)
    if facts["steps"] != config.unet.max_steps:
        raise DataError(
            f"{training.outputs[0]}: {facts['steps']} optimizer steps where every source gets {config.unet.max_steps}; "
            "remove that run directory and start the study again"
        )
    row["runs"][str(seed)] = {key: facts.get(key) for key in UNET_KEYS}
    run_dir = steps.unet_dir(home, source, seed)
    for cohort, folder in cohorts.items():
        predictions = run_dir / "predictions" / cohort
        tested = {"data.cohort_dir": folder, "split": "test"}
        words = steps.command(
            "segment", {"run": run_dir, **tested, "out": predictions}, *steps.settings_for("segment", config, "runtime")
        )
        done, subjects = Predictions(predictions).record, Path(folder) / COHORT
        inputs = (*training.outputs, subjects)
        name = f"segment-{run_dir.name}-{cohort}"
        images = steps.volumes(folder, "test", "image")
        runner.run(Stage(name, f"  {cohort} segmented", (words,), (done,), inputs=inputs, volumes=images))
        scores = Path("scores") / f"{source.name}-seed-{seed}-{cohort}.json"
        settings = {"evaluate": "segmentation", "name": source.name, "predictions": predictions}
        settings |= {**tested, "out": home / scores}
        if seed == config.seeds[0]:
            settings["error_maps"] = home / "errors" / source.name / cohort
        words = steps.command("evaluate", settings)
        inputs, read = (done, subjects), steps.volumes(folder, "test", *ROLES)
        name = f"score-{scores.stem}"
        runner.run(Stage(name, f"  {cohort} scored", (words,), (home / scores,), inputs=inputs, volumes=read))
        row["results"].setdefault(cohort, {})[str(seed)] = str(scores)


def run_threshold(config: Study, home: Path, cohorts: dict[str, str], runner: steps.StageRunner) -> dict[str, Any]:
    """The row of the best global threshold, fitted on the training cohort's validation subjects for every cohort."""
    row = row_of(steps.TrainingSource(THRESHOLD, THRESHOLD, "Best global threshold", None, None), home)
    for cohort, folder in cohorts.items():
        scores = Path("scores") / f"{THRESHOLD}-{cohort}.json"
        settings: dict[str, Any] = {"evaluate": "threshold", "name": THRESHOLD, "split": "test"}
        settings |= {"data.cohort_dir": folder, "fit_cohort": config.data.cohort_dir, "out": home / scores}
        words = steps.command("evaluate", settings)
        inputs = (Path(folder) / COHORT, Path(config.data.cohort_dir) / COHORT)
        title = f"best threshold, {cohort}"
        read = steps.volumes(folder, "test", *ROLES) + steps.volumes(config.data.cohort_dir, "validation", *ROLES)
        runner.run(Stage(f"score-{scores.stem}", title, (words,), (home / scores,), inputs=inputs, volumes=read))
        row["results"][cohort] = {"none": str(scores)}
    return row


def cohorts_of(config: Study) -> dict[str, str]:
    """Cohort name -> cohort_dir, the training cohort first, all with test subjects.

    Raises DataError for a test volume whose voxels are those of a training or validation volume.
    """
    own = Cohort.read(config.data.cohort_dir)
    learned = {s.image_sha256: name for name, s in own.subjects.items() if s.split != "test"}
    cohorts: dict[str, str] = {}
    for folder in [config.data.cohort_dir, *config.test_cohorts]:
        cohort = Cohort.read(folder)
        if cohort.name in cohorts:
            raise UsageError(f"test_cohorts: {folder} and {cohorts[cohort.name]} are both called {cohort.name}; "
                             "prepare one of them with another data.name")  # fmt: skip
        for name, subject in cohort.of_split("test").items():
            if subject.image_sha256 in learned:
                raise DataError(
                    f"{folder}: test subject {name} is the same image as {learned[subject.image_sha256]}, which the "
                    f"models of {own.name} learn from; take it out of the test split"
                )
        cohorts[cohort.name] = str(folder)
    return cohorts
