"""Synthetic patches beside real ones: every model's samples (the paper's figures 4 and B.1), and the training patches
that they resemble most.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from vesselgan.core.errors import DataError
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.metrics import nearest_neighbours
from vesselgan.report import charts, figures
from vesselgan.report.figures import Sample
from vesselgan.report.markup import Part, counted, csv_text, figure, file_name, not_run, panels
from vesselgan.report.runs import Run, gan_of
from vesselgan.viz import pictures

NUM_SHOWN = 4
NUM_COMPARED = 32  # patches of either kind whose nearest neighbours make the yardstick
NEEDED = {"verdict", "reason", "override_privacy_gate", "inputs"}
"""Of a memorisation result."""
CSV_HEADS = ("kind", "patch", "nearest training patch", "its subject", "distance")
GALLERIES = {False: "Figure 4", True: "Figure B.1"}
"""Whether the GANs are differentially private -> the paper's figure of their samples."""


@dataclass(frozen=True)
class Shown:
    """The patches of one model, or the real ones, that are shown."""

    title: str
    samples: list[Sample]
    spacing_mm: tuple[float, ...]

    def drawn(self, white: float) -> "Drawn":
        """With its pictures: of every sample the slice, the slice with the label, the label in 3D."""
        draw = [
            (
                figures.axial(sample, self.spacing_mm, white),
                figures.axial_label(sample, self.spacing_mm, white),
                figures.vessels(sample, self.spacing_mm),
            )
            for sample in self.samples
        ]
        return Drawn(self.title, self.samples, draw)


@dataclass(frozen=True)
class Drawn:
    title: str
    samples: list[Sample]
    pictures: list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def section(
    runs: Sequence[Run],
    training: ShardSet | None,
    thresholds: dict[tuple[str, str], float],
    default: float,
    results: Sequence[dict[str, Any]] = (),
) -> Part:
    """Figures 4 and B.1, and each run's nearest training patches.

    training: the shards that the GANs were trained on, None if they are not there. thresholds: where a GAN's labels
    begin, by `gan_of`; `default` for others. results: among them the audits for copies.
    """
    body: list[str] = []
    files: dict[str, str | bytes] = {}
    real = _real(training, default)
    made = {run.folder: ShardSet(run.synthetic) for run in runs if run.synthetic is not None}
    cuts = {folder: thresholds.get(gan_of(patches.manifest.extra), default) for folder, patches in made.items()}
    shown = {run.folder: _of_run(run, made[run.folder], cuts[run.folder]) for run in runs if run.folder in made}
    white = figures.window((real.samples if real else []) or [s for some in shown.values() for s in some.samples])
    drawn_real = (real or Shown("Real", [], ())).drawn(white)
    for is_private, name in GALLERIES.items():
        group = [run for run in runs if run.is_private == is_private]
        models = [shown[run.folder].drawn(white) for run in group if run.folder in made]
        without = [run.title for run in group if run.folder not in made]
        body += [not_run(f"{title} has no synthetic shards (launch/generate.py run=DIR)") for title in without]
        if models:
            levels = [cuts[run.folder] for run in group if run.folder in made]
            body.append(_gallery(name, [drawn_real, *models], levels))
            files[f"{name.lower().replace(' ', '-')}.png"] = pictures.encode_png(_sheet([*models, drawn_real]))
        else:
            body.append(not_run(f"{name}, samples of {'private ' if is_private else ''}GANs: no run has any"))
    for run in runs:
        if run.folder in made:
            title = f"Nearest training patches of {run.title}"
            body.append(f"<h3>{escape(title)}</h3>{_verdict(made[run.folder], results)}")
            if training is None:
                body.append(not_run("the cohort's training shards are not there"))
                continue
            some = shown[run.folder].samples
            stem = f"nearest-{file_name(run.folder.name)}"
            body.append(_neighbours(made[run.folder], training, some, white, cuts[run.folder], stem, files))
    return Part("Synthetic patches", "\n".join(body), files)


def _real(training: ShardSet | None, label_threshold: float) -> Shown | None:
    if training is None:
        return None
    chosen = figures.choose_with_vessels(training, NUM_SHOWN, stream=1, label_threshold=label_threshold)
    return Shown("Real", figures.read_samples(training, chosen, label_threshold), training.spacing_mm)


