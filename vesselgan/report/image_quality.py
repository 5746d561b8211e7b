"""The paper's Table 1 from results: FID and PRD of every model with its floor, and the labels beside the real ones.

Scores compare only where features, reference, preprocessing, n and clusters are the same, so unlike ones get a table
each; those of random features say so, and stand beside nothing of the paper.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from vesselgan.core.errors import DataError
from vesselgan.report import charts, paper
from vesselgan.report.markup import NOT_RUN, Part, counted, csv_text, figure, markdown, not_run, table
from vesselgan.report.runs import Run

SCORES = {"fid": ("FID", 4), "prd_auc": ("PRD-AUC", 3)}
WORDS = {"num_components": "number of parts", "centreline_mm": "centreline", "radius_mm": "radius"}
WORDS |= {"component_voxels": "size of a part"}
UNITS = {"voxel": "voxels", "intensity of 0..255": "of 255"}
KINDS = {"grid": "grid patches", "vessel": "vessel-centred ones"}
FLOOR_HEADS = ("model", "patches", "FID", "FID, real against real", "PRD-AUC", "PRD-AUC, real against real")
LABEL_HEADS = ("statistic", "real", "synthetic", "distance", "95 % interval")
LABEL_HEADS += ("patches in a half", "half to synthetic", "half to half")
NEEDED = ("name", "cohort", "n", "label_threshold", "extractor", "preprocessing", "reference", "method", "scores")
NEEDED += ("floor", "curve", "ms_ssim", "pairwise_distance", "nearest_distance", "labels", "notes", "inputs")
NEEDED += ("training_overlap",)
INTERVAL_NOTE = "Intervals: jackknife over patients, 95 %; none is given below five patients."
PAPER_NOTE = (
    "The paper's own cohort, patches and number of samples, scored against its training split: for orientation."
)


LABEL_NOTE = (
    "Distances are Wasserstein-1, in the statistic's unit; the last columns hold one half of the real patients against "
    "the synthetic set and, the floor, against the other half."
)


@dataclass(frozen=True)
class Group:
    """Results that may share a table."""

    title: str
    is_comparable: bool
    results: tuple[dict[str, Any], ...]


ABSENT = Group("MedicalNet features", True, ())


def groups(results: Iterable[dict[str, Any]]) -> list[Group]:
    """The results of job `image`, those alike together, in the order in which they came.

    DataError for a result that lacks what it must have, and for two of one name in a group.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if result.get("job") != "image":
            continue
        if missing := [key for key in NEEDED if key not in result]:
            raise DataError(f"image result {result.get('name')!r} lacks {', '.join(missing)}; run its evaluation again")
        members = found.setdefault(_kind(result), [])
        if any(member["name"] == result["name"] for member in members):
            raise DataError(f"two image results are called {result['name']!r}; evaluate one with another name=")
        members.append(result)
    return [Group(_title(members[0]), _is_comparable(members[0]), tuple(members)) for members in found.values()]


def _kind(result: dict[str, Any]) -> str:
    """What two results must share to be compared."""
    preprocessing = {key: result["preprocessing"][key] for key in ("background", "seed", "scaling")}
    parts = [result["cohort"], result["n"], result["extractor"]["sha256"], preprocessing, result["method"]]
    parts += [result["reference"], result["inputs"]["reference shards"]]
    return json.dumps(parts, sort_keys=True)


def _is_comparable(result: dict[str, Any]) -> bool:
    return bool(result["extractor"]["is_comparable"])


def _title(result: dict[str, Any]) -> str:
    reference, method = result["reference"], result["method"]
    held = "held out" if reference["is_held_out"] else "NOT held out: the generator learned from them"
    kinds = ", ".join(f"{number} {KINDS.get(kind, kind)}" for kind, number in reference["kinds"].items())
    checked = "" if result["extractor"]["is_checked"] else " (file not checked)"
    return (
        f"{result['cohort']}: {counted(result['n'], 'patch', 'patches')} on either side; real ones of split "
        f"{reference['split']} ({held}), {counted(reference['patients'], 'patient')}, drawn from {kinds}; "
        f"{result['extractor']['title']}{checked}; zero voxels as {result['preprocessing']['background']}; "
        f"{counted(method['num_clusters'], 'cluster')}, means over {counted(len(method['seeds']), 'seed')}"
    )


