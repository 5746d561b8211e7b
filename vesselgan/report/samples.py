"""Every model's samples beside real patches (the paper's figures 4 and B.1), and their nearest training patches."""

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
from vesselgan.report.markup import Section, counted, csv_text, figure, file_name, not_run, panels
from vesselgan.report.runs import Run, gan_of
from vesselgan.viz import pictures

NUM_SHOWN = 4
NUM_COMPARED = 32  # synthetic, and as many real patches, whose nearest neighbours are compared
AUDIT_KEYS = {"verdict", "reason", "override_privacy_gate", "inputs"}
CSV_COLUMNS = ("kind", "patch", "nearest training patch", "its subject", "distance")
FIGURES = {False: "Figure 4", True: "Figure B.1"}
"""Whether the GANs are differentially private -> the paper's figure of their samples."""

Pictures = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of a sample: the slice, the slice with the label, the label in 3D."""
Files = dict[str, str | bytes]


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
    body: list[str] = []
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
        body += [not_run(f"{title} has no synthetic shards (launch/generate.py run=DIR)") for title in missing]
        folders = [run.folder for run in group if run.folder in shards]
        if folders:
            rendered = [(galleries[folder], galleries[folder].render(white)) for folder in folders]
            body.append(_sample_figures(name, [rendered_real, *rendered], [labels_at[folder] for folder in folders]))
            sheet = [list(row) for _, drawn in [*rendered, rendered_real] if drawn for row in zip(*drawn, strict=True)]
            files[f"{name.lower().replace(' ', '-')}.png"] = pictures.encode_png(pictures.sheet(sheet))
        else:
            body.append(not_run(f"{name}, samples of {'private ' if is_private else ''}GANs: no run has any"))
    for run in runs:
        if run.folder in shards:
            synthetic, samples = shards[run.folder], galleries[run.folder].samples
            title = f"Nearest training patches of {run.title}"
            body.append(f"<h3>{escape(title)}</h3>{_audit(synthetic, results)}")
            if training is None:
                body.append(not_run("the cohort has no training shards"))
                continue
            stem = f"nearest-{file_name(run.folder.name)}"
            body.append(_neighbours(synthetic, training, samples, white, labels_at[run.folder], stem, files))
    return Section("Synthetic patches", "\n".join(body), files)


def _threshold(patches: ShardSet, thresholds: dict[tuple[str, str], float], default: float | None) -> float | None:
    gan = gan_of(patches.manifest.extra)
    chosen = thresholds.get(gan, default) if gan is not None else default
    return patches.label_threshold if chosen is None else chosen


def _choose(title: str, shards: ShardSet, label_threshold: float | None, *, stream: int) -> Gallery:
    indices = figures.choose_with_vessels(shards, NUM_SHOWN, stream=stream, label_threshold=label_threshold)
    return Gallery(title, figures.read_samples(shards, indices, label_threshold), shards.spacing_mm)


def _sample_figures(
    name: str, rendered: Sequence[tuple[Gallery, list[Pictures]]], thresholds: Sequence[float | None]
) -> str:
    """Slices with labels, then the labels in 3D."""

    def slices(sample: Sample, drawn: Pictures) -> str:
        image = figures.inline(drawn[0], f"{sample.name}, image")
        label = figures.inline(drawn[1], f"{sample.name}, vessel label")
        return f'<div class="stack">{image}{label}<div class="text">{escape(sample.name)}</div></div>'

    def rendering(sample: Sample, drawn: Pictures) -> str:
        picture = figures.inline(drawn[2], f"{sample.name}, vessels in 3D")
        text = f"<b>{escape(sample.name)}</b><br>{escape(sample.vessels)}"
        return f'<div class="stack">{picture}<div class="text">{text}</div></div>'

    def cards(grid: str, draw: Callable[[Sample, Pictures], str]) -> str:
        bodies = []
        for gallery, drawn in rendered:
            cells = "".join(draw(sample, of_sample) for sample, of_sample in zip(gallery.samples, drawn, strict=True))
            body = f'<div class="cells {grid}">{cells}</div>' if cells else not_run("no training shards")
            bodies.append((gallery.title, body))
        return panels(bodies)

    distinct = ", ".join(dict.fromkeys("stored" if threshold is None else f"{threshold:g}" for threshold in thresholds))
    return figure(
        f"{name}, mid-axial slices",
        cards("four", slices),
        f"Image above, vessel label below (synthetic labels: threshold {distinct}); one grey scale for all. "
        f"{escape(figures.CHOICE)}",
        how_to_read="every bright vessel should have a label and every label lie on a vessel, in synthetic as in real "
        "patches.",
    ) + figure(
        f"{name}, vessels in 3D",
        cards("pair", rendering),
        "Label surfaces of the same patches, seen from behind and above. Each connected component has its own hue; the "
        "largest is red.",
        how_to_read="real vessels are a few long tubes that leave through the patch's faces. Many small components "
        "that touch no face are artefacts.",
    )


def _audit(synthetic: ShardSet, results: Sequence[dict[str, Any]]) -> str:
    """The verdicts of evaluate=memorisation on exactly these patches."""
    content = content_hash(synthetic.folder)
    verdicts = ""
    for audit in results:
        if audit.get("job") != "memorisation":
            continue
        if missing := AUDIT_KEYS - set(audit):
            raise DataError(f"a memorisation result lacks {', '.join(sorted(missing))}; run its evaluation again")
        if audit["inputs"].get("synthetic shards") == content:
            override = audit["override_privacy_gate"]
            reason = audit["reason"] if override is None else f"{audit['reason']}. Overridden: {override}"
            verdicts += f"<p><b>Memorisation gate: {escape(audit['verdict'])}.</b> {escape(reason)}.</p>"
    return verdicts or not_run("no result of evaluate=memorisation for these patches")


def _neighbours(
    synthetic: ShardSet,
    training: ShardSet,
    samples: Sequence[Sample],
    white: float,
    label_threshold: float | None,
    stem: str,
    files: Files,
) -> str:
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
    cards, sheet = [], []
    for sample, neighbour in zip(samples, neighbours, strict=False):
        if neighbour is not None:
            (match,) = figures.read_samples(training, [neighbour.index], label_threshold)
            drawing = _draw_pair(sample, match, training.spacing_mm, white)
            sheet.append(drawing)
            cards.append(_card(sample, match, neighbour.distance, drawing))
    files[f"{stem}.csv"] = csv_text(CSV_COLUMNS, rows)
    files[f"{stem}.png"] = pictures.encode_png(pictures.sheet(sheet))
    distances = {kind: [row[-1] for row in rows if row[0] == kind] for kind in ("synthetic", "real to another subject")}
    return figure(
        "Each synthetic sample (left) beside its nearest training patch (right)",
        f'<div class="cells cards">{"".join(cards)}</div>{_distances(*distances.values())}',
        "Mid-axial slice above, maximum intensity projection below. Nearest of "
        f"{counted(len(training), 'training patch', 'training patches')} by the L2 distance per voxel between "
        "standardised images: 0 for a copy, 1.41 for unrelated images.",
        how_to_read="the generator copies if a pair is the same picture, or if synthetic samples lie nearer to "
        "training patches than real patches of different subjects lie to each other.",
    )


def _draw_pair(sample: Sample, match: Sample, spacing_mm: Sequence[float], white: float) -> list[np.ndarray]:
    """The slices of both, then their projections."""
    return [draw(p, spacing_mm, white) for draw in (figures.axial, figures.projection) for p in (sample, match)]


def _card(sample: Sample, match: Sample, distance: float, drawing: Sequence[np.ndarray]) -> str:
    names = [f"{patch.name}, {view}" for view in ("slice", "projection") for patch in (sample, match)]
    images = [figures.inline(picture, name) for picture, name in zip(drawing, names, strict=True)]
    text = f"{escape(sample.name)} | {escape(match.name)}<br><b>distance {distance:.3f}</b>"
    return f'<div class="panel"><div class="cells pair">{"".join(images)}</div><div class="text">{text}</div></div>'


def _distances(synthetic: Sequence[float], real: Sequence[float]) -> str:
    if not real:
        return not_run("distances between real patches of two subjects: the training shards hold one subject")
    smallest = min(real)
    num_nearer = sum(distance < smallest for distance in synthetic)
    lines = [
        charts.Dots(f"synthetic to training ({len(synthetic)})", synthetic, float(np.median(synthetic))),
        charts.Dots(f"real to another subject ({len(real)})", real, float(np.median(real))),
    ]
    high = max(1.5, *synthetic, *real)
    plot = charts.dot_plot(lines, x_label="distance to the nearest patch (bar: median)", title="Distances", high=high)
    return (
        f'<div class="two distances"><div class="panel">{plot}</div><div><p>Synthetic to nearest training patch: '
        f"median <b>{np.median(synthetic):.3f}</b>, smallest {min(synthetic):.3f}.<br>Real to nearest patch of another "
        f"subject: median <b>{np.median(real):.3f}</b>, smallest {smallest:.3f}.</p><p>{num_nearer} of "
        f"{len(synthetic)} synthetic samples lie nearer to a training patch than any of these real patches lies to one "
        "of another subject.</p></div></div>"
    )
