"""The paper's Table 1 from results: FID and PRD of every model with their floor, and the statistics of the labels.

Results share a table only if their features, reference, preprocessing, n and clusters are equal. Those of random
features are marked and compared with nothing of the paper.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vesselgan.core.console import counted
from vesselgan.core.errors import DataError
from vesselgan.report import paper
from vesselgan.report.blocks import (
    IDENTICAL,
    Block,
    Figure,
    Panel,
    Section,
    Table,
    Text,
    markdown,
    mean_sd,
    not_run,
    not_run_rows,
    numbers_csv,
    text_frame,
)
from vesselgan.report.commands import DEFAULT, Commands
from vesselgan.report.runs import Run
from vesselgan.viz import plots

SCORES = {"fid": ("FID", 4, 4), "prd_auc": ("PRD-AUC", 3, 2)}
"""Score -> name, digits, the paper's digits."""
STATISTICS = {
    "num_components": "number of components",
    "component_voxels": "component size",
    "centreline_mm": "centreline",
    "radius_mm": "radius",
}
UNITS = {"voxel": "voxels", "intensity of 0..255": "of 255"}
KINDS = {"grid": "grid patches", "vessel": "vessel-centred ones"}
FLOOR_COLUMNS = ("model", "patches", "FID", "FID, real against real", "PRD-AUC", "PRD-AUC, real against real")
INTERVAL, NOT_DEFINED = "95 % interval", "not defined"
LABEL_COLUMNS = (
    *("statistic", "real", "synthetic", "distance", INTERVAL),
    *("patches per half", "half to synthetic", "half to half"),
)
CSV_COLUMNS = ("table", "features", "model", "score", "statistic", "n", "number")
KEYS = (
    *("name", "cohort", "n", "label_threshold", "extractor", "preprocessing", "reference", "method", "scores"),
    *("floor", "curve", "ms_ssim", "pairwise_distance", "nearest_distance", "labels", "notes", "inputs"),
    "training_overlap",
)
"""Of an image result."""
RANDOM = "random features, not comparable"
INTERVAL_NOTE = "Mean (SD over seeds, from three on), [95 % interval by the jackknife over patients, from five on]."
PAPER_NOTE = "The paper's scores are of its own cohort and number of patches, against its training split."
LABEL_NOTE = (
    "Distance: Wasserstein-1 in the statistic's unit. The last columns compare one half of the real patients with the "
    "synthetic set and, as the floor, with the other half."
)