def heads_of(group: Group) -> list[str]:
    """The paper's column stands beside ours only where the features are the paper's."""
    heads = ["model"]
    for name, _ in SCORES.values():
        heads += [name, *(["paper"] if group.is_comparable else []), f"{name}, 95 % interval"]
    scales = {result["ms_ssim"]["num_scales"] for result in group.results}
    return [*heads, "MS-SSIM" + "".join(f", {counted(n, 'scale')}" for n in scales), "feature distance"]


def score_lines(group: Group, runs: Sequence[Run] = ()) -> list[list[str]]:
    """Table 1, one line of texts per model: the paper's models in its order, run or not, then others."""
    if not group.is_comparable:
        return [_score_line(result, _named(result, group), None) for result in group.results]
    made_by = [(variant_of(result, runs), result) for result in group.results]
    lines = []
    for key, title in paper.VARIANTS.items():
        ours = [result for name, result in made_by if name == key]
        lines += [_score_line(result, _titled(title, result["name"], key), title) for result in ours]
        lines += [] if ours else [_score_line(None, title, title)]
    return lines + [_score_line(result, result["name"], "") for name, result in made_by if name not in paper.VARIANTS]


def _titled(title: str, name: str, key: str) -> str:
    return title if name in (title, key) else f"{title} ({name})"


def _score_line(result: dict[str, Any] | None, name: str, paper_model: str | None) -> list[str]:
    """`paper_model`: whose numbers stand beside; empty: nobody's, None: there is no such column."""
    cells = [name]
    for place, (score, (_, digits)) in enumerate(SCORES.items()):
        if result is None:
            ours = interval = NOT_RUN
        else:
            facts = result["scores"][score]
            spread = "" if facts["sd"] is None else f" ({facts['sd']:.{digits}f})"
            ours, interval = f"{facts['mean']:.{digits}f}{spread}", _interval(facts["interval"], digits)
        beside = [] if paper_model is None else [_papers(paper_model, place)]
        cells += [ours, *beside, interval]
    further = [NOT_RUN] * 2 if result is None else [_pair(result[key], 3) for key in ("ms_ssim", "pairwise_distance")]
    return cells + further


def _papers(model: str, place: int) -> str:
    return f"{paper.TABLE_1[model][place]:.{(4, 2)[place]}f}" if model in paper.TABLE_1 else "-"


def variant_of(result: dict[str, Any], runs: Sequence[Run]) -> str:
    """The variant of the run that made the patches, where that run is here; else what the result is called."""
    made_by = (result.get("synthetic") or {}).get("run")
    return next((run.variant for run in runs if run.variant and run.folder.resolve().name == made_by), result["name"])


def floor_lines(group: Group) -> list[list[str]]:
    """One line per model under FLOOR_HEADS."""
    lines = []
    for result in group.results:
        floor = result["floor"]
        if floor is None:
            lines.append([_named(result, group), *["not defined"] * (len(FLOOR_HEADS) - 1)])
            continue
        cells = [_named(result, group), _count(floor["n"])]
        for name, (_, digits) in SCORES.items():
            cells += [f"{floor[side][name]['mean']:.{digits}f}" for side in ("synthetic", "real")]
        lines.append(cells)
    return lines