def _of_run(run: Run, made: ShardSet, label_threshold: float) -> Shown:
    chosen = figures.choose_with_vessels(made, NUM_SHOWN, stream=0, label_threshold=label_threshold)
    return Shown(run.title, figures.read_samples(made, chosen, label_threshold), made.spacing_mm)


def _gallery(name: str, models: Sequence[Drawn], cuts: Sequence[float]) -> str:
    """All models, real patches first: slices with labels, then the labels in 3D."""

    def pair(sample: Sample, drawn: tuple[np.ndarray, ...]) -> str:
        image = figures.inline(drawn[0], f"{sample.name}, image")
        label = figures.inline(drawn[1], f"{sample.name}, vessel label")
        return f'<div class="stack">{image}{label}<div class="text">{escape(sample.name)}</div></div>'

    def rendering(sample: Sample, drawn: tuple[np.ndarray, ...]) -> str:
        picture = figures.inline(drawn[2], f"{sample.name}, vessels in 3D")
        text = f"<b>{escape(sample.name)}</b><br>{escape(sample.vessels)}"
        return f'<div class="stack">{picture}<div class="text">{text}</div></div>'

    levels = ", ".join(dict.fromkeys(f"{cut:g}" for cut in cuts))
    slices = figure(
        f"{name}, mid-axial slices",
        _cells(models, "four", pair),
        f"Image above, vessel label below (synthetic labels cut at {levels}); one grey scale for all. "
        f"{escape(figures.CHOICE)}",
        how_to_read="every bright vessel should carry a label and every label lie on a vessel, in the synthetic "
        "patches as in the real ones.",
    )
    renderings = figure(
        f"{name}, vessels in 3D",
        _cells(models, "pair", rendering),
        "Label surfaces of the same patches, seen from behind and above. Parts that are not connected have hues of "
        "their own, the largest is red.",
        how_to_read="real vessels are a few long tubes that leave through the patch's faces; crumbs in many colours "
        "that touch no face are invented.",
    )
    return slices + renderings


def _cells(models: Sequence[Drawn], grid: str, draw: Callable[[Sample, tuple[np.ndarray, ...]], str]) -> str:
    cards = []
    for model in models:
        cells = "".join(draw(*both) for both in zip(model.samples, model.pictures, strict=True))
        inner = f'<div class="cells {grid}">{cells}</div>' if cells else not_run("no training shards")
        cards.append((model.title, inner))
    return panels(cards)


def _sheet(models: Sequence[Drawn]) -> np.ndarray:
    """The figure as one picture: of every model three rows, its samples' slices, labels and renderings."""
    return pictures.sheet([list(row) for model in models if model.samples for row in zip(*model.pictures, strict=True)])


def _verdict(made: ShardSet, results: Sequence[dict[str, Any]]) -> str:
    """What evaluate=memorisation found about these very patches."""
    content = content_hash(made.folder)
    audits = [r for r in results if r.get("job") == "memorisation"]
    if any(missing := NEEDED - set(audit) for audit in audits):
        raise DataError(f"a memorisation result lacks {', '.join(sorted(missing))}; run its evaluation again")
    audits = [audit for audit in audits if audit["inputs"].get("synthetic shards") == content]
    told = [f"<p><b>Memorisation gate: {escape(a['verdict'])}.</b> {escape(_reason(a))}.</p>" for a in audits]
    return "".join(told) or not_run("no result of evaluate=memorisation for these patches")


def _reason(audit: dict[str, Any]) -> str:
    reason, override = audit["reason"], audit["override_privacy_gate"]
    return reason if override is None else f"{reason}. Overridden: {override}"