Result = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Results that may share a table."""

    title: str
    is_comparable: bool
    results: tuple[Result, ...]

    @property
    def warning(self) -> str:
        return "" if self.is_comparable else f" {RANDOM.capitalize()}."

    def name_of(self, result: Result) -> str:
        return str(result["name"]) if self.is_comparable else f"{result['name']} ({RANDOM})"


def groups(results: Iterable[Result]) -> list[Group]:
    """Returns the results of job `image`, comparable ones together, in their order.

    Raises DataError for a result that lacks one of KEYS, and for two of one name in a group.
    """
    by_method: dict[str, list[Result]] = {}
    for result in results:
        if result.get("job") != "image":
            continue
        if missing := [key for key in KEYS if key not in result]:
            raise DataError(
                f"image result {result.get('name')!r} lacks {', '.join(missing)}; remove it and evaluate again"
            )
        members = by_method.setdefault(_method(result), [])
        if any(member["name"] == result["name"] for member in members):
            raise DataError(f"two image results are called {result['name']!r}; evaluate one with another name=")
        members.append(result)
    return [
        Group(_title(members[0]), bool(members[0]["extractor"]["is_comparable"]), tuple(members))
        for members in by_method.values()
    ]


def _method(result: Result) -> str:
    """What two results must share to be comparable."""
    preprocessing = {key: result["preprocessing"][key] for key in ("background", "seed", "scaling")}
    shared = [result["cohort"], result["n"], result["extractor"]["sha256"], preprocessing, result["method"]]
    return json.dumps([*shared, result["reference"], result["inputs"]["reference shards"]], sort_keys=True)


def _title(result: Result) -> str:
    reference, method = result["reference"], result["method"]
    held_out = "held out" if reference["is_held_out"] else "NOT held out: the generator learned from them"
    kinds = ", ".join(f"{number} {KINDS.get(kind, kind)}" for kind, number in reference["kinds"].items())
    checked = "" if result["extractor"]["is_checked"] else " (file not checked)"
    return (
        f"{result['cohort']}: {counted(result['n'], 'patch', 'patches')} on either side; real ones of split "
        f"{reference['split']} ({held_out}), {counted(reference['patients'], 'patient')}, drawn from {kinds}; "
        f"{result['extractor']['title']}{checked}; zero voxels as {result['preprocessing']['background']}; "
        f"{counted(method['num_clusters'], 'cluster')}, means over {counted(len(method['seeds']), 'seed')}"
    )


def score_table(group: Group, runs: Sequence[Run] = ()) -> pd.DataFrame:
    """Table 1, a row of texts per model: the paper's models in its order, then others.

    The paper's numbers stand below ours only if the features are comparable.
    """
    variants = [(variant_of(result, runs) if group.is_comparable else "", result) for result in group.results]
    rows: list[list[str]] = []
    for key, title in paper.VARIANTS.items():
        for result in [result for name, result in variants if name == key]:
            name = title if result["name"] in (title, key) else f"{title} ({result['name']})"
            rows.append(_score_row(result, name, title))
    rows += [_score_row(result, group.name_of(result)) for name, result in variants if name not in paper.VARIANTS]
    scales = "".join(f", {counted(n, 'scale')}" for n in {result["ms_ssim"]["num_scales"] for result in group.results})
    return text_frame(rows, ["model", *(name for name, *_ in SCORES.values()), f"MS-SSIM{scales}", "feature distance"])


def _score_row(result: Result, name: str, model: str = "") -> list[str]:
    """`model`: the paper's, whose numbers stand below ours."""
    cells = [name]
    for k, (score, (_, digits, paper_digits)) in enumerate(SCORES.items()):
        summary = result["scores"][score]
        lines = [mean_sd(summary["mean"], summary["sd"], digits, n=len(result["method"]["seeds"]))]
        if summary["interval"]:
            lines.append("[{:.{d}f}, {:.{d}f}]".format(*summary["interval"], d=digits))
        lines += [f"paper {paper.TABLE_1[model][k]:.{paper_digits}f}"] if model else []
        cells.append("\n".join(lines))
    for key in ("ms_ssim", "pairwise_distance"):
        real, synthetic = result[key]["real"], result[key]["synthetic"]
        cells.append(NOT_DEFINED if synthetic is None else f"{synthetic:.3f}\nreal {real:.3f}")
    return cells


def missing_models(group: Group, runs: Sequence[Run]) -> list[str]:
    """The paper's models that were not scored, with the paper's numbers; none if the features compare with nothing."""
    scored = {variant_of(result, runs) for result in group.results}
    missing = [title for key, title in paper.VARIANTS.items() if key not in scored and group.is_comparable]
    return [
        f"{title} (paper: FID {paper.TABLE_1[title][0]}, PRD-AUC {paper.TABLE_1[title][1]:.2f})" for title in missing
    ]


def variant_of(result: Result, runs: Sequence[Run]) -> str:
    """The model of the run that made the patches if it is among `runs`, else the result's name."""
    name = (result.get("synthetic") or {}).get("run")
    model = next((run.model for run in runs if run.model and run.folder.resolve().name == name), None)
    return model or str(result["name"])


def floor_rows(group: Group) -> list[list[str]]:
    """One row per model under FLOOR_COLUMNS."""
    rows = []
    for result in group.results:
        floor = result["floor"]
        if floor is None:
            rows.append([group.name_of(result), *[NOT_DEFINED] * (len(FLOOR_COLUMNS) - 1)])
            continue
        cells = [group.name_of(result), _count(floor["n"])]
        for name, (_, digits, _) in SCORES.items():
            cells += [f"{floor[side][name]['mean']:.{digits}f}" for side in ("synthetic", "real")]
        rows.append(cells)
    return rows


