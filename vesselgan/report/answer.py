"""The head of the page: the answer in a sentence, a chart and four pictures, a table, warnings."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vesselgan.core.console import counted
from vesselgan.metrics.statistics import MIN_PATIENTS
from vesselgan.privacy.attacks.verdict import PASS
from vesselgan.report import likeness
from vesselgan.report.blocks import MIN_FOR_SPREAD, Block, Figure, Panel, Table, Text, mean_sd
from vesselgan.report.commands import DEFAULT, Commands
from vesselgan.report.figures import MIN_VESSEL_FRACTION
from vesselgan.report.runs import Run, gan_of
from vesselgan.report.samples import Gallery, audits_of
from vesselgan.report.table_3_notes import bavd_notes, budget, empty_labels, empty_predictions
from vesselgan.report.table_3_rows import PRIVATE, in_paper_order, model_of, split_of
from vesselgan.report.tables import REGIONS
from vesselgan.viz import plots

KINDS = ("real", "synthetic", PRIVATE, "both", "shuffled", "threshold")
SHOWN = {"dice": ("Dice", 3), "bavd_mm": ("bAVD (mm)", 2)}
"""Score -> name, digits."""
EQUAL = 0.005
"""Differences of Dice below it are none at the two digits of a sentence."""
NOTHING = "No U-Net was scored yet, so whether synthetic patches can take the place of real ones is not known."
PATCHES = "One of either kind, chosen by seed: maximum intensity projection, and the surface of the vessel label."

WITHOUT_SYNTHETIC = {
    "real": "real patches",
    "both": "real and synthetic patches together",
    "shuffled": "synthetic patches with shuffled labels",
}
"""Kind -> what its U-Nets learned from."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What stands above the sections of the page."""

    sentence: str = NOTHING
    further: list[str] = field(default_factory=list)
    """What else the first comparison says, and the sentences of the others."""
    blocks: list[Block] = field(default_factory=list)
    """Chart and table."""
    pictures: list[Block] = field(default_factory=list)
    """Beside them."""
    warnings: list[str] = field(default_factory=list)


def answer(
    comparisons: Sequence[Row],
    runs: Sequence[Run],
    real: Gallery | None,
    galleries: dict[Path, Gallery],
    results: Sequence[Row],
    commands: Commands = DEFAULT,
    *,
    home: str | None = None,
) -> Answer:
    """The answer of the first comparison that has scores; the others add a sentence each.

    home: the page's cohort; one of another's patients is named in the sentence.
    """
    scored = [in_paper_order(comparison) for comparison in comparisons]
    scored = [comparison for comparison in scored if any(by_kind(comparison).values())]
    warnings = [text for comparison in scored for text in _warnings(comparison)]
    warnings += [f"{run.title}: {text}." for run in runs for text in run.warnings]
    passed: list[str] = []
    for gallery in galleries.values():
        for verdict, reason in audits_of(gallery.shards, results):
            (passed if verdict == PASS else warnings).append(f"{gallery.title}, privacy audit: {verdict}: {reason}")
        warnings += likeness.warnings(gallery, real)
    if not scored:
        how = [f"A study trains and scores them: `{commands.study(runs)}`."] if runs else []
        return Answer(further=[*how, *passed], pictures=_pictures(None, real, galleries), warnings=warnings)
    first, *others = scored
    sentence, further = in_words(first, home)
    more = [further, *(f"{other['name']}: {' '.join(in_words(other, home))}" for other in others), *passed]
    pictures = _pictures(first, real, galleries)
    return Answer(sentence, [text for text in more if text], [_chart(first), *_table(first)], pictures, warnings)


def by_kind(comparison: Row) -> dict[str, list[Row]]:
    """Kind -> the rows whose Dice in the first cohort is known, the best first."""
    cohort = comparison["cohorts"][0]
    rows = [row for row in comparison["rows"] if _dice(row, cohort) is not None]
    rows.sort(key=lambda row: -(_dice(row, cohort) or 0.0))
    return {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}


def _scores(row: Row, cohort: str, region: str = "all") -> Row:
    scores: Row = row["scores"].get(cohort, {}).get(region, {})
    return scores


def _dice(row: Row, cohort: str) -> float | None:
    summary = _scores(row, cohort).get("dice")
    return None if summary is None or not math.isfinite(summary["mean"]) else float(summary["mean"])


