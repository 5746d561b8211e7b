"""The rows of the paper's Tables 3, A.1 and B.1, matched with those of a comparison.

A comparison (job `comparison`) has {"cohorts": [...], "rows": [{"name", "kind", "title", "variant", "scores", ...}]}.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from vesselgan.formats.results import truth_of
from vesselgan.metrics.statistics import mean_and_sd
from vesselgan.report import paper
from vesselgan.report.tables import REGIONS, kind_of

PRIVATE = "private"
WITH_LABEL_THRESHOLD = ("synthetic", "both", "shuffled")


def in_paper_order(comparison: dict[str, Any]) -> dict[str, Any]:
    """Returns the comparison with its rows in the paper's order; a row with `privacy` is of kind `private`."""
    rows = [row | {"kind": PRIVATE} if row.get("privacy") else row for row in comparison["rows"]]
    order = list(_paper_titles())
    return comparison | {"rows": sorted(rows, key=lambda r: order.index(_key(r)) if _key(r) in order else len(order))}


def split_of(comparison: dict[str, Any]) -> str:
    """Whose patients were scored; a study scores the test split."""
    return str(comparison.get("split", "test"))


def missing_titles(comparison: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    """The paper's sources of these kinds that were not run, each with the paper's Dice of all vessels."""
    run = {_key(row) for row in in_paper_order(comparison)["rows"]}
    missing = [(key, title) for key, title in _paper_titles().items() if key[0] in kinds and key not in run]
    return [f"{title} ({scores.pegasus_dice.mean:.3f})" for key, title in missing if (scores := _scores(key, "all"))]


def _key(row: dict[str, Any]) -> tuple[str, str]:
    """The paper's (kind, model) of the row's source."""
    if row["kind"] == PRIVATE:
        privacy = row["privacy"]
        is_the_papers = (row["variant"], privacy["unit"]) == paper.PRIVATE and privacy.get("is_key_secret", True)
        papers = paper.NOISE.get(privacy["noise_multiplier"]) if is_the_papers else None
        return PRIVATE, papers or str(row["name"])
    return row["kind"], "real" if row["kind"] == "real" else model_of(row)


def model_of(row: dict[str, Any]) -> str:
    """The paper's name of the row's generator, else its variant, else the row's own name."""
    variant = row.get("variant")
    return str(paper.VARIANTS.get(variant or "", variant or row["name"]))


def _paper_titles() -> dict[tuple[str, str], str]:
    """(kind, model) of the paper's sources -> title, in its order."""
    titles = {("synthetic", model): f"U-Net on {model}" for model in paper.VARIANTS.values()}
    titles |= {("both", model): f"U-Net on real and {model}" for model in paper.VARIANTS.values()}
    titles[("real", "real")] = "U-Net on real"
    return titles | {(PRIVATE, budget): f"U-Net on DPGAN, {budget}" for budget in paper.TABLE_B1["all"]}


def paper_scores(row: dict[str, Any], region: str) -> tuple[str, paper.Scores] | None:
    """(What the paper's scores of this source are called in its cells, these), or None."""
    kind, model = key = _key(row)
    scores = _scores(key, region)
    return scores and (f"paper, {model}," if kind == PRIVATE else "paper", scores)


def _scores(key: tuple[str, str], region: str) -> paper.Scores | None:
    kind, model = key
    tables = {"real": paper.TABLE_3, "synthetic": paper.TABLE_3, "both": paper.TABLE_A1, PRIVATE: paper.TABLE_B1}
    return tables[kind][region].get(f"real + {model}" if kind == "both" else model) if kind in tables else None


def from_results(
    results: Sequence[dict[str, Any]], metrics: Iterable[str], variants: dict[str, str | None]
) -> dict[str, Any]:
    """Returns a comparison of one cohort from its segmentation results, each a source with one U-Net.

    variants: run directory's name -> variant; a result that does not name its GAN is of the only one. There are no
    intervals and no tests.
    """
    cohort = results[0]["cohort"] if results else paper.COHORTS[0]
    metrics = list(metrics)
    only = next(iter(variants.values())) if len(variants) == 1 else None
    rows = []
    for result in results:
        if (kind := kind_of(result)) is None:
            continue
        scores = {region: _score_region(result, region, metrics) for region in REGIONS}
        gan = (result.get("gan") or {}).get("run")
        variant = (only if gan is None else variants.get(gan)) if kind in ("synthetic", "both") else None
        suffix = f"; {paper.VARIANTS.get(variant, variant)}" if variant else ""
        own = "" if result["name"] == kind else f"; {result['name']}"
        rows.append(
            {
                "name": result["name"],
                "kind": kind,
                "title": (result.get("title") or result["name"]) + suffix + own,
                "variant": variant,
                "gan": result.get("gan"),
                "label_threshold": _label_threshold(result) if kind in WITH_LABEL_THRESHOLD else None,
                "patients": {cohort: {subject: truth.patient for subject, truth in truth_of(result).items()}},
                "empty": {cohort: [result["empty"]]} if "empty" in result else {},
                "privacy": (result.get("segmented_with") or {}).get("privacy") if kind == "synthetic" else None,
                "scores": {cohort: {region: by_metric for region, by_metric in scores.items() if by_metric}},
            }
        )
    split = results[0]["split"] if results else "test"
    name = cohort if split == "test" else f"{cohort}, {split}"
    return {"name": name, "cohorts": [cohort], "seeds": [], "rows": rows, "unet_steps": None, "split": split}


def _label_threshold(result: dict[str, Any]) -> float | None:
    """That the U-Net learned with; None if it took the labels as they are stored."""
    value = (result.get("segmented_with") or {}).get("label_threshold")
    return float(value) if isinstance(value, int | float) else None


def _score_region(result: dict[str, Any], region: str, metrics: list[str]) -> dict[str, Any]:
    """Metric -> summary over patients, means of their visits, of the metrics that every subject has."""
    entries, truth = [entry for entry in result["subjects"] if entry["region"] == region], truth_of(result)
    by_metric = {}
    for metric in metrics:
        visits: dict[str, list[float]] = {}
        for entry in entries:
            if isinstance(entry.get(metric), int | float):
                visits.setdefault(truth[entry["subject"]].patient, []).append(float(entry[metric]))
        if entries and sum(map(len, visits.values())) == len(entries):
            values = {patient: statistics.fmean(scores) for patient, scores in visits.items()}
            mean, sd = mean_and_sd(values.values())
            by_metric[metric] = {
                "mean": mean,
                "sd": sd,
                "median": statistics.median(values.values()),
                "n": len(values),
                "interval": None,
                "values": values,
                "difference": None,
            }
    return by_metric
