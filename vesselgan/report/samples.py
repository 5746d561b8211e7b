"""The section about a GAN's run: its losses, its samples beside real patches, and the patches they resemble most."""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from vesselgan.report import charts, figures, nearest
from vesselgan.report.figures import Sample
from vesselgan.report.runs import Run
from vesselgan.shards import ShardSet

NUM_SHOWN = 4
NUM_COMPARED = 32  # patches of either kind whose nearest neighbours make the yardstick
PANELS = (
    ("Losses", {"critic_loss": "critic, with penalty", "generator_loss": "generator"}),
    ("Critic", {"wasserstein": "Wasserstein estimate", "penalty": "gradient penalty"}),
)


def section(run: Run, training: ShardSet | None, label_threshold: float) -> str:
    """Everything about one run as HTML; `training`: the shards that it was trained on, None if they are not there."""
    parts = [f"<h2>GAN {escape(run.title)}</h2>", _losses(run)]
    if run.synthetic is None:
        return "\n".join([*parts, _not_run("Samples", "this run has no synthetic shards (launch/generate.py run=DIR)")])
    made = ShardSet(run.synthetic)
    synthetic = figures.read_samples(made, figures.choose(len(made), NUM_SHOWN, stream=0), label_threshold)
    real: list[Sample] = []
    if training is not None:
        real = figures.read_samples(training, figures.choose(len(training), NUM_SHOWN, stream=1), label_threshold)
    white = figures.window(real or synthetic)
    parts += [
        _pairs(real, synthetic, made.spacing_mm, white, label_threshold),
        _renderings(real, synthetic, made.spacing_mm),
    ]
    if training is None:
        parts.append(_not_run("Nearest training patches", "the cohort's training shards are not there"))
    else:
        parts.append(_neighbours(made, training, synthetic, white, label_threshold))
    return "\n".join(parts)


def _not_run(title: str, why: str) -> str:
    return f'<h3>{escape(title)}</h3><p class="notrun">not run: {escape(why)}</p>'


def _losses(run: Run) -> str:
    if not len(run.steps):
        return _not_run("Training", "this run has logged nothing yet")
    panels = []
    for title, names in PANELS:
        series = [charts.Series(text, run.steps, run.scalars[n]) for n, text in names.items() if n in run.scalars]
        chart = charts.line_chart(series, x_label="generator step", y_label="value", title=title) if series else ""
        panels.append(f'<div class="panel"><h4>{title}</h4>{chart or _absent()}</div>')
    state = "finished" if run.finished is not None else "not finished"
    told = f", {np.nanmedian(run.scalars['step_ms']):.0f} ms each" if "step_ms" in run.scalars else ""
    for player in ("critic", "generator"):
        total = float(np.nanmax(run.scalars.get(f"{player}_skipped_total", np.zeros(1))))
        told += f", {total:.0f} {player} steps skipped" if total > 0 else ""
    return (
        f'<h3>Training</h3><figure><div class="two">{"".join(panels)}</div>'
        f"<figcaption><b>Losses</b> over {int(run.steps[-1]):,} generator steps ({state}{told}); faint: as logged, "
        "strong: running mean. To read it: a GAN's losses do not fall like a classifier's. The Wasserstein estimate "
        "should rise quickly, then shrink slowly and stay positive while the penalty stays small; one that runs off to "
        "one side is a training that failed.</figcaption></figure>"
    )


def _absent() -> str:
    return '<p class="notrun">not logged</p>'


def _halves(real: Sequence[Sample], synthetic: Sequence[Sample], grid: str, draw: Callable[[Sample], str]) -> str:
    halves = []
    for title, some in (("Real", real), ("Synthetic", synthetic)):
        cells = "".join(draw(sample) for sample in some)
        inner = (
            f'<div class="cells {grid}">{cells}</div>' if some else '<p class="notrun">not run: no training shards</p>'
        )
        halves.append(f'<div class="panel"><h4>{title}</h4>{inner}</div>')
    return f'<div class="two">{"".join(halves)}</div>'


