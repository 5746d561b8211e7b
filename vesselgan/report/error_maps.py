"""Error maps of one subject per cohort, one for each source (the paper's figures 7 and B.2)."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vesselgan.core.errors import DataError
from vesselgan.core.names import check_inside, is_id
from vesselgan.report import figures
from vesselgan.report.blocks import Block, Figure, Files, Panel, Picture, Section, file_name, not_run
from vesselgan.report.commands import DEFAULT, Commands
from vesselgan.report.table_3_rows import PRIVATE, in_paper_order, split_of
from vesselgan.report.tables import REGIONS

MAX_WIDTH = 1000
"""Pixels of a map in the page; the file beside it has full size."""
KINDS = {"Figure 7": ("synthetic", "real", "shuffled"), "Figure B.2": (PRIVATE,)}
MEANINGS = {"tp": "true positive", "fp": "false positive", "fn": "false negative"}


def section(comparisons: Sequence[dict[str, Any]], folder: Path | None, commands: Commands = DEFAULT) -> Section:
    """The maps of every comparison, in the page and as files beside it.

    folder: holds <source>/<cohort>/<subject>.png, as evaluate writes them. Raises DataError for a damaged picture.
    """
    blocks: list[Block] = []
    files: Files = {}
    for comparison, (name, kinds) in itertools.product(map(in_paper_order, comparisons), KINDS.items()):
        rows = [row for row in comparison["rows"] if row["kind"] in kinds and row["scores"]]
        maps = {cohort: _find_maps(folder, rows, cohort) for cohort in comparison["cohorts"]}
        blocks += [_figure(name, comparison, of, by_source, rows, files) for of, by_source in maps.items() if by_source]
    return Section("Where the U-Nets err", blocks or _missing(comparisons, commands), files)


def _missing(comparisons: Sequence[dict[str, Any]], commands: Commands) -> list[Block]:
    """A command for every result of a U-Net that belongs to no study."""
    blocks: list[Block] = []
    for comparison in comparisons:
        for row in comparison["rows"] if comparison["unet_steps"] is None else ():
            if row["kind"] in KINDS["Figure 7"]:
                command = commands.map_errors(row["name"], comparison["cohorts"][0], comparison["split"])
                blocks.append(not_run(f"error maps of {row['title']} (`{command}`)"))
    return blocks or [not_run("error maps")]


def _find_maps(folder: Path | None, rows: Sequence[dict[str, Any]], cohort: str) -> dict[str, dict[str, Path]]:
    """Source -> subject -> picture. Names from results must not lead out of the folder."""
    maps: dict[str, dict[str, Path]] = {}
    for row in rows:
        if folder is not None and is_id(row["name"]) and is_id(cohort):
            scored = _patients(row, cohort)
            paths = sorted(p for p in (folder / row["name"] / cohort).glob("*.png") if p.stem in scored)
            check_inside(folder, paths)
            maps |= {row["name"]: {path.stem: path for path in paths}} if paths else {}
    return maps


def _patients(row: dict[str, Any], cohort: str) -> dict[str, str]:
    """Scored subject -> patient, by whom a study's scores are; subjects themselves where the row names no patients."""
    names = {name for metrics in row["scores"].get(cohort, {}).values() for name in metrics["dice"]["values"]}
    return (row.get("patients") or {}).get(cohort) or {name: name for name in names}


def _figure(
    name: str,
    comparison: dict[str, Any],
    cohort: str,
    maps: dict[str, dict[str, Path]],
    rows: Sequence[dict[str, Any]],
    files: Files,
) -> Block:
    """One subject that every source has, chosen by seed; a study draws the U-Nets of its first seed."""
    split, seeds = split_of(comparison), comparison["seeds"]
    scored = cohort if split == "test" else f"{cohort}, {split}"
    title = f"{name}, error maps, {scored}"
    common = sorted(set.intersection(*(set(by_subject) for by_subject in maps.values())))
    if not common:
        return not_run(f"{title}: no subject has a map of every source")
    subject = common[figures.choose(len(common), 1, stream=5)[0]]
    stem = f"{name.lower().replace(' ', '-')}-{file_name(scored)}"
    cells, num_visits = [], 1
    for row in rows:
        if row["name"] not in maps:
            continue
        path = maps[row["name"]][subject]
        data = path.read_bytes()
        files[f"{stem}-{file_name(row['name'])}.png"] = data
        patients = _patients(row, cohort)
        patient = patients[subject]
        num_visits = list(patients.values()).count(patient)
        dice = [
            f"Dice {metrics['dice']['values'][patient]:.3f} ({REGIONS[region].lower()})"
            for region, metrics in row["scores"].get(cohort, {}).items()
            if patient in metrics["dice"]["values"]
        ]
        image = _thumbnail(data, path), f"{row['title']}, {subject}"
        cells.append(Picture([image], row["title"], ", ".join(dice)))
    means = [f"{len(seeds)} seeds"] if len(seeds) > 1 else []
    means += [f"this patient's {num_visits} visits"] if num_visits > 1 else []
    return Figure(
        title,
        [Panel(cells)],
        f"Subject {subject}, chosen by seed ({figures.SEED}): projections along three axes and the surface."
        + (f" Maps of the U-Nets of seed {seeds[0]}." if len(seeds) > 1 else "")
        + (f" Dice: mean over {' and '.join(means)}." if means else ""),
        how_to_read="thin yellow vessels are missed; green away from every vessel is taken for one.",
        grid="one",
        key=MEANINGS,
    )


def _thumbnail(data: bytes, path: Path) -> np.ndarray:
    """The picture, at most MAX_WIDTH pixels wide."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((MAX_WIDTH, MAX_WIDTH))
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not readable as a picture ({error}); score that source again") from error
