"""The whole pipeline on the phantom cohort: every stage starts its commands as processes, as a user would.

Stages that are done are skipped, so a demo that was stopped anywhere resumes there (see vesselgan.workflow.stage).
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

from vesselgan.config.compose import compose, readable
from vesselgan.config.schema import Demo
from vesselgan.core import processes
from vesselgan.core.console import printable
from vesselgan.core.errors import DataError, UsageError, check_readable
from vesselgan.formats.cohort import COHORT, PHANTOM_SETTINGS, shards_dir
from vesselgan.formats.predictions import Predictions
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import MANIFEST
from vesselgan.report import tables
from vesselgan.workflow.stage import (
    Lane,
    Stage,
    in_turns,
    module_command,
    python,
    quoted,
    run_stage,
    setting,
    stop_at_signals,
    vesselgan,
)
from vesselgan.workflow.study.steps import settings_for

GAN, FLOW = "sn_mp", "flow_label"
GENERATORS = {
    GAN: ("SN-MP GAN", ("variant=sn_mp",), None),
    # Label first; in the precision of Muon, its optimizer. Eight sampling steps teach as well as twelve.
    FLOW: ("flow", ("variant=flow_label", "variant.flow.num_steps=8"), "fp32"),
}
"""The paper's, and what one would take today: name -> title, settings, precision; None: the probe's choice."""
FLOW_PRESETS = {None: "preset=demo_flow", "preset=hours": "preset=hours"}
"""Of the flow, by the demo's own."""
UNETS = {
    "real": (None, ("data.source=real",)),
    "sn_mp": (GAN, ("data.source=synthetic",)),
    "synthetic": (FLOW, ("data.source=synthetic",)),
    "shuffled": (FLOW, ("data.source=synthetic", "data.shuffle_labels=true")),
}
"""Name -> whose patches (None: patients'), settings."""
IMAGE_SCORES = (
    *("image.extractor=random", "image.batch_size=64", "image.num_seeds=2", "image.num_runs=3"),
    *("image.num_pairs=50", "image.max_label_patches=200"),
)
NUM_RELEASED = 200
REASON = "four phantoms cannot conclude, and they are nobody"


@dataclass(frozen=True)
class Choice:
    """Where, in which precision and on how many ranks the generators train."""

    device: str
    precision: str
    num_ranks: int
    at_once: int
    """Lanes side by side on a CPU: a core on networks this small works as fast as two."""
    summary: str


def run(config: Demo, overrides: tuple[str, ...]) -> None:
    """Run every stage that is not done, then print the scores; `overrides` go to every command about the cohort.

    Exits with the code of the first command that fails. Raises ResourceError without MPI.
    """
    stop_at_signals()
    started = time.monotonic()
    work = Path(config.work_dir)
    probe = probe_stage(work / "demo/precision.json")
    total = 1 + len(stages_of(config, overrides, Choice("cpu", "fp32", 2, 2, "")))
    run_stage(work / "demo", probe, f"[ 1/{total}]")
    choice = read_choice(probe.outputs[0])
    print(f"        {choice.summary}", flush=True)
    for number, stage in enumerate(stages_of(config, overrides, choice), 2):
        run_stage(work / "demo", stage, f"[{number:2}/{total}]")
    results = tables.by_cohort(tables.read_results(work / "results")).get((config.data.name, "test"), [])
    print(f"\n{printable(tables.format_text(tables.segmentation_scores(results)))}\n")
    print(f"release {(work / 'release').resolve()}")
    print(f"report  {(work / 'report/index.html').resolve()}")
    print(f"time    {processes.clock(time.monotonic() - started)}")


def probe_stage(out: Path) -> Stage:
    """Chooses the precision; the choice is kept, so that a resumed run trains in its own."""
    command = python("-m", "vesselgan.training.precision_probe", "--out", str(out))
    return Stage("probe", "precision probe", (command,), (out,), threads=1)