def _pairs(
    real: Sequence[Sample], synthetic: Sequence[Sample], spacing_mm: Sequence[float], white: float, threshold: float
) -> str:
    def draw(sample: Sample) -> str:
        image = figures.inline(figures.axial(sample, spacing_mm, white), f"{sample.name}, image")
        label = figures.inline(figures.axial_label(sample, spacing_mm, white), f"{sample.name}, vessel label")
        return f'<div class="stack">{image}{label}<div class="text">{escape(sample.name)}</div></div>'

    return (
        f"<h3>Images and their labels</h3><figure>{_halves(real, synthetic, 'four', draw)}"
        "<figcaption><b>Mid-axial slices</b>, image above, vessel label below (synthetic labels cut at "
        f"{threshold:g}); one grey scale for all. Which patches are shown was fixed by seed ({figures.SEED}) before "
        "any was looked at. To read it: every bright vessel should carry a label and every label lie on a vessel, on "
        "the right as on the left.</figcaption></figure>"
    )


def _renderings(real: Sequence[Sample], synthetic: Sequence[Sample], spacing_mm: Sequence[float]) -> str:
    def draw(sample: Sample) -> str:
        picture = figures.inline(figures.vessels(sample, spacing_mm), f"{sample.name}, vessels in 3D")
        text = f"<b>{escape(sample.name)}</b><br>{escape(sample.vessels)}"
        return f'<div class="stack">{picture}<div class="text">{text}</div></div>'

    return (
        f"<h3>Vessels in 3D</h3><figure>{_halves(real, synthetic, 'pair', draw)}"
        "<figcaption><b>Label surfaces</b> of the same patches, seen from behind and above. Parts that are not "
        "connected have hues of their own, the largest is red. To read it: real vessels are a few long tubes that "
        "leave through the patch's faces; crumbs in many colours that touch no face are invented.</figcaption></figure>"
    )


def _neighbours(
    made: ShardSet, training: ShardSet, shown: Sequence[Sample], white: float, label_threshold: float
) -> str:
    """Each shown sample beside its nearest training patch, and how near real patches of different people are."""
    drawn = figures.choose(len(made), NUM_COMPARED, stream=0)  # begins with those that are shown
    yardstick = figures.choose(len(training), NUM_COMPARED, stream=2)
    of_whom: list[str | None] = [None] * len(drawn) + [training.record(i).subject for i in yardstick]
    images = (shards.image_XYZ(i) for shards, some in ((made, drawn), (training, yardstick)) for i in some)
    found = nearest.nearest(images, training, not_of=of_whom)
    synthetic = [n.distance for n in found[: len(drawn)] if n is not None]
    people = [n.distance for n in found[len(drawn) :] if n is not None]
    cards = [
        _card(sample, neighbour, training, white, label_threshold)
        for sample, neighbour in zip(shown, found, strict=False)
        if neighbour is not None
    ]
    return (
        f'<h3>Nearest training patches</h3><figure><div class="cells cards">{"".join(cards)}</div>'
        f"{_distances(synthetic, people)}"
        "<figcaption><b>Each synthetic sample (left) beside the training patch nearest to it (right)</b>: mid-axial "
        f"slice above, maximum intensity projection below. Nearest of all {len(training):,} training patches by the L2 "
        "distance per voxel between standardised images: 0 for a copy, 1.41 for unrelated images. To read it: the "
        "generator copies if a pair is the same picture, or if synthetic samples lie nearer to training patches than "
        "real patches of different subjects lie to each other.</figcaption></figure>"
    )


def _card(
    sample: Sample, neighbour: nearest.Neighbour, training: ShardSet, white: float, label_threshold: float
) -> str:
    (twin,) = figures.read_samples(training, [neighbour.index], label_threshold)
    spacing = training.spacing_mm
    pictures = [
        figures.inline(draw(patch, spacing, white), f"{patch.name}, {what}")
        for draw, what in ((figures.axial, "slice"), (figures.projection, "projection"))
        for patch in (sample, twin)
    ]
    text = f"{escape(sample.name)} | {escape(twin.name)}<br><b>distance {neighbour.distance:.3f}</b>"
    return f'<div class="panel"><div class="cells pair">{"".join(pictures)}</div><div class="text">{text}</div></div>'


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
