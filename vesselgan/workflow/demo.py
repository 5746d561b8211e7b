"""The whole pipeline on the phantom cohort: every stage starts its commands as processes, as a user would.

Stages that are done are skipped, so a demo that was stopped anywhere resumes there (see vesselgan.workflow.stage).
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from vesselgan.config.compose import readable
from vesselgan.config.schema import Demo
from vesselgan.core import processes
from vesselgan.core.console import printable
from vesselgan.core.errors import DataError, check_readable
from vesselgan.formats.cohort import COHORT, shards_dir
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import MANIFEST
from vesselgan.report import tables
from vesselgan.workflow.stage import Stage, check_checkout, python, quoted, run_stage, script, script_path, setting

UNETS = {
    "real": ("U-Net on real patches", ("data.source=real",)),
    "synthetic": ("U-Net on synthetic patches", ("data.source=synthetic",)),
    "shuffled": ("U-Net on synthetic, labels shuffled", ("data.source=synthetic", "data.shuffle_labels=true")),
}
IMAGE_SCORES = (
    *("image.extractor=random", "image.batch_size=64", "image.num_seeds=2", "image.num_runs=3"),
    *("image.num_pairs=50", "image.max_label_patches=200"),
)


@dataclass(frozen=True)
class Choice:
    """Where, in which precision and on how many ranks the GAN trains."""

    device: str
    precision: str
    num_ranks: int
    summary: str


def run(config: Demo, overrides: tuple[str, ...]) -> None:
    """Run every stage that is not done, then print the scores; `overrides` go to every command about the cohort.

    Exits with the code of the first command that fails. Raises UsageError outside a checkout, ResourceError without
    MPI.
    """
    check_checkout("the demo")
    started = time.monotonic()
    work = Path(config.work_dir)
    probe = probe_stage(work / "demo/precision.json")
    total = 1 + len(stages_of(config, overrides, Choice("cpu", "fp32", 2, "")))
    run_stage(work / "demo", probe, f"[ 1/{total}]", is_stale=False)
    choice = read_choice(probe.outputs[0])
    print(f"        {choice.summary}", flush=True)
    is_stale = False
    for number, stage in enumerate(stages_of(config, overrides, choice), 2):
        is_stale = run_stage(work / "demo", stage, f"[{number:2}/{total}]", is_stale=is_stale)
    results = tables.by_cohort(tables.read_results(work / "results")).get((config.data.name, "test"), [])
    print(f"\n{printable(tables.format_text(tables.segmentation_scores(results)))}\n")
    print(f"report  {(work / 'report/index.html').resolve()}")
    print(f"time    {processes.clock(time.monotonic() - started)}")


def probe_stage(out: Path) -> Stage:
    """Chooses the GAN's precision; the choice is kept, so that a resumed GAN trains in its own."""
    command = python("-m", "vesselgan.training.precision_probe", "--out", str(out))
    return Stage("probe", "precision probe", (command,), (out,), 2)


