"""The segmentation table and its aims, from results JSON: as rows, plain text, Markdown and CSV rows."""

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vesselgan.core.errors import DataError
from vesselgan.formats.results import Result, Results
from vesselgan.metrics.statistics import mean_and_sd
from vesselgan.report import paper
from vesselgan.report.markup import NOT_RUN, markdown

REGIONS = {"all": "All vessels", "intracranial": "Intracranial"}
METRICS = {"dice": "Dice", "bavd_voxels": "bAVD (voxels)", "bavd_mm": "bAVD (mm)"}
METHODS = {  # result's name -> title of the rows that the table always has
    "threshold": "Best global threshold",
    "real": "U-Net on real",
    "synthetic": "U-Net on synthetic",
    "shuffled": "U-Net on synthetic, labels shuffled",
}
PAPER = "paper"
PAPER_SOURCES = ("real", "SN-MP", "c-SN-MP")
CSV_COLUMNS = ("row", "region", "metric", "source", "statistic", "subject", "number")
AIMS = (  # text, target of all vessels and intracranial, the two methods, whether the aim is a ratio
    ("U-Net on real minus best threshold", (0.10, 0.05), "real", "threshold", False),
    ("U-Net on synthetic as a share of real", (0.80, 0.80), "synthetic", "real", True),
    ("U-Net on synthetic minus shuffled labels", (0.20, 0.20), "synthetic", "shuffled", False),
)


@dataclass(frozen=True)
class Cell:
    """One score over the test subjects; None is a value that is not defined (a distance to an empty mask)."""

    mean: float | None
    sd: float | None
    values: dict[str, float | None] = field(default_factory=dict)
    """By subject; empty in the paper's cells."""

    @property
    def median(self) -> float | None:
        defined = [value for value in self.values.values() if value is not None]
        return statistics.median(defined) if defined else None

    @property
    def num_undefined(self) -> int:
        return sum(value is None for value in self.values.values())


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    title: str
    cells: dict[tuple[str, str], dict[str, Cell]]
    """(region, metric) -> source -> cell. The source is empty, but for the paper's models; no cell: not run."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """By region, on the method's probability or intensity."""

    def cell(self, region: str, metric: str) -> Cell | None:
        return self.cells.get((region, metric), {}).get("")

    @property
    def subjects(self) -> list[str]:
        return sorted({s for by_source in self.cells.values() for cell in by_source.values() for s in cell.values})


@dataclass(frozen=True)
class Aim:
    """A comparison of two methods' mean Dice; `measured` is None if one of them was not run."""

    text: str
    target: float
    measured: float | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return NOT_RUN
        return "pass" if self.measured >= self.target else "fail"


def read_results(folder: str | Path) -> list[Result]:
    """Returns the results of one folder, sorted by file name; none if the folder does not exist.

    Raises DataError for a file that is not JSON, is of another format version, or lacks a key of its job.
    """
    results = []
    for path, result in Results(folder):
        if result.get("job") == "segmentation":
            _check_segmentation(result, path)
        results.append(result)
    return results


def _check_segmentation(result: Result, path: Path) -> None:
    for key, kind in (("name", str), ("cohort", str), ("split", str), ("subjects", list)):
        if not isinstance(result.get(key), kind):
            raise DataError(f"{path}: a segmentation result needs {key!r} as {kind.__name__}; run its evaluation again")
    for entry in result["subjects"]:
        is_entry = isinstance(entry, dict) and isinstance(entry.get("subject"), str)
        if not is_entry or entry.get("region") not in REGIONS:
            raise DataError(f"{path}: every entry of 'subjects' needs a subject and a region of {list(REGIONS)}")
        for metric in METRICS:
            value = entry.get(metric)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise DataError(f"{path}: {metric} of {entry['subject']} is {value!r}, not a number")


