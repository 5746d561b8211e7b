"""Tables from results JSON: the segmentation table with its aims, as rows, plain text, Markdown and CSV."""

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vesselgan.core.errors import DataError
from vesselgan.report import paper

FORMAT_VERSION = 1
NOT_RUN = "not run"
REGIONS = {"all": "All vessels", "intracranial": "Intracranial"}
METRICS = {"dice": "Dice", "bavd_voxels": "bAVD (voxels)", "bavd_mm": "bAVD (mm)"}
METHODS = {  # the rows that the table always has, by the result's name
    "threshold": "Best global threshold",
    "real": "U-Net on real",
    "synthetic": "U-Net on synthetic",
    "shuffled": "U-Net on synthetic, labels shuffled",
}
PAPER = "paper"
PAPER_SOURCES = ("real", "SN-MP", "c-SN-MP")


@dataclass(frozen=True)
class Cell:
    """One score over the test subjects. None stands for a value that is not defined (a distance to an empty mask)."""

    mean: float | None
    sd: float | None
    values: dict[str, float | None] = field(default_factory=dict)
    """By subject; empty in the paper's cells, which have none."""

    @property
    def median(self) -> float | None:
        known = [value for value in self.values.values() if value is not None]
        return statistics.median(known) if known else None

    @property
    def num_undefined(self) -> int:
        return sum(value is None for value in self.values.values())


@dataclass(frozen=True)
class Row:
    """One line of the table: (region, metric) -> cells; no cell: not run. Only the paper has several."""

    name: str
    title: str
    cells: dict[tuple[str, str], dict[str, Cell]]
    cuts: dict[str, float] = field(default_factory=dict)
    """Where the method cut, by region: its probability's or intensity's threshold."""

    def cell(self, region: str, metric: str) -> Cell | None:
        return self.cells.get((region, metric), {}).get("")

    @property
    def subjects(self) -> list[str]:
        return sorted({s for group in self.cells.values() for cell in group.values() for s in cell.values})


@dataclass(frozen=True)
class Aim:
    """What a comparison should show. `measured` None: one of its two rows was not run."""

    text: str
    target: float
    measured: float | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return NOT_RUN
        return "pass" if self.measured >= self.target else "fail"


def read_results(folder: str | Path) -> list[dict]:
    """The results of one folder in the order of their file names; a folder that is not there holds none.

    DataError for a file that is not JSON, is of another format version, or lacks what its job must have.
    """
    results = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not readable as a result ({error}); run its evaluation again") from error
        if not isinstance(result, dict) or result.get("format_version") != FORMAT_VERSION:
            version = result.get("format_version") if isinstance(result, dict) else None
            raise DataError(f"{path}: results format {version!r}, this version reads {FORMAT_VERSION}; evaluate again")
        if result.get("job") == "segmentation":
            _check_segmentation(result, path)
        results.append(result)
    return results


def _check_segmentation(result: dict, path: Path) -> None:
    for key, kind in (("name", str), ("cohort", str), ("split", str), ("subjects", list)):
        if not isinstance(result.get(key), kind):
            raise DataError(f"{path}: a segmentation result needs {key!r} as {kind.__name__}; run its evaluation again")
    for entry in result["subjects"]:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("subject"), str)
            or entry.get("region") not in REGIONS
        ):
            raise DataError(f"{path}: every entry of 'subjects' needs a subject and a region of {list(REGIONS)}")
        for metric in METRICS:
            value = entry.get(metric)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise DataError(f"{path}: {metric} of {entry['subject']} is {value!r}, not a number")


