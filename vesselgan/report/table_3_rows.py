"""The rows of the paper's Tables 3, A.1 and B.1, matched with those of a comparison.

A comparison (job `comparison`) has {"cohorts": [...], "rows": [{"name", "kind", "title", "variant", "scores", ...}]}.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from vesselgan.metrics.statistics import mean_and_sd
from vesselgan.report import paper
from vesselgan.report.tables import REGIONS

PRIVATE = "private"
SECOND = "second cohort"
KINDS = ("real", "synthetic", "both", "shuffled", "threshold")
"""Names of segmentation results, which are the kinds of their rows."""


def completed(comparison: dict[str, Any]) -> dict[str, Any]:
    """Returns the comparison with a row for every source of the paper, without scores if it was not run.

    A row with `privacy` is of kind `private`. A second cohort is added if there is one alone, as in the paper.
    """
    rows = [row | {"kind": PRIVATE} if row.get("privacy") else row for row in comparison["rows"]]
    keys = {_key(row) for row in rows}
    paper_rows = _paper_rows()
    order = [_key(row) for row in paper_rows]
    rows += [row for row in paper_rows if _key(row) not in keys]
    rows = sorted(rows, key=lambda row: order.index(_key(row)) if _key(row) in order else len(order))
    cohorts = [*comparison["cohorts"], *[SECOND] * (len(comparison["cohorts"]) < 2)]
    return comparison | {"cohorts": cohorts, "rows": rows}


def _key(row: dict[str, Any]) -> tuple[str, str]:
    """The paper's (kind, model) of the row's source."""
    if row["kind"] == PRIVATE:
        return PRIVATE, _budget(float(row["privacy"]["epsilon"]))
    name = paper.VARIANTS.get(row.get("variant") or "", row["name"])
    return row["kind"], "real" if row["kind"] == "real" else name


def _budget(epsilon: float) -> str:
    """The paper's row of Table B.1 of this order of magnitude."""
    return f"epsilon 1e{round(math.log10(epsilon))}" if 0 < epsilon < math.inf else f"epsilon {epsilon:g}"


def _paper_rows() -> list[dict[str, Any]]:
    def row(kind: str, title: str, variant: str | None = None, epsilon: float | None = None) -> dict[str, Any]:
        name = variant or kind
        privacy = None if epsilon is None else {"epsilon": epsilon}
        return {"name": name, "kind": kind, "title": title, "variant": variant, "scores": {}, "privacy": privacy}

    rows = [row("synthetic", f"U-Net on {title}", variant) for variant, title in paper.VARIANTS.items()]
    rows += [row("both", f"U-Net on real and {title}", variant) for variant, title in paper.VARIANTS.items()]
    rows += [row("real", "U-Net on real")]
    budgets = [float(name.removeprefix("epsilon ")) for name in paper.TABLE_B1["all"]]
    return rows + [row(PRIVATE, f"U-Net on DPGAN; {_budget(b)}", None, b) for b in budgets]


def paper_scores(row: dict[str, Any], region: str) -> paper.Scores | None:
    """The paper's scores of this source, or None."""
    kind, model = _key(row)
    tables = {"real": paper.TABLE_3, "synthetic": paper.TABLE_3, "both": paper.TABLE_A1, PRIVATE: paper.TABLE_B1}
    return tables[kind][region].get(f"real + {model}" if kind == "both" else model) if kind in tables else None


def from_results(results: Sequence[dict[str, Any]], metrics: Iterable[str], variant: str | None) -> dict[str, Any]:
    """Returns a comparison of one cohort from its segmentation results, each a source with one U-Net.

    variant: of the GAN that made the synthetic patches. There are no intervals and no tests.
    """
    cohort = results[0]["cohort"] if results else paper.COHORTS[0]
    metrics = list(metrics)
    rows = []
    for result in results:
        if (kind := result["name"]) not in KINDS:
            continue
        scores = {region: _score_region(result, region, metrics) for region in REGIONS}
        gan_variant = variant if kind in ("synthetic", "both") else None
        suffix = f"; {paper.VARIANTS.get(gan_variant, gan_variant)}" if gan_variant else ""
        rows.append(
            {
                "name": result["name"],
                "kind": kind,
                "title": (result.get("title") or result["name"]) + suffix,
                "variant": gan_variant,
                "gan": result.get("gan"),
                "empty": {cohort: [result["empty"]]} if "empty" in result else {},
                "privacy": result.get("segmented_with", {}).get("privacy") if kind == "synthetic" else None,
                "scores": {cohort: {region: by_metric for region, by_metric in scores.items() if by_metric}},
            }
        )
    return {"name": cohort, "cohorts": [cohort], "seeds": [], "rows": rows, "unet_steps": None}


def _score_region(result: dict[str, Any], region: str, metrics: list[str]) -> dict[str, Any]:
    """Metric -> summary, of the metrics that every subject has."""
    entries = [entry for entry in result["subjects"] if entry["region"] == region]
    by_metric = {}
    for metric in metrics:
        values = {e["subject"]: float(e[metric]) for e in entries if isinstance(e.get(metric), int | float)}
        if values and len(values) == len(entries):
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
