"""The segmentation scores of one cohort as one tidy frame, the texts made of it, and the aims."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vesselgan.core.errors import DataError
from vesselgan.formats.results import Result, Results, truth_of
from vesselgan.metrics.statistics import mean_and_sd
from vesselgan.report import paper
from vesselgan.report.blocks import MIN_FOR_SPREAD, NOT_RUN, mean_sd

REGIONS = {"all": "All vessels", "intracranial": "Intracranial"}
METRICS = {"dice": "Dice", "bavd_voxels": "bAVD (voxels)", "bavd_mm": "bAVD (mm)"}
KINDS = ("real", "synthetic", "both", "shuffled", "threshold")
"""What a segmentation result is about, whatever its name."""
METHODS = {  # kind -> title; run or not
    "threshold": "Best global threshold",
    "real": "U-Net on real",
    "synthetic": "U-Net on synthetic",
    "shuffled": "U-Net on synthetic, labels shuffled",
}
PAPER = "paper"
PAPER_TITLE = "The paper, for orientation"
PAPER_SOURCES = {"real": "on real", "SN-MP": "on synthetic by SN-MP", "c-SN-MP": "on synthetic by c-SN-MP"}
CSV_COLUMNS = ("row", "region", "metric", "source", "statistic", "subject", "number")
AIMS = (  # text, target of all vessels and intracranial, the two kinds, whether the aim is a ratio
    ("U-Net on real minus best threshold", (0.10, 0.05), "real", "threshold", False),
    ("U-Net on synthetic minus best threshold", (0.01, 0.01), "synthetic", "threshold", False),
    ("U-Net on synthetic as a share of real", (0.80, 0.80), "synthetic", "real", True),
    ("U-Net on synthetic minus shuffled labels", (0.20, 0.20), "synthetic", "shuffled", False),
)


@dataclass(frozen=True)
class Scores:
    """The scores of one cohort."""

    frame: pd.DataFrame
    """One number per line under CSV_COLUMNS; `source` is the paper's model. NaN: not defined, as a distance to nothing.
    """
    titles: dict[str, str]
    """Row -> title, in the table's order, without the paper's; below it the thresholds."""
    rows: dict[str, list[str]]
    """Of METHODS' kinds -> rows; the first bears the kind's name, where one does."""

    @property
    def subjects(self) -> list[str]:
        return sorted(set(self.frame.subject) - {""})

    def values(self, row: str, region: str, metric: str) -> pd.Series:
        """A score by subject."""
        frame = self.frame.query("row == @row and region == @region and metric == @metric and statistic == 'value'")
        return frame.set_index("subject").number

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(region, metric) of the regions that were scored; all if none was."""
        scored = set(self.frame.region[self.frame.row != PAPER])
        return [column for column in COLUMNS if column[0] in scored or not scored]

    @property
    def missing(self) -> list[str]:
        """Titles of the methods that were not run."""
        return [title for kind, title in METHODS.items() if not self.rows[kind]]

    def row_of(self, kind: str) -> str | None:
        """The row that an aim compares: of several the one of the kind's name; None if none or no one is meant."""
        rows = self.rows[kind]
        return rows[0] if len(rows) == 1 or kind in rows else None

    def table(self, *, has_subjects: bool = False) -> pd.DataFrame:
        """Texts by title, region and metric: mean (SD), below it the median and, if wanted, every subject.

        The last row is the paper's.
        """
        texts = {
            key: _cell(group, has_subjects)
            for key, group in self.frame.groupby(["row", "region", "metric"], sort=False)
        }
        titles = self.titles | {PAPER: "\n".join([PAPER_TITLE, *PAPER_SOURCES.values()])}
        none = dict.fromkeys(titles, "\N{EN DASH}") | {PAPER: "\n".join(["\N{NO-BREAK SPACE}", *"\N{EN DASH}" * 3])}
        rows = [[texts.get((name, *column), none[name]) for column in self.columns] for name in titles]
        return pd.DataFrame(rows, index=list(titles.values()), columns=_heads(self.columns), dtype=object)

    def by_subject(self) -> pd.DataFrame:
        """Texts by title, subject, region and metric."""
        values = self.frame[self.frame.statistic == "value"]
        values = values.assign(text=values.number.map(format_value), row=pd.Categorical(values.row, [*self.titles]))
        texts = values.pivot(index=["row", "subject"], columns=["region", "metric"], values="text").sort_index()
        texts = texts.reindex(columns=self.columns).fillna("\N{EN DASH}")
        names, subjects = texts.index.get_level_values(0), texts.index.get_level_values(1)
        is_first = ~names.duplicated()
        titles = [_first(self.titles[name]) if first else "" for name, first in zip(names, is_first, strict=True)]
        columns = pd.MultiIndex.from_tuples([("", "subject"), *_heads(self.columns)])
        return pd.DataFrame(np.column_stack([subjects, texts]), index=titles, columns=columns)


