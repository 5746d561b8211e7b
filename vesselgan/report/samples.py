"""Every model's samples beside real patches (the paper's figures 4 and B.1), and their nearest training patches."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vesselgan.core.console import counted
from vesselgan.core.errors import DataError, reading
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
    file_name,
    not_run,
    numbers_csv,
)
from vesselgan.report.commands import DEFAULT, Commands
from vesselgan.report.figures import Sample
from vesselgan.report.runs import Made, Run, gan_of
from vesselgan.viz import pictures, plots

NUM_SHOWN = 4
NUM_COMPARED = 32  # synthetic, and as many real patches, whose nearest neighbours are compared
AUDIT_KEYS = {"verdict", "sentence", "override_privacy_gate", "inputs", "synthetic"}
CSV_COLUMNS = ("kind", "patch", "nearest training patch", "its subject", "distance")
FIGURES = {False: "Figure 4", True: "Figure B.1"}
"""Whether the GANs are differentially private -> the paper's figure of their samples."""

Pictures = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of a sample: the slice, the slice with the label, the label in 3D."""


@dataclass(frozen=True)
class Gallery:
    """The shown patches of one model, or the real ones."""

    title: str
    shards: ShardSet
    samples: list[Sample]
    label_threshold: float | None
    white: float
    """The intensity shown as white; the same in all galleries."""

    @functools.cached_property
    def drawn(self) -> list[Pictures]:
        spacing_mm = self.shards.spacing_mm
        return [
            (
                figures.axial(sample, spacing_mm, self.white),
                figures.axial_label(sample, spacing_mm, self.white),
                figures.vessels(sample, spacing_mm),
            )
            for sample in self.samples
        ]

    @property
    def threshold_text(self) -> str:
        return "stored" if self.label_threshold is None else f"{self.label_threshold:g}"

    @property
    def is_first_empty(self) -> bool:
        return bool(self.samples) and not self.samples[0].label_XYZ.any()

    @property
    def first(self) -> list[Picture]:
        """The first sample's projection and vessels, for the head of the page."""
        if not self.samples:
            return []
        image = figures.projection(self.samples[0], self.shards.spacing_mm, self.white)
        label = "vessel label, empty" if self.is_first_empty else "vessel label"
        shown = {"image": image, label: self.drawn[0][2]}
        origin = self.shards.origin.capitalize()
        return [Picture([(picture, f"{origin} patch, {what}")], origin, what) for what, picture in shown.items()]


def read_galleries(
    runs: Sequence[Run], training: ShardSet | None, thresholds: dict[Made, float], default: float | None
) -> tuple[Gallery | None, dict[Path, Gallery]]:
    """Returns (the real patches' gallery, the gallery of each run that has synthetic shards).

    training: the shards that the generators were trained on. thresholds: label thresholds by `gan_of` that U-Nets
    learned with; `default`, if given, takes their place.
    """
    chosen: dict[Path | None, tuple[str, ShardSet, float | None]] = {}
    if training is not None:
        chosen[None] = "Real", training, default
    for run in runs:
        if run.synthetic is not None:
            shards = ShardSet(run.synthetic)
            chosen[run.folder] = (run.title, shards, _threshold(shards, thresholds, default))
    samples = {key: _choose(*about[1:], stream=0 if key else 1) for key, about in chosen.items()}
    white = figures.window(samples.get(None) or [sample for group in samples.values() for sample in group])
    made: dict[Path | None, Gallery] = {
        key: Gallery(title, shards, samples[key], threshold, white)
        for key, (title, shards, threshold) in chosen.items()
    }
    return made.get(None), {folder: gallery for folder, gallery in made.items() if folder is not None}