def _neighbours(
    made: ShardSet,
    training: ShardSet,
    shown: Sequence[Sample],
    white: float,
    label_threshold: float,
    stem: str,
    files: dict[str, str | bytes],
) -> str:
    """Each shown sample beside its nearest training patch, and how near real patches of different people are.

    `files` gets STEM.png, a row per shown sample, and STEM.csv, every distance.
    """
    drawn = figures.choose(len(made), NUM_COMPARED, stream=3)
    yardstick = figures.choose(len(training), NUM_COMPARED, stream=2)
    queries = [(made, [*(s.index for s in shown), *drawn]), (training, yardstick)]
    first, second = len(shown), len(shown) + len(drawn)
    of_whom: list[str | None] = [None] * second + [training.record(i).subject for i in yardstick]
    images = (shards.image_XYZ(i) for shards, some in queries for i in some)
    found = nearest_neighbours.nearest(images, training, excluded_subjects=of_whom)
    synthetic = [n.distance for n in found[first:second] if n is not None]
    people = [n.distance for n in found[second:] if n is not None]
    pairs = [
        (sample, neighbour, *figures.read_samples(training, [neighbour.index], label_threshold))
        for sample, neighbour in zip(shown, found, strict=False)
        if neighbour is not None
    ]
    drawings = [_drawn_pair(sample, twin, training.spacing_mm, white) for sample, _, twin in pairs]
    cards = [_card(*pair, drawing) for pair, drawing in zip(pairs, drawings, strict=True)]
    kinds = ["shown"] * first + ["synthetic"] * len(drawn) + ["real to another subject"] * len(yardstick)
    numbers = zip(kinds, (i for _, some in queries for i in some), found, strict=True)
    files[f"{stem}.csv"] = csv_text(CSV_HEADS, [[k, i, n.index, n.subject, n.distance] for k, i, n in numbers if n])
    files[f"{stem}.png"] = pictures.encode_png(pictures.sheet(drawings))
    return figure(
        "Each synthetic sample (left) beside the training patch nearest to it (right)",
        f'<div class="cells cards">{"".join(cards)}</div>{_distances(synthetic, people)}',
        "Mid-axial slice above, maximum intensity projection below. Nearest of all "
        f"{counted(len(training), 'training patch', 'training patches')} by the L2 distance per voxel between "
        "standardised images: 0 for a copy, 1.41 for unrelated images.",
        how_to_read="the generator copies if a pair is the same picture, or if synthetic samples lie nearer to "
        "training patches than real patches of different subjects lie to each other.",
    )


def _drawn_pair(sample: Sample, twin: Sample, spacing_mm: Sequence[float], white: float) -> list[np.ndarray]:
    """The slices of both, then their projections."""
    return [draw(p, spacing_mm, white) for draw in (figures.axial, figures.projection) for p in (sample, twin)]


def _card(sample: Sample, neighbour: nearest_neighbours.Neighbour, twin: Sample, drawing: Sequence[np.ndarray]) -> str:
    names = [f"{patch.name}, {what}" for what in ("slice", "projection") for patch in (sample, twin)]
    shown = [figures.inline(picture, name) for picture, name in zip(drawing, names, strict=True)]
    text = f"{escape(sample.name)} | {escape(twin.name)}<br><b>distance {neighbour.distance:.3f}</b>"
    return f'<div class="panel"><div class="cells pair">{"".join(shown)}</div><div class="text">{text}</div></div>'


def _distances(synthetic: Sequence[float], people: Sequence[float]) -> str:
    if not people:
        return (
            '<p class="notrun">yardstick not run: the training shards hold one subject, so there is no other one to '
            "compare with</p>"
        )
    floor = min(people)
    nearer = sum(distance < floor for distance in synthetic)
    top = max(1.5, *synthetic, *people)
    lines = [
        charts.Dots(f"synthetic to training ({len(synthetic)})", synthetic, float(np.median(synthetic))),
        charts.Dots(f"real to another subject ({len(people)})", people, float(np.median(people))),
    ]
    plot = charts.dot_plot(lines, x_label="distance to the nearest patch (bar: median)", title="Distances", high=top)
    return (
        f'<div class="two yardstick"><div class="panel">{plot}</div><div><p>Synthetic to nearest training patch: '
        f"median <b>{np.median(synthetic):.3f}</b>, smallest {min(synthetic):.3f}.<br>Real to nearest patch of another "
        f"subject: median <b>{np.median(people):.3f}</b>, smallest {floor:.3f}.</p><p>{nearer} of {len(synthetic)} "
        "synthetic samples lie nearer to a training patch than any of these real patches lies to one of another "
        "subject.</p></div></div>"
    )