def in_words(comparison: Row, home: str | None = None) -> tuple[str, str]:
    """(What the scores of the first cohort say, what else is worth a sentence)."""
    cohort = comparison["cohorts"][0]
    sources = by_kind(comparison)
    best = next(iter([*sources["synthetic"], *sources[PRIVATE]]), None)
    dice = {kind: _dice(rows[0], cohort) for kind, rows in sources.items() if rows}
    real, threshold = dice.get("real"), dice.get("threshold")
    if best is None:
        return _without_synthetic(comparison, threshold, home)
    value = _dice(best, cohort) or 0.0
    text = f"{_subject(best, sources[best['kind']])} reaches Dice {value:.2f} on {_volumes(best, comparison, home)}"
    against = "" if threshold is None else f"{_than(value, threshold)} the best single threshold ({threshold:.2f})"
    if real is not None:
        share = f"{value / real:.0%} of what" if real else _than(value, real)
        beside = f"{share} real patches give ({real:.2f})"
        text += f": {beside}" + (f", and {against}." if against else ". The best global threshold was not evaluated.")
    elif against:
        text += f", {against}. No U-Net was trained on real patches, so what synthetic ones cost is not known."
    else:
        text += ". There is nothing to compare it with: neither real patches nor a threshold were scored."
    return text, " ".join(_further(best, value, sources, dice, comparison))


def _further(
    best: Row, value: float, sources: dict[str, list[Row]], dice: dict[str, float | None], comparison: Row
) -> Iterator[str]:
    """Controls, further kinds of training data, further cohorts."""
    shuffled = dice.get("shuffled")
    if shuffled is not None and shuffled > value - EQUAL:
        yield f"Shuffled labels do as well ({shuffled:.2f}), so the synthetic labels taught it nothing."
    if (both := dice.get("both")) is not None:
        yield f"Real and synthetic patches together reach {both:.2f}."
    if best["kind"] != PRIVATE and (private := dice.get(PRIVATE)) is not None:
        row = sources[PRIVATE][0]
        yield f"Patches of {model_of(row)} with noised steps ({budget(row['privacy'])}) reach {private:.2f}."
    for cohort in comparison["cohorts"][1:]:
        if (elsewhere := _dice(best, cohort)) is not None:
            real = next((_dice(row, cohort) for row in sources["real"]), None)
            number = counted(_scores(best, cohort)["dice"]["n"], "volume")
            beside = f", real patches {real:.2f}" if real is not None else ""
            yield f"On {number} of {cohort}, where nothing was trained, synthetic ones reach {elsewhere:.2f}{beside}."


def _subject(row: Row, rows: Sequence[Row]) -> str:
    """rows: all of its kind."""
    gans = [gan_of(each.get("gan")) for each in rows]
    networks = {gan[:2] for gan in gans if gan}
    number = f"{len(networks)} generators" if len(networks) > 1 and None not in gans else f"{len(rows)} U-Nets"
    about = [f"of {model_of(row)}, the best of {number}"] if len(rows) > 1 else []
    about += [f"made with noised steps, {budget(row['privacy'])}"] if row["kind"] == PRIVATE else []
    return "A U-Net trained on synthetic patches alone" + (f" ({'; '.join(about)})" if about else "")


def _than(value: float, other: float) -> str:
    """Whether a Dice is above or below another."""
    return "as much as" if abs(value - other) < EQUAL else "more than" if value > other else "less than"


def _volumes(row: Row, comparison: Row, home: str | None) -> str:
    cohort = comparison["cohorts"][0]
    volumes = counted(_scores(row, cohort)["dice"]["n"], f"whole {split_of(comparison)} volume")
    return volumes if home in (None, cohort) else f"{volumes} of cohort {cohort}"


def _without_synthetic(comparison: Row, threshold: float | None, home: str | None) -> tuple[str, str]:
    best = next(row for rows in by_kind(comparison).values() for row in rows)
    volumes = _volumes(best, comparison, home)
    if best["kind"] in WITHOUT_SYNTHETIC:
        value = _dice(best, comparison["cohorts"][0]) or 0.0
        against = ""
        if threshold is not None:
            against = f", {_than(value, threshold)} the best single threshold ({threshold:.2f})"
        text = f"A U-Net trained on {WITHOUT_SYNTHETIC[best['kind']]} reaches Dice {value:.2f} on {volumes}{against}."
        return text, "None was trained on synthetic patches alone yet."
    if threshold is not None:
        return f"The best single threshold reaches Dice {threshold:.2f} on {volumes}; no U-Net was scored yet.", ""
    return NOTHING, ""


