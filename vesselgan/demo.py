"""The whole road on the phantom cohort: every stage is a command, started as a process of its own, as a user would.

A stage is done when its marker names the same commands and what they made is there. A stage after one that ran runs
too, and its commands say what they find finished: so a demo that was stopped anywhere goes on from there.
"""

import json
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from vesselgan import processes
from vesselgan.config.schema import Demo
from vesselgan.errors import UsageError
from vesselgan.report import tables

ROOT = Path(__file__).resolve().parents[1]
UNETS = {
    "real": ("U-Net on real patches", ("data.source=real",)),
    "synthetic": ("U-Net on synthetic patches", ("data.source=synthetic",)),
    "shuffled": ("U-Net on synthetic, labels shuffled", ("data.source=synthetic", "data.shuffle_labels=true")),
}
TITLE_WIDTH = 42
TAIL_LINES = 25


@dataclass(frozen=True)
class Stage:
    """One step of the road."""

    name: str
    title: str
    commands: tuple[tuple[str, ...], ...]
    """Argument lists, run one after the other; processes.PORT stands for a free port."""
    outputs: tuple[Path, ...] = ()
    """What is there when the stage is done."""
    num_ranks: int = 1
    """Processes that share the cores."""


@dataclass(frozen=True)
class Choice:
    """What the probe found: where, in which precision and on how many ranks the GAN trains."""

    device: str
    precision: str
    num_ranks: int
    words: str


def run(config: Demo, overrides: tuple[str, ...]) -> None:
    """Walk every stage that is not done, then print the table; `overrides` go to every command about the cohort.

    Exits with the code of the first command that fails. UsageError outside a checkout, ResourceError without MPI.
    """
    if not (ROOT / "launch").is_dir():
        raise UsageError(f"{ROOT} has no launch folder: the demo runs from a checkout (see the README)")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    started = time.monotonic()
    work = Path(config.work_dir)
    probe = probe_stage(work / "demo/precision.json")
    total = 1 + len(stages_of(config, overrides, Choice("cpu", "fp32", 2, "")))
    walk(work / "demo", probe, f"[ 1/{total}]", after_news=False)
    choice = read_choice(probe.outputs[0])
    print(f"        {choice.words}", flush=True)
    has_news = False
    for number, stage in enumerate(stages_of(config, overrides, choice), 2):
        has_news = walk(work / "demo", stage, f"[{number:2}/{total}]", after_news=has_news)
    results = tables.by_cohort(tables.read_results(work / "results")).get((config.data.name, "test"), [])
    print(f"\n{tables.format_text(tables.segmentation_table(results))}\n")
    print(f"report  {(work / 'report/index.html').resolve()}")
    print(f"time    {processes.clock(time.monotonic() - started)}")


def probe_stage(out: Path) -> Stage:
    """Asks the machine for the GAN's precision; the answer is kept, so that a resumed GAN meets its own again."""
    return Stage(
        "probe", "precision probe", (python("-m", "vesselgan.training.precision", "--out", str(out)),), (out,), 2
    )


def read_choice(path: Path) -> Choice:
    """The probe's answer; the GAN gets two ranks on a CPU, and up to two GPUs."""
    found = json.loads(path.read_text())
    num_ranks = 2 if found["device"] == "cpu" else min(2, found["num_devices"])
    words = f"the GAN trains in {found['precision']} on {num_ranks} ranks ({found['device']})"
    if found["step_ms"]:
        words += "; a step of the probe: " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in found["step_ms"].items())
    return Choice(found["device"], found["precision"], num_ranks, words)


def stages_of(config: Demo, overrides: tuple[str, ...], choice: Choice) -> list[Stage]:
    """The road after the probe, in order."""
    # The one setting that is the demo's own.
    overrides = tuple(word for word in overrides if not word.startswith(("num_patches=", "weights=")))
    work = Path(config.work_dir)
    gan = work / "runs/demo-gan"
    drawn = (
        f"num_patches={config.num_patches}",
        f"weights={config.weights}",
        f"threshold={config.data.label_threshold}",
    )
    generate = script("generate", setting("run", gan), *drawn)
    report = script("report", f"runs=[{quoted(gan)}]", "preset=demo", *overrides)
    return [
        *_data_stages(config, overrides),
        _gan_stage(gan, choice, overrides),
        Stage("generate", "synthetic patches", (generate,), (gan / "synthetic/manifest.json",)),
        *(_unet_stage(name, work, gan, overrides) for name in UNETS),
        _segment_stage(work, overrides),
        _evaluate_stage(work, overrides),
        Stage("report", "report", (report,), (work / "report/index.html",)),
    ]


def _data_stages(config: Demo, overrides: tuple[str, ...]) -> list[Stage]:
    root, cohort = Path(config.data.root), Path(config.data.cohort_dir)
    made = [cohort / f"shards/{kind}/manifest.json" for kind in ("gan/train", "unet/train", "unet/validation")]
    make, build = on_mpi("data_prep.make_phantom", *overrides), on_mpi("data_prep.build_shards", *overrides)
    return [
        Stage("phantom", "phantom cohort, 2 MPI ranks", (make,), (root,), 2),
        Stage("check", "check of the cohort", (python("-m", "data_prep.check", *overrides),)),
        Stage("shards", "HDF5 shards, 2 MPI ranks", (build,), (cohort / "cohort.json", *made), 2),
    ]


