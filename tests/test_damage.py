"""Every artifact of a small pipeline is damaged in turn; each command that meets it says so, or does not need it."""

import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vesselgan.cli.main import run
from vesselgan.release.ledger import LEDGER
from vesselgan.viz import plots, rendering

NUM_CASES = 80
"""Drawn from some 2,200 pairs of damage and command, always the same; VESSELGAN_DAMAGE=all tries every one."""
ALLOWED = {0, 2, 3, 4, 6, 7}
IN_TRAINING = (
    "config.yaml",
    "provenance.json",
    "finished.json",
    "latest",
    "lock",
    "architecture.json",
    "metrics.jsonl",
)
"""Files of a run that its next session may write anew."""

TRAINING = ("train_gan", "train_unet", "finished_gan")

COHORT = [
    "data.prepare.patch_shape=[16,16,16]",
    "data.prepare.num_vessel_patches_gan=4",
    "data.prepare.num_vessel_patches_unet=4",
    "data.prepare.grid_patches=[]",
    "data.prepare.split.validation=1",
    "data.prepare.split.test=1",
    "data.prepare.max_clipped_vessel_share=1",
]
PHANTOM = ["phantom.num_subjects=3", "phantom.shape=[32,36,24]", "phantom.spacing_mm=[2.5,2.5,2.5]"]
GAN = ["variant=sn", "variant.width=8", "variant.latent_size=8", "train.batch_size=2", "train.num_workers=0"]
GAN += ["runtime.device=cpu", "variant.ema_decay=0.9", "train.log_every=1", "train.keep_last=5"]
UNET = ["unet.filters=[2,4]", "unet.batch_size=2", "unet.num_workers=0", "unet.validate_every=1", "unet.log_every=1"]
UNET += ["runtime.device=cpu", "unet.keep_last=5"]
MORE = "allow_config_change=[train.max_steps,unet.max_steps]"
IMAGE = ["image.extractor=random", "image.num_seeds=1", "image.num_runs=1", "image.num_pairs=2", "image.num_angles=5"]
IMAGE += ["image.num_clusters=2", "image.batch_size=4", "image.max_patches=4", "image.max_label_patches=2"]