def label_lines(result: dict[str, Any]) -> list[list[str]]:
    """One line per statistic of the labels under LABEL_HEADS."""
    lines = []
    for name, facts in result["labels"]["statistics"].items():
        if name == "radius_histogram":
            continue
        unit = "" if facts["unit"] == "1" else f", {UNITS.get(facts['unit'], facts['unit'])}"
        floor = facts["floor"] or {"n": "-", "real": None, "synthetic": None}
        sides = [_mean_sd(facts[side]) for side in ("real", "synthetic")]
        beside = [_number(floor["synthetic"]), _number(floor["real"])]
        words = WORDS.get(name, name.replace("_", " "))
        distance = [_number(facts["distance"]), _range(facts["interval"])]
        lines.append([words + unit, *sides, *distance, str(floor["n"]), *beside])
    return lines


def section(results: Iterable[dict[str, Any]], runs: Sequence[Run] = ()) -> Part:
    """Everything about the images and labels of synthetic patches."""
    found = groups(results)
    shown = found if any(group.is_comparable for group in found) else [*found, ABSENT]
    body, texts = [], []
    for group in shown:
        warning = "" if group.is_comparable else " <b>Random features, not comparable.</b>"
        scores = heads_of(group), score_lines(group, runs)
        body.append(table(f"<b>Table 1, image quality.</b> {escape(group.title)}.{warning}", *scores, classes="wide"))
        texts += [f"**{group.title}**", markdown(*scores)]
        for note in (INTERVAL_NOTE, *[PAPER_NOTE] * group.is_comparable):
            body.append(f'<p class="note">{escape(note)}</p>')
            texts.append(note)
        if not group.results:
            continue
        body.append(_curves(group, warning))
        floors = FLOOR_HEADS, floor_lines(group)
        body.append(
            table(
                f"The same against one half of the real patients, beside the other half.{warning}",
                *floors,
                classes="wide",
            )
        )
        texts.append(markdown(*floors))
        for result in group.results:
            labels = LABEL_HEADS, label_lines(result)
            about = f"Labels of {_named(result, group)}, cut at {result['label_threshold']:g}"
            body.append(table(f"<b>{escape(about)}</b>, mean (SD). {LABEL_NOTE}", *labels, classes="wide"))
            told = [_controls(result), _overlap(result), _background(result), *result["notes"]]
            body += [_radii(result, about), *(f'<p class="note">{escape(note)}</p>' for note in told)]
            texts += [f"{about}. {LABEL_NOTE}", markdown(*labels), *told]
    if not found:
        body.append(not_run("no result of evaluate=image"))
    files: dict[str, str | bytes] = {"table-1.md": "\n\n".join(texts) + "\n", "table-1.csv": format_csv(found)}
    return Part("Image quality and labels", "\n".join(body), files)


def _curves(group: Group, warning: str) -> str:
    """Figure 5: the PRD curves of the models that were scored alike."""
    series = []
    for result in group.results:
        curve = {side: np.asarray(result["curve"][side], float) for side in ("recall", "precision")}
        auc = result["scores"]["prd_auc"]["mean"]
        series.append(charts.Series(f"{_named(result, group)}: AUC {auc:.3f}", curve["recall"], curve["precision"]))
    title = f"PRD curves, {group.results[0]['cohort']}"
    plot = charts.unit_chart(series, x_label="recall", y_label="precision", title=title)
    return figure(
        "Figure 5, PRD curves",
        f'<div class="panel square">{plot}</div>',
        f"Precision and recall of distributions, images without labels.{warning}",
        how_to_read="a curve near the upper right corner is a good model; one that falls early on the right leaves "
        "kinds of real patches out, one that starts low on the left makes patches that no real one resembles.",
    )


def _radii(result: dict[str, Any], about: str) -> str:
    """The shares of centreline voxels by the vessel's radius, real and synthetic."""
    found = result["labels"]["statistics"]["radius_histogram"]
    series = []
    for side in ("real", "synthetic"):
        share = np.asarray(found[side], float)
        series.append(charts.Series(side, found["bin_mm"] * (np.arange(len(share)) + 0.5), share))
    title = f"Vessel radius. {about}"
    plot = charts.line_chart(series, x_label="radius (mm)", y_label="share of the centreline", title=title, middle=100)
    words = f"Shares of the centreline's voxels, in bins of {found['bin_mm']:g} mm; the last holds all larger ones too."
    return figure(escape(title), f'<div class="two"><div class="panel">{plot}</div></div>', words)