COLUMNS = [(region, metric) for region in REGIONS for metric in METRICS]


def _heads(columns: Iterable[tuple[str, str]]) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples([(REGIONS[region], METRICS[metric]) for region, metric in columns])


@dataclass(frozen=True)
class Aim:
    """A comparison of two methods' mean Dice; `measured` is None if one of them was not run, or which is not said."""

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
            raise DataError(
                f"{path}: a segmentation result needs {key!r} as {kind.__name__}; remove it and evaluate again"
            )
    for key in ("inputs", "patients"):
        if not isinstance(result.get(key, {}), dict):
            raise DataError(f"{path}: {key!r} of a segmentation result is no object; remove it and evaluate again")
    scored: dict[str, list[str]] = {region: [] for region in REGIONS}
    for entry in result["subjects"]:
        is_entry = isinstance(entry, dict) and isinstance(entry.get("subject"), str)
        if not is_entry or entry.get("region") not in REGIONS:
            raise DataError(f"{path}: every entry of 'subjects' needs a subject and a region of {list(REGIONS)}")
        for metric in METRICS:
            value = entry.get(metric)
            is_none = value is None and metric != "dice"
            if not is_none and (isinstance(value, bool) or _finite(value) is None):
                raise DataError(f"{path}: {metric} of {entry['subject']} is {value!r}, not a number")
        scored[entry["region"]].append(entry["subject"])
    everyone = set(scored["all"])
    if not everyone or any(subjects and sorted(subjects) != sorted(everyone) for subjects in scored.values()):
        raise DataError(
            f"{path}: 'subjects' needs one entry of every subject for {REGIONS['all'].lower()}, and none or one each "
            "for the intracranial ones; remove it and evaluate again"
        )