def _warnings(comparison: Row) -> list[str]:
    """Of the numbers in the sentence."""
    cohort = comparison["cohorts"][0]
    rows = [row for rows in by_kind(comparison).values() for row in rows]
    number = _scores(rows[0], cohort)["dice"]["n"]
    texts = []
    if number < MIN_PATIENTS:
        texts.append(
            f"{counted(number, 'volume')} of cohort {cohort} cannot tell such differences from chance; intervals "
            f"and tests need {MIN_PATIENTS}."
        )
    texts += [f"{title}: {counted(n, 'empty prediction')}." for title, n in empty_predictions(comparison).items()]
    if labels := empty_labels(comparison):
        texts.append(f"{counted(labels, f'{split_of(comparison)} label')} without a vessel voxel.")
    return texts


def _chart(comparison: Row) -> Figure:
    cohort = comparison["cohorts"][0]
    rows = []
    for row in [row for rows in by_kind(comparison).values() for row in rows]:
        summary = _scores(row, cohort)["dice"]
        rows.append((_short(row), list(summary["values"].values()), float(summary["mean"])))
    chart = plots.dots(rows, x_label="Dice", title=f"Dice of every {split_of(comparison)} volume, all vessels")
    return Figure("Dice", [Panel([chart])], "A dot per volume, a bar at the mean.", grid="one")


def _short(row: Row) -> str:
    """The row's title without its details, which the tables have."""
    return str(row["title"].split("; ")[0] if row["kind"] not in ("synthetic", PRIVATE) else row["title"])


def _table(comparison: Row) -> list[Block]:
    """Means of the first cohort, a row per source, and what explains them."""
    cohort = comparison["cohorts"][0]
    sources = [row for rows in by_kind(comparison).values() for row in rows]
    regions = [region for region in REGIONS if any(_scores(row, cohort, region) for row in sources)]
    columns = [(region, metric) for region in regions for metric in SHOWN]
    rows = []
    for row in sources:
        summaries = [_scores(row, cohort, region).get(metric) for region, metric in columns]
        rows.append([_cell(s, *SHOWN[metric][1:]) for s, (_, metric) in zip(summaries, columns, strict=True)])
    heads = pd.MultiIndex.from_tuples([(REGIONS[region], SHOWN[metric][0]) for region, metric in columns])
    titles = [row["title"].replace("; ", "\n") + _at_threshold(row) for row in sources]
    number = _scores(sources[0], cohort)["dice"]["n"]
    sd = " and SD" if number >= MIN_FOR_SPREAD else ""
    frame = pd.DataFrame(rows, index=titles, columns=heads, dtype=object)
    caption = (
        f"mean{sd} over {counted(number, 'volume')} of cohort {cohort}. Dice: overlap with the label, 1 is perfect. "
        "bAVD: balanced average Hausdorff distance to it, 0 is perfect."
    )
    notes = [Text(note, style="note") for note in bavd_notes(comparison)]
    return [Table(frame, "Segmentation of whole volumes:", caption, style="head"), *notes]


def _at_threshold(row: Row) -> str:
    """A line on the synthetic labels that its U-Net learned from."""
    threshold = row.get("label_threshold")
    return "" if threshold is None else f"\nlabel threshold {threshold:g}"


def _cell(summary: Row | None, digits: int) -> str:
    if summary is None:
        return "\N{EN DASH}"
    mean, _, sd = mean_sd(summary["mean"], summary["sd"], digits, n=summary["n"]).partition(" ")
    return f"{mean}\nSD {sd.strip('()')}" if sd else mean


def _pictures(comparison: Row | None, real: Gallery | None, galleries: dict[Path, Gallery]) -> list[Block]:
    """Image and label of a patch of the best generator, and of a real one."""
    sources = by_kind(comparison) if comparison else {}
    names = [(row.get("gan") or {}).get("run") for row in [*sources.get("synthetic", []), *sources.get(PRIVATE, [])]]
    folders = sorted(
        galleries, key=lambda f: names.index(f.resolve().name) if f.resolve().name in names else len(names)
    )
    shown = [*(galleries[folder] for folder in folders[:1]), *([real] if real else [])]
    cells = [picture for gallery in shown for picture in gallery.first]
    caption = " ".join([PATCHES, *(text for gallery in shown for text in _about_label(gallery))])
    return [Figure("Patches", [Panel(cells, grid="pair")], caption, grid="one")] if cells else []


def _about_label(gallery: Gallery) -> Iterator[str]:
    """Threshold of a synthetic label, and that the label is empty."""
    if gallery.shards.origin == "synthetic":
        yield f"Synthetic label at threshold {gallery.threshold_text}."
    if gallery.is_first_empty:
        yield (
            f"The {gallery.shards.origin} label is empty: of the patches tried none has a label of at least "
            f"{MIN_VESSEL_FRACTION:.1%} of its voxels."
        )