def format_csv(found: Sequence[Group]) -> str:
    """Long form, one number a line at full precision."""
    lines: list[list[object]] = []
    for number, group in enumerate(found, 1):
        features = "comparable" if group.is_comparable else "random features, not comparable"
        for result in group.results:
            lines += [[number, features, result["name"], *numbers] for numbers in _numbers(result)]
    return csv_text(["table", "features", "model", "score", "statistic", "n", "number"], lines)


def _numbers(result: dict[str, Any]) -> Iterator[tuple[str, str, int | str, float | None]]:
    """(score, statistic, n, value) of everything in the tables."""
    floor, labels = result["floor"], result["labels"]
    for score, facts in result["scores"].items():
        low, high = facts["interval"] or (None, None)
        values = {"mean": facts["mean"], "sd": facts["sd"], "low": low, "high": high}
        yield from ((score, name, result["n"], value) for name, value in values.items())
        for side in ("synthetic", "real") if floor else ():
            yield score, f"floor {side}", _count(floor["n"]), floor[side][score]["mean"]
    for score in ("ms_ssim", "pairwise_distance"):
        yield from ((score, side, result["n"], result[score][side]) for side in ("real", "synthetic"))
    yield "nearest_distance", "synthetic", result["n"], result["nearest_distance"]
    for name, facts in labels["statistics"].items():
        if name == "radius_histogram":
            for side in ("real", "synthetic"):
                for place, share in enumerate(facts[side], 1):
                    yield name, f"{side} to {facts['bin_mm'] * place:g} mm", labels["n"], share
            continue
        low, high = facts["interval"] or (None, None)
        values = {"mean real": facts["real"]["mean"], "mean synthetic": facts["synthetic"]["mean"]}
        values |= {"distance": facts["distance"], "low": low, "high": high}
        yield from ((name, statistic, labels["n"], value) for statistic, value in values.items())
        for side in ("synthetic", "real") if facts["floor"] else ():
            yield name, f"floor {side}", facts["floor"]["n"], facts["floor"][side]


def _named(result: dict[str, Any], group: Group) -> str:
    return str(result["name"]) if group.is_comparable else f"{result['name']} (random features, not comparable)"


def _controls(result: dict[str, Any]) -> str:
    spoilt = result["labels"]["consistency_controls"]
    parts = [f"{side} {name} {_number(value)}" for side, found in spoilt.items() for name, value in found.items()]
    return f"Consistency of labels that were spoilt on purpose: {', '.join(parts)}."


def _background(result: dict[str, Any]) -> str:
    """What stands in for empty voxels is no image: how much of either set is made of it."""
    facts = result["preprocessing"]
    shares = ", ".join(f"{side} {share:.1%}" for side, share in facts["zero_share"].items())
    flat = ", ".join(f"{side} {count}" for side, count in facts["num_constant"].items())
    return f"Voxels of 0, before features filled with {facts['background']}: {shares}; patches of one value: {flat}."


def _overlap(result: dict[str, Any]) -> str:
    return f"Training patches among the real ones: {result['training_overlap']}."


def _interval(interval: Sequence[float] | None, digits: int) -> str:
    return "not defined" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _range(interval: Sequence[float] | None) -> str:
    return "not defined" if interval is None else " to ".join(map(_number, interval))


def _pair(facts: dict[str, Any], digits: int) -> str:
    """Synthetic beside real."""
    if facts["synthetic"] is None:
        return "not defined"
    return f"{facts['synthetic']:.{digits}f} (real {facts['real']:.{digits}f})"


def _mean_sd(facts: dict[str, Any]) -> str:
    spread = "" if facts["sd"] is None else f" ({_number(facts['sd'])})"
    return _number(facts["mean"]) + spread


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4g}"


def _count(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