def by_cohort(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Segmentation results grouped by (cohort, split): only within a group they may share a table."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.get("job") == "segmentation":
            groups.setdefault((result["cohort"], result["split"]), []).append(result)
    return groups


def of_same_subjects(results: Iterable[Result]) -> tuple[list[Result], list[Result]]:
    """Returns (results on the subjects of `real`, else of the first result; the others): one table has one n."""
    results = list(results)
    if not results:
        return [], []
    subjects = _subjects(next((result for result in results if result["name"] == "real"), results[0]))
    same = [result for result in results if _subjects(result) == subjects]
    return same, [result for result in results if result not in same]


def _subjects(result: Result) -> set[str]:
    return {entry["subject"] for entry in result["subjects"]}


def segmentation_table(results: Iterable[Result]) -> list[Row]:
    """Returns the rows: METHODS in their order, run or not; other results by name; last the paper's numbers.

    Raises DataError if two results have one name, or differ in cohort, split or subjects (see of_same_subjects).
    """
    groups = by_cohort(results)
    if len(groups) > 1:
        raise DataError(f"results of {sorted(groups)} cannot share a table; make one for each (see by_cohort)")
    members = next(iter(groups.values()), [])
    if others := of_same_subjects(members)[1]:
        names = ", ".join(result["name"] for result in others)
        raise DataError(f"{names}: scored on other subjects than the rest; score all of them on the same split")
    by_name: dict[str, Result] = {}
    for result in members:
        if result["name"] in by_name:
            raise DataError(f"two results are called {result['name']!r}; remove one or evaluate with another name=")
        by_name[result["name"]] = result
    rows = [_row(name, title, by_name.pop(name, {})) for name, title in METHODS.items()]
    rows += [_row(name, name, result) for name, result in sorted(by_name.items())]
    return [*rows, _paper_row()]


def _row(name: str, title: str, result: Result) -> Row:
    """The result's own title wins: it says what was run, whatever its name."""
    cells: dict[tuple[str, str], dict[str, Cell]] = {}
    for region in REGIONS:
        entries = [entry for entry in result.get("subjects", []) if entry["region"] == region]
        for metric in METRICS:
            values = {entry["subject"]: _finite(entry.get(metric)) for entry in entries}
            if values:
                cells[region, metric] = {"": Cell(*mean_and_sd(values.values()), values)}
    return Row(name, str(result.get("title") or title), cells, _thresholds(result))


def _thresholds(result: Result) -> dict[str, float]:
    by_region = result.get("thresholds")
    if not isinstance(by_region, dict):
        by_region = {}
    thresholds = {region: _finite(by_region.get(region, result.get("threshold"))) for region in REGIONS}
    return {region: threshold for region, threshold in thresholds.items() if threshold is not None}


def _paper_row() -> Row:
    cells: dict[tuple[str, str], dict[str, Cell]] = {}
    for region in REGIONS:
        sources = {source: paper.TABLE_3[region][source] for source in PAPER_SOURCES}
        cells[region, "dice"] = {source: Cell(*scores.pegasus_dice) for source, scores in sources.items()}
        cells[region, "bavd_voxels"] = {source: Cell(*scores.pegasus_bavd) for source, scores in sources.items()}
    return Row(PAPER, "The paper, for orientation", cells)


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def aims(rows: list[Row]) -> list[Aim]:
    """Returns AIMS with what the rows' mean Dice gives."""
    by_name = {row.name: row for row in rows if row.name != PAPER}
    measured_aims = []
    for text, targets, first, second, is_ratio in AIMS:
        for (region, title), target in zip(REGIONS.items(), targets, strict=True):
            cells = [by_name[name].cell(region, "dice") if name in by_name else None for name in (first, second)]
            a, b = (cell.mean if cell is not None else None for cell in cells)
            if a is None or b is None or (is_ratio and not b):
                measured = None
            else:
                measured = a / b if is_ratio else a - b
            measured_aims.append(Aim(f"{text}, {title.lower()}", target, measured))
    return measured_aims


def format_cell(cell: Cell | None) -> str:
    """`0.912 (0.010)`, with the number of subjects whose value is not defined."""
    if cell is None:
        return NOT_RUN
    if cell.mean is None:
        return "not defined"
    text = f"{cell.mean:.3f}" + (f" ({cell.sd:.3f})" if cell.sd is not None else "")
    return text + (f", {cell.num_undefined} not defined" if cell.num_undefined else "")


def format_value(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _text_rows(rows: list[Row], regions: Iterable[str], *, has_median: bool = False) -> list[list[str]]:
    """Per row a line of mean (SD), below it one line per subject or, for the paper, per source."""
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
        cells = [row.cell(*column) for column in columns]
        medians = [f"; median {c.median:.3f}" if has_median and c and c.median is not None else "" for c in cells]
        lines.append([row.title, *(format_cell(c) + median for c, median in zip(cells, medians, strict=True))])
        for subject in row.subjects:
            values = [format_value(c.values[subject]) if c and subject in c.values else "-" for c in cells]
            lines.append([f"  {subject}", *values])
    return lines


def format_text(rows: list[Row]) -> str:
    """The table for a terminal of 80 columns, one block per region, then the aims."""
    texts = []
    for region, name in REGIONS.items():
        lines = [[f"{name}: mean (SD)", *METRICS.values()], *_text_rows(rows, [region])]
        widths = [max(len(line[j]) for line in lines) for j in range(len(lines[0]))]
        block = ["  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        texts += [block[0], "-" * max(len(text) for text in block), *block[1:], ""]
    return "\n".join(texts + [format_aim(aim) for aim in aims(rows)])


def format_aim(aim: Aim) -> str:
    measured = "-" if aim.measured is None else f"{aim.measured:.3f}"
    return f"{aim.verdict:7} {aim.text}: {measured} (aim {aim.target:.2f})"


def format_markdown(rows: list[Row]) -> str:
    """The table with medians, then the aims, as Markdown."""
    columns = ["mean (SD)", *(f"{region}: {metric}" for region in REGIONS.values() for metric in METRICS.values())]
    table = markdown(columns, _text_rows(rows, REGIONS, has_median=True))
    return "\n".join([table, "", *(f"- {format_aim(aim)}" for aim in aims(rows))]) + "\n"


def csv_rows(rows: list[Row]) -> Iterator[list[object]]:
    """Long form under CSV_COLUMNS, one number per line; `source` is the paper's model."""
    for row in rows:
        for (region, metric), by_source in row.cells.items():
            for source, cell in by_source.items():
                for subject, value in cell.values.items():
                    yield [row.name, region, metric, source, "value", subject, value]
                yield [row.name, region, metric, source, "mean", "", cell.mean]
                yield [row.name, region, metric, source, "sd", "", cell.sd]