def read_choice(path: Path) -> Choice:
    """The probe's choice; the GAN gets two ranks on a CPU, and up to two GPUs."""
    try:
        probe = json.loads(path.read_text())
        num_ranks = 2 if probe["device"] == "cpu" else min(2, probe["num_devices"])
        summary = f"the GAN trains in {probe['precision']} on {num_ranks} ranks ({probe['device']})"
        steps = ", ".join(f"{name} {ms:.0f} ms" for name, ms in probe["step_ms"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        check_readable(path, error)
        raise DataError(f"{path}: no choice of a precision ({error}); remove it and start the demo again") from error
    if steps:
        summary += f"; a step of the probe: {steps}"
    return Choice(probe["device"], probe["precision"], num_ranks, summary)


def stages_of(config: Demo, overrides: tuple[str, ...], choice: Choice) -> list[Stage]:
    """The pipeline after the probe, in order."""
    # The demo's own settings.
    overrides = tuple(override for override in overrides if not override.startswith(("num_patches=", "weights=")))
    work = Path(config.work_dir)
    gan = work / "runs/demo-gan"
    settings = (
        f"num_patches={config.num_patches}",
        f"weights={config.weights}",
        f"label_threshold={config.data.label_threshold}",
    )
    generate = script("generate", setting("run", gan), *settings)
    report = _launch("report", overrides, f"runs=[{quoted(gan)}]", "preset=demo")
    return [
        *_data_stages(config, overrides),
        _gan_stage(gan, choice, overrides),
        Stage("generate", "synthetic patches", (generate,), (RunDir(gan).synthetic / MANIFEST,)),
        *(_unet_stage(name, work, gan, overrides) for name in UNETS),
        _segment_stage(work, overrides),
        _evaluate_stage(config, overrides),
        _image_stage(work, gan, overrides),
        Stage("report", "report", (report,), (work / "report/index.html",)),
    ]


def _launch(name: str, overrides: tuple[str, ...], *own: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
    """launch/<name>.py with settings of its own and those of the demo's overrides that it reads."""
    return script(name, *options, *own, *readable(name, overrides, own))


def _data_stages(config: Demo, overrides: tuple[str, ...]) -> list[Stage]:
    root, cohort = Path(config.data.root), Path(config.data.cohort_dir)
    sets = (("gan", "train"), ("unet", "train"), ("unet", "validation"))
    manifests = [shards_dir(cohort, *purpose_and_split) / MANIFEST for purpose_and_split in sets]
    words = {name: readable(name, overrides, ()) for name in ("make_phantom", "check", "build_shards")}
    make, build = (on_mpi(f"data_prep.{name}", *words[name]) for name in ("make_phantom", "build_shards"))
    return [
        Stage("phantom", "phantom cohort, 2 MPI ranks", (make,), (root,), 2),
        Stage("check", "check of the cohort", (python("-m", "data_prep.check", *words["check"]),)),
        Stage("shards", "HDF5 shards, 2 MPI ranks", (build,), (cohort / COHORT, *manifests), 2),
    ]


def _gan_stage(gan: Path, choice: Choice, overrides: tuple[str, ...]) -> Stage:
    # Through the interpreter: the script's first line names one, and breaks where the path holds a space.
    launcher = python(processes.beside_python("deepspeed"), "--num_gpus", str(choice.num_ranks))
    own = ("variant=sn_mp", "preset=demo", f"variant.precision={choice.precision}")
    settings = (*own, *readable("train_gan", overrides, own))
    options = ("--deepspeed_config", f"ds_{choice.precision}.json", "--run_dir", str(gan))
    command = (*launcher, "--master_port", processes.PORT, script_path("train_gan"), *options, *settings)
    title = f"SN-MP GAN, {choice.num_ranks} DeepSpeed ranks, {choice.precision}"
    return Stage("gan", title, (command,), (RunDir(gan).finished_file,), choice.num_ranks)


def _unet_dir(work: Path, name: str) -> Path:
    return work / f"runs/demo-unet-{name}"


def _unet_stage(name: str, work: Path, gan: Path, overrides: tuple[str, ...]) -> Stage:
    title, source = UNETS[name]
    run_dir = _unet_dir(work, name)
    synthetic = () if name == "real" else (setting("synthetic", RunDir(gan).synthetic),)
    options = ("--run_dir", str(run_dir))
    command = _launch("train_unet", overrides, "preset=demo", *source, *synthetic, options=options)
    return Stage(f"unet-{name}", title, (command,), (RunDir(run_dir).finished_file,))


def _segment_stage(work: Path, overrides: tuple[str, ...]) -> Stage:
    folders = [_unet_dir(work, name) for name in UNETS]
    commands = [
        _launch("segment", overrides, setting("run", folder), "split=test", setting("out", folder / "predictions"))
        for folder in folders
    ]
    outputs = tuple(folder / "predictions" for folder in folders)
    return Stage("segment", "test volumes, by each U-Net", tuple(commands), outputs)


def _evaluate_stage(config: Demo, overrides: tuple[str, ...]) -> Stage:
    work = Path(config.work_dir)
    jobs: dict[str, tuple[str, ...]] = {"threshold": ("evaluate=threshold",)}
    for name in UNETS:
        maps = setting("error_maps", work / "errors" / name / config.data.name)
        jobs[name] = ("evaluate=segmentation", setting("predictions", _unet_dir(work, name) / "predictions"), maps)
    outputs = {name: work / f"results/{name}.json" for name in jobs}
    commands = [
        _launch("evaluate", overrides, *settings, f"name={name}", "split=test", setting("out", outputs[name]))
        for name, settings in jobs.items()
    ]
    return Stage("evaluate", "Dice and bAVD", tuple(commands), tuple(outputs.values()))


def _image_stage(work: Path, gan: Path, overrides: tuple[str, ...]) -> Stage:
    """Image scores with the network that needs no download; few repeats, to save time."""
    out = work / "results/image.json"
    settings = (
        "preset=demo",
        "evaluate=image",
        "name=sn_mp",
        setting("image.synthetic", RunDir(gan).synthetic),
        setting("out", out),
    )
    command = _launch("evaluate", overrides, *settings, *IMAGE_SCORES)
    return Stage("image", "FID, PRD, labels; random features", (command,), (out,))


def on_mpi(module: str, *overrides: str) -> tuple[str, ...]:
    """A command on two MPI ranks; mpi4py's runner ends all ranks when one raises."""
    return (processes.beside_python("mpiexec"), "-n", "2", *python("-m", "mpi4py", "-m", module, *overrides))