def read_choice(path: Path) -> Choice:
    """The probe's choice; the generators train side by side on a CPU, in turns on GPUs, on up to two ranks each."""
    try:
        probe = json.loads(path.read_text())
        at_once, places = (2, probe.get("num_cores", 2) // 2) if probe["device"] == "cpu" else (1, probe["num_devices"])
        num_ranks = max(1, min(2, places))
        ranks = f"{num_ranks} rank{'s' if num_ranks > 1 else ''} ({probe['device']})"
        summary = f"the GAN trains in {probe['precision']}, it and the flow on {ranks} each"
        steps = ", ".join(f"{name} {ms:.0f} ms" for name, ms in probe["step_ms"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        check_readable(path, error)
        raise DataError(f"{path}: no choice of a precision ({error}); remove it and start the demo again") from error
    if steps:
        summary += f"; a step of the probe: {steps}"
    return Choice(probe["device"], probe["precision"], num_ranks, at_once, summary)


def stages_of(config: Demo, overrides: tuple[str, ...], choice: Choice) -> list[Stage]:
    """The pipeline after the probe, in order; each stage may read what those before it leave."""
    preset = next((override for override in overrides if override.startswith("preset=")), None)
    if preset not in FLOW_PRESETS:
        raise UsageError(f"{preset}: the demo has preset=hours alone; the other presets are for single commands")
    # The demo's own settings.
    own = ("num_patches=", "num_heads=", "preset=")
    overrides = tuple(override for override in overrides if not override.startswith(own))
    work = Path(config.work_dir)
    runs = ",".join(quoted(_generator_dir(work, name)) for name in GENERATORS)
    report = _launch("report", overrides, f"runs=[{runs}]")
    stages = [
        *_data_stages(config, overrides),
        _training_stage(config, choice, overrides, FLOW_PRESETS[preset]),
        _segment_stage(work, overrides, choice),
        _evaluate_stage(config, overrides),
        _image_stage(work, overrides),
        _release_stage(work, overrides),
        Stage("report", "report", (report,), (work / "report/index.html",)),
    ]
    outputs = [stage.outputs for stage in stages]
    return [replace(stage, inputs=sum(outputs[:place], ())) for place, stage in enumerate(stages)]


def _launch(name: str, overrides: tuple[str, ...], *own: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
    """A command with settings of its own and those of the demo's overrides that it reads."""
    return vesselgan(name, *options, *own, *readable(name, overrides, own))


def _data_stages(config: Demo, overrides: tuple[str, ...]) -> list[Stage]:
    root, cohort = Path(config.data.root), Path(config.data.cohort_dir)
    sets = (("gan", "train"), ("unet", "train"), ("unet", "validation"))
    manifests = [shards_dir(cohort, *purpose_and_split) / MANIFEST for purpose_and_split in sets]
    words = {name: readable(name, overrides, ()) for name in ("make_phantom", "check", "build_shards")}
    make, build = (on_mpi(f"data_prep.{name}", *words[name]) for name in ("make_phantom", "build_shards"))
    return [
        Stage("phantom", "phantom cohort, 2 MPI ranks", (make,), (root / PHANTOM_SETTINGS,)),
        Stage("check", "check of the cohort", (python("-m", "data_prep.check", *words["check"]),)),
        Stage("shards", "HDF5 shards, 2 MPI ranks", (build,), (cohort / COHORT, *manifests)),
    ]


def _generator_dir(work: Path, name: str) -> Path:
    return work / f"runs/demo-{name}"


def _training_stage(config: Demo, choice: Choice, overrides: tuple[str, ...], flow_preset: str) -> Stage:
    """The generators side by side, each with its patches and the U-Nets on them; with heads, the flow's on those."""
    work = Path(config.work_dir)
    runs = {name: RunDir(_generator_dir(work, name)) for name in GENERATORS}
    patches = (f"num_patches={config.num_patches}", "batch_size=32")
    heads = () if config.num_heads is None else _heads_commands(config, runs[FLOW], overrides)
    learned = {name: _set_of(config, name) for name in GENERATORS}
    gan, flow = (
        (
            _train_command(config, name, choice, overrides, preset),
            vesselgan("generate", setting("run", runs[name].path), *patches),
            *more,
            *(_unet_command(work, unet, overrides, learned) for unet, (of, _) in UNETS.items() if of == name),
        )
        for name, preset, more in ((GAN, "preset=demo", ()), (FLOW, flow_preset, heads))
    )
    flow += tuple(_unet_command(work, unet, overrides, learned) for unet, (of, _) in UNETS.items() if of is None)
    commands, beside = (gan, flow) if choice.at_once == 2 else (gan + flow, ())
    sets = dict.fromkeys([*(run.synthetic for run in runs.values()), *learned.values()])
    passed_on = (*(run.finished_file for run in runs.values()), *(folder / MANIFEST for folder in sets))
    outputs = (*passed_on, *(RunDir(_unet_dir(work, name)).finished_file for name in UNETS))
    title = f"{' and '.join(title for title, _, _ in GENERATORS.values())}, their patches, U-Nets"
    return Stage("training", title, commands, outputs, beside=beside, passed_on=passed_on)


def _set_of(config: Demo, name: str) -> Path:
    """The synthetic shards that the U-Nets of a generator learn from."""
    work = Path(config.work_dir)
    if config.num_heads is None or name != FLOW:
        return RunDir(_generator_dir(work, name)).synthetic
    return shards_dir(work / "heads", "unet", "train")


def _heads_commands(config: Demo, run: RunDir, overrides: tuple[str, ...]) -> Lane:
    """Whole heads as large as the phantoms, and their shards, cut as the phantoms'."""
    shape = compose("make_phantom", list(readable("make_phantom", overrides, ()))).phantom.shape
    size = (f"volumes={config.num_heads}", f"shape=[{','.join(map(str, shape))}]", "batch_size=32")
    folders = setting("data.root", run.synthetic_volumes), setting("data.cohort_dir", Path(config.work_dir) / "heads")
    cohort = ("data=pairs", "data.name=heads", *folders)
    phantom = compose("build_shards", list(readable("build_shards", overrides, ())))
    words = settings_for("build_shards", phantom, "data")
    prepare = [word for word in words if word.startswith("data.prepare.") and ".split." not in word]
    build = python("-m", "data_prep.build_shards", *cohort, *prepare)
    return vesselgan("generate", setting("run", run.path), *size), build


def _train_command(config: Demo, name: str, choice: Choice, overrides: tuple[str, ...], preset: str) -> tuple[str, ...]:
    _, settings, precision = GENERATORS[name]
    precision = precision or choice.precision
    # Through the interpreter: the script's first line names one, and breaks where the path holds a space.
    launcher = python(processes.beside_python("deepspeed"), "--num_gpus", str(choice.num_ranks))
    launcher = (*launcher, "--master_port", processes.PORT, "--module")
    run_dir = str(_generator_dir(Path(config.work_dir), name))
    options = ("--deepspeed_config", f"ds_{precision}.json", "--run_dir", run_dir)
    own = (preset, *settings, f"variant.precision={precision}")
    return (*launcher, *module_command("train_gan"), *options, *own, *readable("train_gan", overrides, own))


def _unet_dir(work: Path, name: str) -> Path:
    return work / f"runs/demo-unet-{name}"


def _unet_command(work: Path, name: str, overrides: tuple[str, ...], learned: dict[str, Path]) -> tuple[str, ...]:
    """learned: generator -> its synthetic shards."""
    generator, source = UNETS[name]
    if generator is not None:
        source = (*source, setting("synthetic", learned[generator]))
    options = ("--run_dir", str(_unet_dir(work, name)))
    return _launch("train_unet", overrides, "preset=demo", *source, options=options)


def _segment_stage(work: Path, overrides: tuple[str, ...], choice: Choice) -> Stage:
    folders = [_unet_dir(work, name) for name in UNETS]
    commands = [
        _launch("segment", overrides, setting("run", folder), "split=test", setting("out", folder / "predictions"))
        for folder in folders
    ]
    outputs = tuple(Predictions(folder / "predictions").record for folder in folders)
    first, beside = in_turns(commands, choice.at_once)
    return Stage("segment", "test volumes, by each U-Net", first, outputs, beside=beside)


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
    first, beside = in_turns(commands, 2)
    return Stage("evaluate", "Dice and bAVD", first, tuple(outputs.values()), beside=beside)


def _image_stage(work: Path, overrides: tuple[str, ...]) -> Stage:
    """Image scores with the network that needs no download, and the audit of a few patches of the paper's GAN.

    Few repeats, and no features in the audit: else it would take minutes.
    """
    outputs = {name: work / f"results/image-{name}.json" for name in GENERATORS}
    image = []
    for name, out in outputs.items():
        synthetic = setting("image.synthetic", RunDir(_generator_dir(work, name)).synthetic)
        settings = ("evaluate=image", f"name={name}", synthetic, setting("out", out))
        image.append(_launch("evaluate", overrides, *settings, *IMAGE_SCORES))
    number = (f"num_patches={NUM_RELEASED}", "batch_size=32")
    run, patches, out = _released(work)
    generate = vesselgan("generate", run, *number, setting("out", patches))
    audited = (run, f"synthetic=[{quoted(patches)}]", setting("out", out))
    audit = _launch("audit", overrides, *audited, "image.extractor=null", "record_only=true")
    title = f"FID, PRD; audit of {NUM_RELEASED} patches"
    return Stage("image", title, tuple(image), (*outputs.values(), patches / MANIFEST, out), beside=(generate, audit))


def _release_stage(work: Path, overrides: tuple[str, ...]) -> Stage:
    run, patches, audit = _released(work)
    settings = (run, f"synthetic=[{quoted(patches)}]", setting("audit", audit), setting("reason", REASON))
    release = _launch("release", overrides, *settings)
    return Stage("release", "what may leave", (release,), (work / "release/ledger.jsonl",))


def _released(work: Path) -> tuple[str, Path, Path]:
    """The setting of the run, its few patches, and their audit."""
    return setting("run", _generator_dir(work, GAN)), work / "demo/patches", work / "results/audit.json"


def on_mpi(module: str, *overrides: str) -> tuple[str, ...]:
    """A command on two MPI ranks; mpi4py's runner ends all ranks when one raises."""
    return (processes.beside_python("mpiexec"), "-n", "2", *python("-m", "mpi4py", "-m", module, *overrides))
