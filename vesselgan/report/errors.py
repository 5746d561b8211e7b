"""Error maps of one subject of every cohort, a row per source (the paper's figures 7 and B.2)."""

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vesselgan.core.errors import DataError
from vesselgan.report import figures
from vesselgan.report.markup import figure, file_name, not_run
from vesselgan.report.study_rows import PRIVATE, completed
from vesselgan.report.tables import REGIONS

WIDEST = 1000
"""Pixels of a map's picture in the page; the file beside it has all."""
KINDS = {"Table 3": ("synthetic", "real", "shuffled"), "Table B.1": (PRIVATE,)}
NAMES = {"Table 3": "Figure 7", "Table B.1": "Figure B.2"}


def section(comparison: dict[str, Any], folder: Path | None) -> tuple[dict[str, str], dict[str, str | bytes]]:
    """(HTML by the table that the maps belong to, the pictures beside the page).

    folder: <source>/<cohort>/<subject>.png, as evaluate writes them. DataError for a picture that cannot be read.
    """
    parts: dict[str, str] = {}
    files: dict[str, str | bytes] = {}
    for table, kinds in KINDS.items():
        name = NAMES[table]
        rows = [row for row in completed(comparison)["rows"] if row["kind"] in kinds and row["scores"]]
        shown = []
        for cohort in comparison["cohorts"]:
            found = _maps(folder, rows, cohort)
            if found:
                shown.append(_figure(name, cohort, *chosen(found), rows, files))
        parts[table] = "\n".join(shown) or not_run(f"{name}, error maps: none were written (error_maps=DIR)")
    return parts, files


def _maps(folder: Path | None, rows: Sequence[dict[str, Any]], cohort: str) -> dict[str, dict[str, Path]]:
    """Source -> subject -> picture, for names that stay below the folder."""
    found = {}
    for row in rows:
        is_plain = all(Path(part).name == part for part in (row["name"], cohort))
        paths = sorted((folder / row["name"] / cohort).glob("*.png")) if folder is not None and is_plain else []
        if paths:
            found[row["name"]] = {path.stem: path for path in paths}
    return found


def chosen(maps: dict[str, dict[str, Path]]) -> tuple[str, dict[str, Path]]:
    """One subject that every source has, by seed, and its picture per source."""
    common = sorted(set.intersection(*(set(subjects) for subjects in maps.values())))
    if not common:
        return "", {}
    subject = common[figures.choose(len(common), 1, stream=5)[0]]
    return subject, {source: subjects[subject] for source, subjects in maps.items()}


def _figure(
    name: str,
    cohort: str,
    subject: str,
    paths: dict[str, Path],
    rows: Sequence[dict[str, Any]],
    files: dict[str, str | bytes],
) -> str:
    title = f"{name}, error maps, {cohort}"
    if not paths:
        return not_run(f"{title}: no subject has a map of every source")
    stem = f"{name.lower().replace(' ', '-')}-{file_name(cohort)}"
    cells = []
    for row in rows:
        if row["name"] not in paths:
            continue
        data = paths[row["name"]].read_bytes()
        files[f"{stem}-{file_name(row['name'])}.png"] = data
        picture = _small(data, paths[row["name"]])
        dice = [
            f"Dice {facts['values'][subject]:.3f} ({REGIONS[region].lower()})"
            for region, metrics in row["scores"].get(cohort, {}).items()
            if subject in (facts := metrics["dice"])["values"]
        ]
        text = f"<b>{escape(row['title'])}</b> {escape(', '.join(dice))}"
        image = figures.inline(picture, f"{row['title']}, {subject}")
        cells.append(f'<div class="stack">{image}<div class="text">{text}</div></div>')
    return figure(
        escape(title),
        f'<div class="panel"><div class="cells">{"".join(cells)}</div></div>',
        f"Subject {escape(subject)}, chosen by seed ({figures.SEED}): projections along three axes and the surface. "
        '<i class="patch tp"></i> found, <i class="patch fp"></i> invented, <i class="patch fn"></i> missed.',
        how_to_read="thin yellow vessels are what a model misses; green away from every vessel is what it takes for "
        "one.",
    )


def _small(data: bytes, path: Path) -> np.ndarray:
    """The picture, at most WIDEST pixels wide."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((WIDEST, WIDEST))
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not readable as a picture ({error}); score that source again") from error