def label_rows(result: Result) -> list[list[str]]:
    """One row per statistic of the labels under LABEL_COLUMNS."""
    rows = []
    for name, statistic in result["labels"]["statistics"].items():
        if name == "radius_histogram":
            continue
        unit = "" if statistic["unit"] == "1" else f", {UNITS.get(statistic['unit'], statistic['unit'])}"
        cells = [STATISTICS.get(name, name.replace("_", " ")) + unit]
        for side in ("real", "synthetic"):
            sd = statistic[side]["sd"]
            cells.append(_number(statistic[side]["mean"]) + ("" if sd is None else f" ({_number(sd)})"))
        cells += [_number(statistic["distance"]), _interval(statistic["interval"], ".4g")]
        floor = statistic["floor"] or {"n": "-", "real": None, "synthetic": None}
        rows.append([*cells, str(floor["n"]), _number(floor["synthetic"]), _number(floor["real"])])
    return rows


def section(results: Iterable[Result], runs: Sequence[Run] = (), commands: Commands = DEFAULT) -> Section:
    """Images and labels of synthetic patches."""
    scored = groups(results)
    blocks: list[Block] = []
    for group in scored:
        caption = f"{group.title}.{group.warning}"
        blocks.append(Table(score_table(group, runs), "Table 1, image quality.", caption))
        blocks += not_run_rows(missing_models(group, runs))
        blocks += [_note(INTERVAL_NOTE), *[_note(PAPER_NOTE)] * group.is_comparable]
        caption = f"The same against one half of the real patients, beside the other half.{group.warning}"
        floors = text_frame(floor_rows(group), FLOOR_COLUMNS)
        blocks += [_curves(group), Table(floors, caption=caption, style="wide")]
        for result in group.results:
            title = f"Labels of {group.name_of(result)}, threshold {result['label_threshold']:g}"
            labels = text_frame(label_rows(result), LABEL_COLUMNS)
            if (labels[INTERVAL] == NOT_DEFINED).all():
                labels = labels.drop(columns=INTERVAL)
            blocks += [Table(labels, f"{title},", f"mean (SD). {LABEL_NOTE}", style="wide"), _radii(result, title)]
            blocks += map(_note, _label_notes(result))
    if not scored:
        blocks.append(not_run(f"FID, PRD and MS-SSIM{_how(runs, commands)}"))
    files: dict[str, str | bytes] = {
        "table-1.md": markdown(blocks),
        "table-1.csv": numbers_csv(csv_rows(scored), CSV_COLUMNS),
    }
    return Section("Image quality and labels", blocks, files)


def _how(runs: Sequence[Run], commands: Commands) -> str:
    """The command for the first run with patches."""
    for run in runs:
        if run.synthetic is not None:
            return f" (`{commands.score_images(run)}`; `image.extractor=random` in place of the weights needs no file)"
    return ": no run has synthetic patches"


def _note(text: str) -> Text:
    return Text(text, style="note")


def _curves(group: Group) -> Figure:
    """Figure 5: the PRD curves of one group."""
    series = []
    for result in group.results:
        recall, precision = (np.asarray(result["curve"][side], float) for side in ("recall", "precision"))
        auc = result["scores"]["prd_auc"]["mean"]
        series.append(plots.Series(f"{group.name_of(result)}: AUC {auc:.3f}", recall, precision))
    title = f"PRD curves, {group.results[0]['cohort']}"
    return Figure(
        "Figure 5, PRD curves",
        [Panel([plots.curves(series, x_label="recall", y_label="precision", title=title)])],
        f"Precision and recall of distributions, images without labels.{group.warning}",
        how_to_read="a good model's curve is near the upper right corner. One that falls early on the right lacks "
        "kinds of real patches; one that starts low on the left makes patches unlike any real one.",
        grid="square",
    )