def by_cohort(results: Iterable[dict]) -> dict[tuple[str, str], list[dict]]:
    """Segmentation results grouped by (cohort, split): only within a group may they share a table."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        if result.get("job") == "segmentation":
            groups.setdefault((result["cohort"], result["split"]), []).append(result)
    return groups


def of_same_subjects(results: Iterable[dict]) -> tuple[list[dict], list[dict]]:
    """(results on the subjects of `real`, else of the first one; the others): one table has one n."""
    results = list(results)
    first = next((result for result in results if result["name"] == "real"), results[0] if results else None)
    kept = [result for result in results if _subjects(result) == _subjects(first)]
    return kept, [result for result in results if result not in kept]


def _subjects(result: dict) -> set[str]:
    return {entry["subject"] for entry in result["subjects"]}


def segmentation_table(results: Iterable[dict]) -> list[Row]:
    """The rows: METHODS in their order, run or not; then results by other names; last the paper's numbers.

    DataError when two results have one name, or are of unlike cohorts, splits or subjects (see of_same_subjects).
    """
    results = list(results)
    groups = by_cohort(results)
    if len(groups) > 1:
        raise DataError(f"results of {sorted(groups)} cannot share a table; make one for each (see by_cohort)")
    if left_out := of_same_subjects(next(iter(groups.values()), []))[1]:
        names = ", ".join(result["name"] for result in left_out)
        raise DataError(f"{names}: scored on other subjects than the rest; score all of them on the same split")
    found: dict[str, dict] = {}
    for result in next(iter(groups.values()), []):
        if result["name"] in found:
            raise DataError(f"two results are called {result['name']!r}; remove one or evaluate with another name=")
        found[result["name"]] = result
    rows = [_row(name, title, found.pop(name, None)) for name, title in METHODS.items()]
    rows += [_row(name, name, result) for name, result in sorted(found.items())]
    return [*rows, _paper_row()]


def _row(name: str, title: str, result: dict | None) -> Row:
    """A result's own title wins: it says what was run, whatever the result is called."""
    cells: dict[tuple[str, str], dict[str, Cell]] = {}
    for region in REGIONS:
        entries = [e for e in (result or {}).get("subjects", []) if e["region"] == region]
        for metric in METRICS:
            values = {e["subject"]: _finite(e.get(metric)) for e in entries}
            if values:
                cells[region, metric] = {"": Cell(*_mean_sd(values.values()), values)}
    return Row(name, str((result or {}).get("title") or title), cells, _cuts(result or {}))


def _cuts(result: dict) -> dict[str, float]:
    by_region = result.get("thresholds") if isinstance(result.get("thresholds"), dict) else {}
    cuts = {region: _finite(by_region.get(region, result.get("threshold"))) for region in REGIONS}
    return {region: cut for region, cut in cuts.items() if cut is not None}


def _paper_row() -> Row:
    cells: dict[tuple[str, str], dict[str, Cell]] = {}
    for region in REGIONS:
        sources = {source: paper.TABLE_3[region][source] for source in PAPER_SOURCES}
        cells[region, "dice"] = {source: Cell(*scores.pegasus_dice) for source, scores in sources.items()}
        cells[region, "bavd_voxels"] = {source: Cell(*scores.pegasus_bavd) for source, scores in sources.items()}
    return Row(PAPER, "The paper, for orientation", cells)


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _mean_sd(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) of what is defined."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))


def aims(rows: list[Row]) -> list[Aim]:
    """What a working road should show, from the mean Dice of the rows."""
    dice = {
        (row.name, region): cell.mean
        for row in rows
        for region in REGIONS
        if row.name != PAPER and (cell := row.cell(region, "dice"))
    }

    def compare(first: str, second: str, region: str, how: Callable[[float, float], float | None]) -> float | None:
        a, b = dice.get((first, region)), dice.get((second, region))
        return None if a is None or b is None else how(a, b)

    def minus(a: float, b: float) -> float:
        return a - b

    def ratio(a: float, b: float) -> float | None:
        return a / b if b else None

    wanted = [
        ("U-Net on real minus best threshold", "all", 0.10, "real", "threshold", minus),
        ("U-Net on real minus best threshold", "intracranial", 0.05, "real", "threshold", minus),
        ("U-Net on synthetic as a share of real", "all", 0.80, "synthetic", "real", ratio),
        ("U-Net on synthetic as a share of real", "intracranial", 0.80, "synthetic", "real", ratio),
        ("U-Net on synthetic minus shuffled labels", "all", 0.20, "synthetic", "shuffled", minus),
        ("U-Net on synthetic minus shuffled labels", "intracranial", 0.20, "synthetic", "shuffled", minus),
    ]
    return [
        Aim(f"{text}, {REGIONS[region].lower()}", target, compare(first, second, region, how))
        for text, region, target, first, second, how in wanted
    ]