def _gan_stage(gan: Path, choice: Choice, overrides: tuple[str, ...]) -> Stage:
    # Through the interpreter: the script's first line names one, and breaks where the path holds a space.
    launcher = python(processes.beside_python("deepspeed"), "--num_gpus", str(choice.num_ranks))
    settings = ("variant=sn_mp", "preset=demo", f"variant.precision={choice.precision}", *overrides)
    options = ("--deepspeed_config", f"ds_{choice.precision}.json", "--run_dir", str(gan))
    command = (*launcher, "--master_port", processes.PORT, script_path("train_gan"), *options, *settings)
    title = f"SN-MP GAN, {choice.num_ranks} DeepSpeed ranks, {choice.precision}"
    return Stage("gan", title, (command,), (gan / "finished.json",), choice.num_ranks)


def _unet_dir(work: Path, name: str) -> Path:
    return work / f"runs/demo-unet-{name}"


def _unet_stage(name: str, work: Path, gan: Path, overrides: tuple[str, ...]) -> Stage:
    title, source = UNETS[name]
    run_dir = _unet_dir(work, name)
    synthetic = () if name == "real" else (setting("synthetic", gan / "synthetic"),)
    command = script("train_unet", "--run_dir", str(run_dir), "preset=demo", *source, *synthetic, *overrides)
    return Stage(f"unet-{name}", title, (command,), (run_dir / "finished.json",))


def _segment_stage(work: Path, overrides: tuple[str, ...]) -> Stage:
    folders = [_unet_dir(work, name) for name in UNETS]
    commands = [
        script("segment", setting("run", folder), "split=test", setting("out", folder / "predictions"), *overrides)
        for folder in folders
    ]
    outputs = tuple(folder / "predictions" for folder in folders)
    return Stage("segment", "test volumes, by each U-Net", tuple(commands), outputs)


def _evaluate_stage(work: Path, overrides: tuple[str, ...]) -> Stage:
    jobs = {"threshold": ("evaluate=threshold",)}
    for name in UNETS:
        jobs[name] = ("evaluate=segmentation", setting("predictions", _unet_dir(work, name) / "predictions"))
    outputs = {name: work / f"results/{name}.json" for name in jobs}
    commands = [
        script("evaluate", *words, f"name={name}", "split=test", setting("out", outputs[name]), *overrides)
        for name, words in jobs.items()
    ]
    return Stage("evaluate", "Dice and bAVD", tuple(commands), tuple(outputs.values()))


def python(*words: str) -> tuple[str, ...]:
    return (sys.executable, *words)


def script_path(verb: str) -> str:
    """launch/<verb>.py, short where the demo runs from the checkout's root."""
    return os.path.relpath(ROOT / "launch" / f"{verb}.py") if Path.cwd() == ROOT else str(ROOT / f"launch/{verb}.py")


def script(verb: str, *words: str) -> tuple[str, ...]:
    return python(script_path(verb), *words)


def on_mpi(module: str, *words: str) -> tuple[str, ...]:
    """On two MPI ranks; mpi4py's runner ends all ranks when one raises."""
    return (processes.beside_python("mpiexec"), "-n", "2", *python("-m", "mpi4py", "-m", module, *words))


def quoted(value: object) -> str:
    """`value` as Hydra reads it back."""
    return str(value) if re.fullmatch(r"[\w./-]+", str(value)) else json.dumps(str(value))


def setting(key: str, value: object) -> str:
    return f"{key}={quoted(value)}"


def walk(home: Path, stage: Stage, label: str, *, after_news: bool) -> bool:
    """Run `stage` unless it is done, one line about it; True when it ran. Its output lies in home/logs/<stage>.log.

    SystemExit with the command's own code when one fails, after its error or the end of its output was shown.
    """
    marker, log = home / f"done/{stage.name}.json", home / f"logs/{stage.name}.log"
    head = f"{label} {stage.title:{TITLE_WIDTH}}"
    if not after_news and _is_done(stage, marker):
        print(f"{head} done already ({processes.clock(json.loads(marker.read_text())['seconds'])} then)", flush=True)
        return False
    marker.unlink(missing_ok=True)
    marker.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    started = time.monotonic()
    print(head, end=" ", flush=True)
    for command in stage.commands:
        code = processes.run_command(command, log, num_ranks=stage.num_ranks, head=f"{head} ")
        if code != 0:
            print(f"stopped after {processes.clock(time.monotonic() - started)}", flush=True)
            print(failure_words(stage.title, code, log), file=sys.stderr, flush=True)
            sys.exit(code if code > 0 else 128 - code)
    seconds = time.monotonic() - started
    missing = [path for path in stage.outputs if not path.exists()]
    assert not missing, f"{stage.name} ended well and left no {missing}"
    partial = marker.with_suffix(".partial")
    partial.write_text(json.dumps({"commands": stage.commands, "seconds": round(seconds, 1)}, indent=1))
    os.replace(partial, marker)
    print(processes.clock(seconds), flush=True)
    return True


def _is_done(stage: Stage, marker: Path) -> bool:
    try:
        commands = json.loads(marker.read_text())["commands"]
    except (OSError, ValueError, KeyError):
        return False
    return commands == [list(command) for command in stage.commands] and all(path.exists() for path in stage.outputs)


def failure_words(title: str, code: int, log: Path) -> str:
    """What a user needs of a failed command: its own error lines, else the end of its output; and where the rest is."""
    text = log.read_text(errors="replace")
    said = list(dict.fromkeys(line for line in re.split(r"[\r\n]+", text) if line.startswith("error: ")))
    shown = said or text.splitlines()[-TAIL_LINES:]
    return "\n".join([*shown, f"error: `{title}` ended with code {code}; all of its output is in {log}"])


def _stop(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    print(
        f"\nstopped by {signal.Signals(number).name}; the same command goes on from here", file=sys.stderr, flush=True
    )
    raise SystemExit(128 + number)