def section(
    runs: Sequence[Run],
    real: Gallery | None,
    galleries: dict[Path, Gallery],
    results: Sequence[dict[str, Any]] = (),
    commands: Commands = DEFAULT,
) -> Section:
    """Figures 4 and B.1, and each run's nearest training patches; `results`: among them the audits."""
    missing = [run for run in runs if run.folder not in galleries]
    blocks: list[Block] = [
        not_run(f"{run.title} has no synthetic shards (`{commands.generate(run.folder)}`)") for run in missing
    ]
    files: Files = {}
    if not runs:
        blocks.append(not_run("no run directory was given (runs=[DIR])"))
    for is_private, name in FIGURES.items():
        group = [galleries[run.folder] for run in runs if run.is_private == is_private and run.folder in galleries]
        if group:
            shown = [*([real] if real else []), *group]
            blocks += _sample_figures(name, shown)
            sheet = [list(row) for gallery in reversed(shown) for row in zip(*gallery.drawn, strict=True)]
            files[f"{name.lower().replace(' ', '-')}.png"] = pictures.encode_png(pictures.sheet(sheet))
    for run in runs:
        if (gallery := galleries.get(run.folder)) is not None:
            blocks.append(Heading(f"Nearest training patches of {run.title}"))
            blocks += _audit(run, gallery.shards, results, commands)
            if real is None:
                blocks.append(not_run("the cohort has no training shards"))
                continue
            blocks += _neighbours(gallery, real.shards, f"nearest-{file_name(run.folder.name)}", files)
    return Section("Synthetic patches", blocks, files)


def _threshold(patches: ShardSet, thresholds: dict[Made, float], default: float | None) -> float | None:
    gan = gan_of(patches.manifest.extra)
    learned = thresholds.get(gan) if gan is not None else None
    return next((threshold for threshold in (default, learned) if threshold is not None), patches.label_threshold)


def _choose(shards: ShardSet, label_threshold: float | None, *, stream: int) -> list[Sample]:
    indices = figures.choose_with_vessels(shards, NUM_SHOWN, stream=stream, label_threshold=label_threshold)
    return figures.read_samples(shards, indices, label_threshold)