def format_cell(cell: Cell | None) -> str:
    """`0.912 (0.010)`; the count of subjects whose value is not defined is part of it."""
    if cell is None:
        return NOT_RUN
    if cell.mean is None:
        return "not defined"
    text = f"{cell.mean:.3f}" + (f" ({cell.sd:.3f})" if cell.sd is not None else "")
    return text + (f", {cell.num_undefined} not defined" if cell.num_undefined else "")


def format_value(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _with_median(cell: Cell | None, is_asked: bool) -> str:
    text = format_cell(cell)
    return f"{text}; median {cell.median:.3f}" if is_asked and cell is not None and cell.median is not None else text


def _lines(rows: list[Row], regions: Iterable[str], *, has_median: bool = False) -> list[list[str]]:
    """The table as texts: per row a line of mean (SD), below it one line per subject or, in the paper, per source."""
    columns = [(region, metric) for region in regions for metric in METRICS]
    lines = []
    for row in rows:
        if row.name == PAPER:
            lines.append([row.title] + [""] * len(columns))
            for source in PAPER_SOURCES:
                cells = [row.cells.get(column, {}).get(source) for column in columns]
                label = source if source == "real" else f"synthetic by {source}"
                lines.append([f"  {label}"] + ["-" if cell is None else format_cell(cell) for cell in cells])
            continue
        lines.append([row.title] + [_with_median(row.cell(*column), has_median) for column in columns])
        for subject in row.subjects:
            cells = [row.cell(*column) for column in columns]
            known = [format_value(cell.values[subject]) if cell and subject in cell.values else "-" for cell in cells]
            lines.append([f"  {subject}"] + known)
    return lines


def format_text(rows: list[Row]) -> str:
    """The table for a terminal of 80 columns, one block per region, the aims with pass or fail below."""
    texts = []
    for region, name in REGIONS.items():
        lines = [[f"{name}: mean (SD)", *METRICS.values()], *_lines(rows, [region])]
        widths = [max(len(line[j]) for line in lines) for j in range(len(lines[0]))]
        block = ["  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        texts += [block[0], "-" * max(len(text) for text in block), *block[1:], ""]
    return "\n".join(texts + [format_aim(aim) for aim in aims(rows)])


def format_aim(aim: Aim) -> str:
    measured = "-" if aim.measured is None else f"{aim.measured:.3f}"
    return f"{aim.verdict:7} {aim.text}: {measured} (aim {aim.target:.2f})"


def format_markdown(rows: list[Row]) -> str:
    """The same as a Markdown table."""

    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|").replace("<", "&lt;") for text in texts) + " |"

    heads = [f"{region}: {metric}" for region in REGIONS.values() for metric in METRICS.values()]
    table = [
        line(["mean (SD)", *heads]),
        "|" + "---|" * (len(heads) + 1),
        *(line(texts) for texts in _lines(rows, REGIONS, has_median=True)),
    ]
    return "\n".join([*table, "", *(f"- {format_aim(aim)}" for aim in aims(rows))]) + "\n"


def format_csv(rows: list[Row]) -> str:
    """Long form, one number a line at full precision; `source` is the paper's model."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "region", "metric", "source", "statistic", "subject", "number"])
    for row in rows:
        for (region, metric), cells in row.cells.items():
            for source, cell in cells.items():
                numbers = [("value", *item) for item in cell.values.items()] + [
                    ("mean", "", cell.mean),
                    ("sd", "", cell.sd),
                ]
                for what, subject, value in numbers:
                    text = "" if value is None else repr(value)
                    writer.writerow([row.name, region, metric, source, what, subject, text])
    return out.getvalue()
