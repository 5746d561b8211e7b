"""Every model's samples beside real patches (the paper's figures 4 and B.1), and their nearest training patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vesselgan.core.errors import DataError
from vesselgan.formats.shards import ShardSet, content_hash
from vesselgan.metrics import nearest_neighbours
from vesselgan.report import figures
from vesselgan.report.blocks import (
    Block,
    Figure,
    Files,
    Heading,
    Panel,
    Picture,
    Section,
    Text,
    counted,
    file_name,
    not_run,
    numbers_csv,
)
from vesselgan.report.figures import Sample
from vesselgan.report.runs import Run, gan_of
from vesselgan.viz import pictures, plots

NUM_SHOWN = 4
NUM_COMPARED = 32  # synthetic, and as many real patches, whose nearest neighbours are compared
AUDIT_KEYS = {"verdict", "reason", "override_privacy_gate", "inputs"}
CSV_COLUMNS = ("kind", "patch", "nearest training patch", "its subject", "distance")
FIGURES = {False: "Figure 4", True: "Figure B.1"}
"""Whether the GANs are differentially private -> the paper's figure of their samples."""

Pictures = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of a sample: the slice, the slice with the label, the label in 3D."""


@dataclass(frozen=True)
class Gallery:
    """The shown patches of one model, or the real ones."""

    title: str
    samples: list[Sample]
    spacing_mm: tuple[float, ...]

    def render(self, white: float) -> list[Pictures]:
        return [
            (
                figures.axial(sample, self.spacing_mm, white),
                figures.axial_label(sample, self.spacing_mm, white),
                figures.vessels(sample, self.spacing_mm),
            )
            for sample in self.samples
        ]


def section(
    runs: Sequence[Run],
    training: ShardSet | None,
    thresholds: dict[tuple[str, str], float],
    default: float | None,
    results: Sequence[dict[str, Any]] = (),
) -> Section:
    """Figures 4 and B.1, and each run's nearest training patches.

    training: the shards that the GANs were trained on, or None. thresholds: label thresholds by `gan_of`, `default`
    for other GANs. results: among them the memorisation audits.
    """
    blocks: list[Block] = []
    files: Files = {}
    real = _choose("Real", training, default, stream=1) if training is not None else Gallery("Real", [], ())
    shards = {run.folder: ShardSet(run.synthetic) for run in runs if run.synthetic is not None}
    labels_at = {folder: _threshold(patches, thresholds, default) for folder, patches in shards.items()}
    galleries = {
        run.folder: _choose(run.title, shards[run.folder], labels_at[run.folder], stream=0)
        for run in runs
        if run.folder in shards
    }
    white = figures.window(real.samples or [sample for gallery in galleries.values() for sample in gallery.samples])
    rendered_real = (real, real.render(white))
    for is_private, name in FIGURES.items():
        group = [run for run in runs if run.is_private == is_private]
        missing = [run.title for run in group if run.folder not in shards]
        blocks += [not_run(f"{title} has no synthetic shards (launch/generate.py run=DIR)") for title in missing]
        folders = [run.folder for run in group if run.folder in shards]
        if folders:
            rendered = [(galleries[folder], galleries[folder].render(white)) for folder in folders]
            blocks += _sample_figures(name, [rendered_real, *rendered], [labels_at[folder] for folder in folders])
            sheet = [list(row) for _, drawn in [*rendered, rendered_real] if drawn for row in zip(*drawn, strict=True)]
            files[f"{name.lower().replace(' ', '-')}.png"] = pictures.encode_png(pictures.sheet(sheet))
        else:
            blocks.append(not_run(f"{name}, samples of {'private ' if is_private else ''}GANs: no run has any"))
    for run in runs:
        if run.folder in shards:
            synthetic, samples = shards[run.folder], galleries[run.folder].samples
            blocks += [Heading(f"Nearest training patches of {run.title}"), *_audit(synthetic, results)]
            if training is None:
                blocks.append(not_run("the cohort has no training shards"))
                continue
            stem = f"nearest-{file_name(run.folder.name)}"
            blocks += _neighbours(synthetic, training, samples, white, labels_at[run.folder], stem, files)
    return Section("Synthetic patches", blocks, files)


def _threshold(patches: ShardSet, thresholds: dict[tuple[str, str], float], default: float | None) -> float | None:
    gan = gan_of(patches.manifest.extra)
    chosen = thresholds.get(gan, default) if gan is not None else default
    return patches.label_threshold if chosen is None else chosen


def _choose(title: str, shards: ShardSet, label_threshold: float | None, *, stream: int) -> Gallery:
    indices = figures.choose_with_vessels(shards, NUM_SHOWN, stream=stream, label_threshold=label_threshold)
    return Gallery(title, figures.read_samples(shards, indices, label_threshold), shards.spacing_mm)


def _sample_figures(
    name: str, rendered: Sequence[tuple[Gallery, list[Pictures]]], thresholds: Sequence[float | None]
) -> list[Block]:
    """Slices with labels, then the labels in 3D."""
    slices, surfaces = [], []
    for gallery, drawn in rendered:
        none = "" if gallery.samples else "not run: no training shards"
        pairs = list(zip(gallery.samples, drawn, strict=True))
        cells = [
            Picture([(image, f"{s.name}, image"), (label, f"{s.name}, vessel label")], text=s.name)
            for s, (image, label, _) in pairs
        ]
        slices.append(Panel(cells, gallery.title, none, grid="four"))
        cells = [Picture([(surface, f"{s.name}, vessels in 3D")], s.name, s.vessels) for s, (*_, surface) in pairs]
        surfaces.append(Panel(cells, gallery.title, none, grid="pair"))
    distinct = ", ".join(dict.fromkeys("stored" if threshold is None else f"{threshold:g}" for threshold in thresholds))
    return [
        Figure(
            f"{name}, mid-axial slices",
            slices,
            f"Image above, vessel label below (synthetic labels: threshold {distinct}); one grey scale for all. "
            f"{figures.CHOICE}",
            how_to_read="every bright vessel should have a label and every label lie on a vessel, in synthetic as in "
            "real patches.",
        ),
        Figure(
            f"{name}, vessels in 3D",
            surfaces,
            "Label surfaces of the same patches, seen from behind and above. Each connected component has its own "
            "hue; the largest is red.",
            how_to_read="real vessels are a few long tubes that leave through the patch's faces. Many small components "
            "that touch no face are artefacts.",
        ),
    ]


def _audit(synthetic: ShardSet, results: Sequence[dict[str, Any]]) -> list[Text]:
    """The verdicts of evaluate=memorisation on exactly these patches."""
    content = content_hash(synthetic.folder)
    verdicts = []
    for audit in results:
        if audit.get("job") != "memorisation":
            continue
        if missing := AUDIT_KEYS - set(audit):
            raise DataError(f"a memorisation result lacks {', '.join(sorted(missing))}; remove it and evaluate again")
        if audit["inputs"].get("synthetic shards") == content:
            override = audit["override_privacy_gate"]
            reason = audit["reason"] if override is None else f"{audit['reason']}. Overridden: {override}"
            verdicts.append(Text(f"{reason}.", f"Memorisation gate: {audit['verdict']}."))
    return verdicts or [not_run("no result of evaluate=memorisation for these patches")]


def _neighbours(
    synthetic: ShardSet,
    training: ShardSet,
    samples: Sequence[Sample],
    white: float,
    label_threshold: float | None,
    stem: str,
    files: Files,
) -> list[Block]:
    """Each shown sample beside its nearest training patch, and the distances between real patches of two subjects.

    Adds to `files` STEM.png, a row per shown sample, and STEM.csv, every distance.
    """
    drawn = figures.choose(len(synthetic), NUM_COMPARED, stream=3)
    drawn_real = figures.choose(len(training), NUM_COMPARED, stream=2)
    queries = [("shown", synthetic, sample.index) for sample in samples]
    queries += [("synthetic", synthetic, i) for i in drawn]
    queries += [("real to another subject", training, i) for i in drawn_real]
    excluded = [training.subject(i) if shards is training else None for _, shards, i in queries]
    images = (shards.image(i) for _, shards, i in queries)
    neighbours = nearest_neighbours.nearest(images, training, excluded_subjects=excluded)
    rows: list[list[Any]] = [
        [kind, i, neighbour.index, neighbour.subject, neighbour.distance]
        for (kind, _, i), neighbour in zip(queries, neighbours, strict=True)
        if neighbour is not None
    ]
    panels, sheet = [], []
    for sample, neighbour in zip(samples, neighbours, strict=False):
        if neighbour is not None:
            (match,) = figures.read_samples(training, [neighbour.index], label_threshold)
            drawing = _draw_pair(sample, match, training.spacing_mm, white)
            sheet.append([image for image, _ in drawing])
            text = f"{sample.name} | {match.name} | distance {neighbour.distance:.3f}"
            panels.append(Panel([Picture([image]) for image in drawing], text=text, grid="pair"))
    files[f"{stem}.csv"] = numbers_csv(rows, CSV_COLUMNS)
    files[f"{stem}.png"] = pictures.encode_png(pictures.sheet(sheet))
    distances = {kind: [row[-1] for row in rows if row[0] == kind] for kind in ("synthetic", "real to another subject")}
    pairs = Figure(
        "Each synthetic sample (left) beside its nearest training patch (right)",
        panels,
        "Mid-axial slice above, maximum intensity projection below. Nearest of "
        f"{counted(len(training), 'training patch', 'training patches')} by the L2 distance per voxel between "
        "standardised images: 0 for a copy, 1.41 for unrelated images.",
        how_to_read="the generator copies if a pair is the same picture, or if synthetic samples lie nearer to "
        "training patches than real patches of different subjects lie to each other.",
        grid="cards",
    )
    return [pairs, _distances(*distances.values())]


def _draw_pair(
    sample: Sample, match: Sample, spacing_mm: Sequence[float], white: float
) -> list[tuple[np.ndarray, str]]:
    """The slices of both, then their projections, each with its description."""
    views = {"slice": figures.axial, "projection": figures.projection}
    return [
        (draw(patch, spacing_mm, white), f"{patch.name}, {view}")
        for view, draw in views.items()
        for patch in (sample, match)
    ]


def _distances(synthetic: Sequence[float], real: Sequence[float]) -> Block:
    if not real:
        return not_run("distances between real patches of two subjects: the training shards hold one subject")
    smallest = min(real)
    num_nearer = sum(distance < smallest for distance in synthetic)
    rows = [
        (f"synthetic to training ({len(synthetic)})", synthetic, float(np.median(synthetic))),
        (f"real to another subject ({len(real)})", real, float(np.median(real))),
    ]
    high = max(1.5, *synthetic, *real)
    label = "distance to the nearest patch (bar: median)"
    return Figure(
        "Distances to the nearest training patch",
        [Panel([plots.dots(rows, x_label=label, title="Distances", high=high)])],
        f"Synthetic to nearest training patch: median {np.median(synthetic):.3f}, smallest {min(synthetic):.3f}. Real "
        f"to nearest patch of another subject: median {np.median(real):.3f}, smallest {smallest:.3f}. {num_nearer} of "
        f"{len(synthetic)} synthetic samples lie nearer to a training patch than any of these real patches lies to one "
        "of another subject.",
    )