def _sample_figures(name: str, galleries: Sequence[Gallery]) -> list[Block]:
    """Slices with labels, then the labels in 3D."""
    slices, surfaces = [], []
    for gallery in galleries:
        pairs = list(zip(gallery.samples, gallery.drawn, strict=True))
        cells = [
            Picture([(image, f"{s.name}, image"), (label, f"{s.name}, vessel label")], text=s.name)
            for s, (image, label, _) in pairs
        ]
        slices.append(Panel(cells, gallery.title, grid="four"))
        cells = [Picture([(surface, f"{s.name}, vessels in 3D")], s.name, s.vessels) for s, (*_, surface) in pairs]
        surfaces.append(Panel(cells, gallery.title, grid="pair"))
    thresholds = [gallery.threshold_text for gallery in galleries if gallery.shards.origin == "synthetic"]
    distinct = ", ".join(dict.fromkeys(thresholds))
    return [
        Figure(
            f"{name}, axial slices",
            slices,
            "The slice with most vessel: image above, vessel label below (synthetic labels: threshold "
            f"{distinct}); one grey scale for all. "
            f"{figures.CHOICE}{_exceptions(galleries)}",
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


def _exceptions(galleries: Sequence[Gallery]) -> str:
    """A sentence on each gallery that shows patches with less vessel than figures.CHOICE says."""
    short = [g for g in galleries if any(s.vessel_fraction < figures.MIN_VESSEL_FRACTION for s in g.samples)]
    return "".join(f" Too few of the patches tried of {g.title} have as much." for g in short)


def audits_of(synthetic: ShardSet, results: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(verdict, sentence) of every audit of these patches, or, said so, of other samples of the same weights; of
    several audited sets each set's own. Raises DataError for a damaged one.
    """
    content, weights = content_hash(synthetic.folder), synthetic.manifest.extra.get("weights_sha256")
    verdicts = []
    for audit in results:
        if audit.get("job") != "audit":
            continue
        if missing := AUDIT_KEYS - set(audit):
            raise DataError(f"an audit's result lacks {', '.join(sorted(missing))}; remove it and audit again")
        with reading("an audit's result", "remove it and audit again"):
            audited = audit["inputs"].get("synthetic shards") or [None] * len(audit["synthetic"])
            sets = [(sha256, dict(one)) for sha256, one in zip(audited, audit["synthetic"], strict=True)]
            these = [one for sha256, one in sets if sha256 == content]
            alike = [one for _, one in sets if weights is not None and one.get("weights_sha256") == weights]
            said = "" if audit["override_privacy_gate"] is None else f" Overridden: {audit['override_privacy_gate']}."
            of = "" if these else "(of other samples of this generator) "
            verdicts += [(str(one["verdict"]), f"{of}{one['sentence']}{said}") for one in these or alike]
    return verdicts


def _audit(run: Run, synthetic: ShardSet, results: Sequence[dict[str, Any]], commands: Commands) -> list[Text]:
    verdicts = [Text(sentence, f"Privacy audit: {verdict}.") for verdict, sentence in audits_of(synthetic, results)]
    return verdicts or [not_run(f"no audit of these patches (`{commands.audit(run.folder, synthetic.folder)}`)")]


def _neighbours(gallery: Gallery, training: ShardSet, stem: str, files: Files) -> list[Block]:
    """Each shown sample beside its nearest training patch, and the distances between real patches of two patients.

    Adds to `files` STEM.png, a row per shown sample, and STEM.csv, every distance.
    """
    synthetic, samples = gallery.shards, gallery.samples
    drawn = figures.choose(len(synthetic), NUM_COMPARED, stream=3)
    drawn_real = figures.choose(len(training), NUM_COMPARED, stream=2)
    queries = [("shown", synthetic, sample.index) for sample in samples]
    queries += [("synthetic", synthetic, i) for i in drawn]
    queries += [("real to another patient", training, i) for i in drawn_real]
    excluded = [training.patient(i) if shards is training else None for _, shards, i in queries]
    images = (shards.image(i) for _, shards, i in queries)
    neighbours = nearest_neighbours.nearest(images, training, excluded_patients=excluded)
    rows: list[list[Any]] = [
        [kind, i, neighbour.index, neighbour.subject, neighbour.distance]
        for (kind, _, i), neighbour in zip(queries, neighbours, strict=True)
        if neighbour is not None
    ]
    panels, sheet = [], []
    for sample, neighbour in zip(samples, neighbours, strict=False):
        if neighbour is not None:
            (match,) = figures.read_samples(training, [neighbour.index], gallery.label_threshold)
            drawing = _draw_pair(sample, match, training.spacing_mm, gallery.white)
            sheet.append([image for image, _ in drawing])
            text = f"{sample.name} | {match.name} | distance {neighbour.distance:.3f}"
            panels.append(Panel([Picture([image]) for image in drawing], text=text, grid="pair"))
    files[f"{stem}.csv"] = numbers_csv(rows, CSV_COLUMNS)
    files[f"{stem}.png"] = pictures.encode_png(pictures.sheet(sheet))
    distances = {kind: [row[-1] for row in rows if row[0] == kind] for kind in ("synthetic", "real to another patient")}
    pairs = Figure(
        "Each synthetic sample (left) beside its nearest training patch (right)",
        panels,
        "The axial slice with most vessel above, maximum intensity projection below. Nearest of "
        f"{counted(len(training), 'training patch', 'training patches')} by the L2 distance per voxel between "
        "standardised images: 0 for a copy, 1.41 for unrelated images.",
        how_to_read="the generator copies if a pair is the same picture, or if synthetic samples lie nearer to "
        "training patches than real patches of different patients lie to each other.",
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
        return not_run("distances between real patches of two patients: the training shards are one patient's")
    smallest = min(real)
    num_nearer = sum(distance < smallest for distance in synthetic)
    rows = [
        (f"synthetic to training ({len(synthetic)})", synthetic, float(np.median(synthetic))),
        (f"real to another patient ({len(real)})", real, float(np.median(real))),
    ]
    high = max(1.5, *synthetic, *real)
    label = "distance to the nearest patch (bar: median)"
    return Figure(
        "Distances to the nearest training patch",
        [Panel([plots.dots(rows, x_label=label, title="Distances", high=high)])],
        f"Synthetic to nearest training patch: median {np.median(synthetic):.3f}, smallest {min(synthetic):.3f}. Real "
        f"to nearest patch of another patient: median {np.median(real):.3f}, smallest {smallest:.3f}. {num_nearer} of "
        f"{len(synthetic)} synthetic samples lie nearer to a training patch than any of these real patches lies to one "
        "of another patient.",
    )