class Pipeline:
    """A work folder and the commands that read it, each run in this process."""

    def __init__(self, work: Path, afresh: Callable[[], None], capsys: Any) -> None:
        self.work, self.afresh, self.capsys = work, afresh, capsys
        gan, unet, out = work / "runs/gan", work / "runs/unet", work / "out"
        learn = ["data.source=synthetic", f"synthetic={gan / 'synthetic'}", f"--run_dir={unet}", *UNET]
        patches = f"synthetic={gan / 'synthetic'}"
        released = [f"audit={work / 'results/audit.json'}", "reason=phantoms"]
        self.commands = {
            "check": ["check", "qc=false", *COHORT],
            "build_shards": ["build_shards", *COHORT],
            "train_gan": ["train_gan", f"--run_dir={gan}", *GAN, "train.max_steps=3", MORE],
            "finished_gan": ["train_gan", f"--run_dir={gan}", *GAN, "train.max_steps=2"],
            "generate": ["generate", f"run={gan}", "num_patches=2", "label_threshold=1e-3", f"out={out}"],
            "generate_again": ["generate", f"run={gan}", "num_patches=8", "label_threshold=1e-3"],
            "train_unet": ["train_unet", *learn, "unet.max_steps=3", MORE],
            "segment": ["segment", f"run={unet}", f"out={out}"],
            "segment_again": ["segment", f"run={unet}", f"out={work / 'predictions'}"],
            "evaluate": ["evaluate", "name=a", f"predictions={work / 'predictions'}", f"out={out}/a.json"],
            "threshold": ["evaluate", "evaluate=threshold", "name=a", f"out={out}/a.json"],
            "image": ["evaluate", "evaluate=image", "name=a", f"out={out}/a.json", f"image.{patches}", *IMAGE],
            "labels": ["evaluate", "evaluate=label_threshold", "name=a", f"out={out}/a.json", f"labels.{patches}"],
            "audit": ["audit", f"run={gan}", f"out={out}/a.json", "record_only=true"],
            "release": ["release", *released, "name=b", f"run={gan}"],
            "withdraw": ["release", "withdraw=sub-01"],
            "report": ["report", f"runs=[{gan}]", f"out={out}"],
            "status_gan": ["status", str(gan)],
            "status_unet": ["status", str(unet)],
            "status_stopped": ["status", str(work / "runs/stopped")],
        }

    def build(self) -> None:
        steps = [["make_phantom", *PHANTOM], self.commands["check"], self.commands["build_shards"]]
        steps += [self.commands["finished_gan"], self.commands["generate_again"]]
        steps += [[*self.commands["train_unet"][:-2], "unet.max_steps=2"], self.commands["segment_again"]]
        results = {"segmentation": "evaluate", "threshold": "threshold", "image": "image", "audit": "audit"}
        for name, command in results.items():
            words = [word for word in self.commands[command] if not word.startswith(("out=", "name="))]
            steps.append([*words, f"name={name}", f"out={self.work / 'results' / name}.json"])
        steps.append([word if word != "name=b" else "name=a" for word in self.commands["release"]])
        for words in steps:
            code, said = self.run(words)
            assert code == 0, f"{words}: {code}\n{said}"
        stopped = self.work / "runs/stopped"
        shutil.copytree(self.work / "runs/gan", stopped)
        (stopped / "finished.json").unlink()
        (stopped / "requeue").write_text(json.dumps({"step": 2, "reason": "signal SIGUSR1", "sessions": 1}))

    def run(self, words: list[str]) -> tuple[int | str, str]:
        """(exit code, or the traceback; what was printed)."""
        name, *arguments = words
        if name not in ("status", "generate"):
            arguments.append(f"work_dir={self.work}")
        self.afresh()
        self.capsys.readouterr()
        before, sys.argv = sys.argv, [name, *arguments]
        code: int | str = 0
        try:
            run(name)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:
            code = traceback.format_exc()
        finally:
            sys.argv = before
        captured = self.capsys.readouterr()
        return code, captured.out + captured.err


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for i in range(len(content) // 3, len(content), max(1, len(content) // 40)):
        content[i] ^= 0x55
    path.write_bytes(content)


def nonsense(path: Path) -> None:
    """Values of another kind under the right keys; of what is no object, a number."""
    try:
        value = json.loads(path.read_text())
        assert isinstance(value, dict)
    except (ValueError, AssertionError):
        path.write_text("7\n")
    else:
        path.write_text(json.dumps({key: value[key] if "version" in key else ["x"] for key in value}))


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def folder(path: Path) -> None:
    path.unlink()
    (path / "of").mkdir(parents=True)


DAMAGES: list[Callable[[Path], Any]] = [truncate, flip, nonsense, link, folder, Path.unlink]
DAMAGES += [
    lambda path: path.write_text("[]\n"),
    lambda path: path.write_text("{}\n"),
    lambda path: path.write_text(""),
]

NIFTI = ("check", "build_shards", "segment", "evaluate", "threshold")
OF_GAN = ("status_gan", "generate", "finished_gan", "train_gan", "report", "audit", "release")
READERS = {
    "phantom/nifti/*/*.nii.gz": NIFTI,
    "phantom/cohort.json": ("build_shards", "segment", "evaluate", "threshold", "train_unet", "report", "release"),
    "phantom/shards/gan/train/*": ("train_gan", "build_shards", "audit", "labels", "report", "generate", "release"),
    "phantom/shards/unet/*/*": ("train_unet", "build_shards", "image", "audit"),
    "phantom/shards/.build/*": ("build_shards",),
    "runs/gan/*": OF_GAN,
    "runs/gan/checkpoints/*": ("generate", "train_gan", "status_gan", "audit"),
    "runs/gan/checkpoints/step_00000002/*": ("generate", "train_gan", "status_gan", "audit", "release"),
    "runs/gan/synthetic/*": ("generate_again", "train_unet", "image", "audit", "labels", "report", "release"),
    "runs/stopped/*": ("status_stopped",),
    "runs/unet/*": ("status_unet", "segment", "train_unet"),
    "runs/unet/checkpoints/*/*": ("segment", "train_unet"),
    "predictions/*": ("segment_again", "evaluate"),
    "results/*.json": ("report", "release"),
    "release/ledger.jsonl": ("release", "withdraw"),
    "features/*": ("image", "audit"),
}


def cases(work: Path) -> Iterator[tuple[Path, Callable[[Path], Any], str]]:
    for pattern, commands in READERS.items():
        paths = sorted(path for path in work.glob(pattern) if path.is_file())
        assert paths, pattern
        if "nifti" in pattern or "features" in pattern:  # one of each kind
            paths = list({(path.name.split("-")[0], path.suffix): path for path in paths}.values())
        for path in paths:
            for damage in DAMAGES:
                for command in commands:
                    yield path, damage, command


@pytest.mark.soak
def test_no_damage_ends_in_a_traceback(tmp_path, afresh, capsys, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    # Drawing reads nothing and takes most of a report's time.
    chart = plots.draw("", (100, 100), lambda axes: None)
    monkeypatch.setattr(plots, "draw", lambda title, size, paint: replace(chart, title=title))
    monkeypatch.setattr(rendering, "render_vessels", lambda *label, size, **options: np.zeros((size, size, 3), "u1"))
    work, whole = tmp_path / "work", tmp_path / "whole"
    pipeline = Pipeline(work, afresh, capsys)
    pipeline.build()
    shutil.copytree(work, whole, symlinks=True)
    chosen = list(cases(work))
    if os.environ.get("VESSELGAN_DAMAGE") != "all":
        chosen = random.Random(0).sample(chosen, NUM_CASES)
    failures = []
    for path, damage, command in chosen:
        shutil.rmtree(work)
        shutil.copytree(whole, work, symlinks=True)
        damage(path)
        code, said = pipeline.run(pipeline.commands[command])
        fault = judge(pipeline, whole, path, command, code, said)
        if fault:
            failures.append(f"{command} with {path.relative_to(work)} after {damage.__name__}: {fault}")
    assert not failures, "\n\n".join(failures)


def judge(pipeline: Pipeline, whole: Path, damaged: Path, command: str, code: int | str, said: str) -> str:
    """What is wrong with the end of a command; empty if nothing is."""
    if code not in ALLOWED:
        return f"{code}\n{said}"
    folders = [path for path in damaged.parents if len(path.parts) >= len(pipeline.work.parts) + 2]
    if code and not any(place in said for place in (damaged.name, damaged.parent.name, *map(str, folders))):
        return f"exit {code} names another file: {said}"
    for before in whole.rglob("*"):
        now = pipeline.work / before.relative_to(whole)
        if not before.is_file() or before.is_symlink() or now == damaged or damaged in now.parents:
            continue
        is_training = command in TRAINING and now.is_relative_to(pipeline.work / "runs")
        # A run that falls back to an earlier checkpoint takes the steps after it again.
        if is_training and (now.name in IN_TRAINING or now.parent == damaged.parent):
            continue
        if not now.is_file():
            return f"{now} is gone; exit {code}: {said}"
        content = now.read_bytes()
        if content == before.read_bytes():
            continue
        if (is_training or now.name == LEDGER) and content.startswith(before.read_bytes()):
            continue
        if command == "build_shards" and now.parts[-2] != "nifti" and code == 0:
            continue  # a damaged record or list is made again
        return f"{now} changed; exit {code}: {said}"
    return ""