def by_cohort(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Segmentation results grouped by (cohort, split): only within a group they may share a table."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.get("job") == "segmentation":
            groups.setdefault((result["cohort"], result["split"]), []).append(result)
    return groups


def kind_of(result: Result) -> str | None:
    """Of KINDS, by its record: what its U-Net learned from, or a fitted threshold; else its name, if that is one."""
    settings = result.get("segmented_with") or {}
    kind = "shuffled" if settings.get("shuffle_labels") else settings.get("source")
    kind = "threshold" if "fitted_on" in result else kind
    return next((name for name in (kind, result["name"]) if name in KINDS), None)


def _of_kind(results: Iterable[Result], kind: str) -> list[Result]:
    """By name, the one of the kind's own first."""
    members = [result for result in results if kind_of(result) == kind]
    return sorted(members, key=lambda result: (result["name"] != kind, result["name"]))


def of_same_subjects(results: Iterable[Result]) -> tuple[list[Result], list[Result]]:
    """Returns (results on the subjects and labels of kind `real`, else of the first result; the others)."""
    results = list(results)
    if not results:
        return [], []
    truth = truth_of([*_of_kind(results, "real"), *results][0])
    same = [result for result in results if truth_of(result) == truth]
    return same, [result for result in results if result not in same]


def segmentation_scores(results: Iterable[Result]) -> Scores:
    """Returns the scores: METHODS in their order; other results by name; last the paper's numbers.

    Raises DataError if two results have one name, or one the paper's; if they differ in cohort, split, subjects or
    labels.
    """
    groups = by_cohort(results)
    if len(groups) > 1:
        raise DataError(f"results of {sorted(groups)} cannot share a table; make one for each (see by_cohort)")
    members = next(iter(groups.values()), [])
    if strangers := of_same_subjects(members)[1]:
        left_out = ", ".join(result["name"] for result in strangers)
        raise DataError(f"{left_out}: scored on other subjects or labels than the rest; score all of them again")
    by_name: dict[str, Result] = {}
    for result in members:
        if result["name"] in by_name or result["name"] == PAPER:
            raise DataError(f"two rows are called {result['name']!r}; remove one or evaluate with another name=")
        by_name[result["name"]] = result
    rows = {kind: [result["name"] for result in _of_kind(members, kind)] for kind in METHODS}
    names = dict.fromkeys([*(name for of_kind in rows.values() for name in of_kind), *sorted(by_name)])
    records = [record for name in names for record in _records(name, by_name[name])]
    frame = pd.DataFrame([*records, *_paper_records()], columns=list(CSV_COLUMNS))
    titles = {name: _title(by_name[name]) for name in names}
    counts = Counter(map(_first, titles.values()))
    titles = {name: _named(title, name) if counts[_first(title)] > 1 else title for name, title in titles.items()}
    return Scores(frame, titles, rows)


def _named(title: str, name: str) -> str:
    """The title with the result's name at the end of its first line."""
    return "\n".join([f"{_first(title)} ({name})", *title.split("\n")[1:]])


def _title(result: Result) -> str:
    """The result's own title wins: it says what was run, whatever its name."""
    by_region = result.get("thresholds")
    if not isinstance(by_region, dict):
        by_region = {}
    thresholds = [_finite(by_region.get(region, result.get("threshold"))) for region in REGIONS]
    # One for both regions or one each; intensities lie above 1, probabilities below.
    texts = dict.fromkeys(f"{t:.1f}" if t > 1 else f"{t:g}" for t in thresholds if t is not None)
    title = str(result.get("title") or METHODS.get(kind_of(result) or "", result["name"]))
    return title + (f"\nthreshold {' and '.join(texts)}" if texts else "")


def _records(name: str, result: Result) -> Iterator[tuple[str, str, str, str, str, str, float | None]]:
    for region, metric in COLUMNS:
        entries = [entry for entry in result.get("subjects", []) if entry["region"] == region]
        values = {entry["subject"]: _finite(entry.get(metric)) for entry in entries}
        for subject, value in values.items():
            yield name, region, metric, "", "value", subject, value
        if values:
            for statistic, value in zip(("mean", "sd"), mean_and_sd(values.values()), strict=True):
                yield name, region, metric, "", statistic, "", value


def _paper_records() -> Iterator[tuple[str, str, str, str, str, str, float]]:
    for region in REGIONS:
        for metric, field in (("dice", "pegasus_dice"), ("bavd_voxels", "pegasus_bavd")):
            for source in PAPER_SOURCES:
                score = getattr(paper.TABLE_3[region][source], field)
                yield PAPER, region, metric, source, "mean", "", score.mean
                yield PAPER, region, metric, source, "sd", "", score.sd


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _cell(numbers: pd.DataFrame, has_subjects: bool) -> str:
    """`0.912 (0.010)`, below it the median and the number of subjects whose value is not defined.

    The paper's cells have a line per source.
    """
    means, sds = (numbers.number[numbers.statistic == name].tolist() for name in ("mean", "sd"))
    values = numbers[numbers.statistic == "value"]
    if values.empty:
        texts = [mean_sd(mean, sd) for mean, sd in zip(means, sds, strict=True)]
        return "\n".join(["\N{NO-BREAK SPACE}", *texts])
    defined = values.number.dropna()
    lines = [mean_sd(means[0], sds[0], n=len(defined)) if len(defined) else format_value(means[0])]
    lines += [f"median {defined.median():.3f}"] if len(defined) >= MIN_FOR_SPREAD else []
    lines += [f"{len(values) - len(defined)} not defined"] if 0 < len(defined) < len(values) else []
    if has_subjects:
        lines += [f"{subject} {format_value(v)}" for subject, v in zip(values.subject, values.number, strict=True)]
    return "\n".join(lines)


def format_value(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.3f}"


def aims(scores: Scores) -> list[Aim]:
    """Returns AIMS with what the mean Dice gives."""
    frame = scores.frame.query("statistic == 'mean' and metric == 'dice' and source == ''")
    means = {(row, region): mean for row, region, mean in zip(frame.row, frame.region, frame.number, strict=True)}
    measured_aims = []
    for text, targets, first, second, is_ratio in AIMS:
        for (region, title), target in zip(REGIONS.items(), targets, strict=True):
            a, b = (means.get((scores.row_of(kind), region), math.nan) for kind in (first, second))
            is_defined = not math.isnan(a + b) and not (is_ratio and b == 0)
            measured = (a / b if is_ratio else a - b) if is_defined else None
            measured_aims.append(Aim(f"{text}, {title.lower()}", target, measured))
    return measured_aims


def format_text(scores: Scores) -> str:
    """The table for a terminal of 80 columns, one block per region, then the aims."""
    firsts = scores.table().iloc[:-1].rename(_first).map(_first)
    texts = []
    for name in firsts.columns.unique(level=0) if len(firsts) else ():
        texts += [f"{name}: mean" + " (SD)" * (len(scores.subjects) >= MIN_FOR_SPREAD), firsts[name].to_string(), ""]
    texts += [f"{NOT_RUN}: {', '.join(scores.missing)}", ""] if scores.missing else []
    return "\n".join([*texts, *(format_aim(aim) for aim in aims(scores))])


def _first(text: str) -> str:
    return text.split("\n")[0]


def format_aim(aim: Aim) -> str:
    return f"{aim.verdict:7} {aim.text}: {format_measured(aim)} (aim {aim.target:.2f})"


def format_measured(aim: Aim) -> str:
    return "-" if aim.measured is None else f"{aim.measured:.3f}"