def _radii(result: Result, title: str) -> Figure:
    """Distribution of the centreline voxels over the vessel's radius, real and synthetic."""
    histogram = result["labels"]["statistics"]["radius_histogram"]
    bin_mm = histogram["bin_mm"]
    series = []
    for side in ("real", "synthetic"):
        share = np.asarray(histogram[side], float)
        series.append(plots.Series(side, bin_mm * (np.arange(len(share)) + 0.5), share))
    title_of_chart = f"Vessel radius. {title}"
    chart = plots.lines(
        series, x_label="radius (mm)", y_label="share of the centreline", title=title_of_chart, middle=100
    )
    caption = f"Shares of the centreline's voxels, in bins of {bin_mm:g} mm; the last includes all larger radii."
    return Figure(title, [Panel([chart])], caption)


def csv_rows(scored: Sequence[Group]) -> Iterator[list[object]]:
    """Long form under CSV_COLUMNS, one number per line."""
    for number, group in enumerate(scored, 1):
        features = "comparable" if group.is_comparable else RANDOM
        for result in group.results:
            for numbers in _numbers(result):
                yield [number, features, result["name"], *numbers]


def _numbers(result: Result) -> Iterator[tuple[str, str, int | str, float | None]]:
    """(score, statistic, n, value) of everything in the tables."""
    floor, labels = result["floor"], result["labels"]
    for score, summary in result["scores"].items():
        low, high = summary["interval"] or (None, None)
        values = {"mean": summary["mean"], "sd": summary["sd"], "low": low, "high": high}
        yield from ((score, name, result["n"], value) for name, value in values.items())
        for side in ("synthetic", "real") if floor else ():
            yield score, f"floor {side}", _count(floor["n"]), floor[side][score]["mean"]
    for score in ("ms_ssim", "pairwise_distance"):
        yield from ((score, side, result["n"], result[score][side]) for side in ("real", "synthetic"))
    yield "nearest_distance", "synthetic", result["n"], result["nearest_distance"]
    for name, statistic in labels["statistics"].items():
        if name == "radius_histogram":
            for side in ("real", "synthetic"):
                for i, share in enumerate(statistic[side], 1):
                    yield name, f"{side} to {statistic['bin_mm'] * i:g} mm", labels["n"], share
            continue
        low, high = statistic["interval"] or (None, None)
        values = {"mean real": statistic["real"]["mean"], "mean synthetic": statistic["synthetic"]["mean"]}
        values |= {"distance": statistic["distance"], "low": low, "high": high}
        yield from ((name, key, labels["n"], value) for key, value in values.items())
        for side in ("synthetic", "real") if statistic["floor"] else ():
            yield name, f"floor {side}", statistic["floor"]["n"], statistic["floor"][side]


def _label_notes(result: Result) -> list[str]:
    controls = ", ".join(
        f"{side} {name} {_number(value)}"
        for side, by_name in result["labels"]["consistency_controls"].items()
        for name, value in by_name.items()
    )
    preprocessing = result["preprocessing"]
    zeros = ", ".join(f"{side} {share:.1%}" for side, share in preprocessing["zero_share"].items())
    constant = ", ".join(f"{side} {count}" for side, count in preprocessing["num_constant"].items())
    return [
        f"Consistency of the control labels: {controls}.",
        f"Training patches among the real ones: {result['training_overlap']}. {IDENTICAL}",
        f"Voxels of 0, filled with {preprocessing['background']} for the features: {zeros}; constant patches: "
        f"{constant}.",
        *result["notes"],
    ]


def _interval(interval: Sequence[float] | None, spec: str) -> str:
    return NOT_DEFINED if interval is None else " to ".join(format(edge, spec) for edge in interval)


def _number(value: float | None) -> str:
    return NOT_DEFINED if value is None else f"{value:.4g}"


def _count(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
