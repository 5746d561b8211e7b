"""The rows of the paper's Tables 3, A.1 and B.1: whose numbers of the paper stand beside which of ours, and what a
comparison lacks of them.

A comparison (job `comparison`) has {"cohorts": [...], "rows": [{"name", "kind", "title", "variant", "scores", ...}]}.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from vesselgan.report import paper
from vesselgan.report.tables import REGIONS

PRIVATE = "private"
SECOND = "second cohort"
KINDS = {"real": "real", "synthetic": "synthetic", "both": "both", "shuffled": "shuffled", "threshold": "threshold"}
"""Name of a segmentation result -> the kind of its row."""


def completed(comparison: dict[str, Any]) -> dict[str, Any]:
    """The comparison with a row for every source of the paper, those that were not run without scores.

    A row with `privacy` is of kind `private`. With one cohort a second column is added, as the paper has one.
    """
    rows = [row | {"kind": PRIVATE} if row.get("privacy") else row for row in comparison["rows"]]
    present = {_key(row) for row in rows}
    missing = [row for row in _paper_rows() if _key(row) not in present]
    cohorts = [*comparison["cohorts"], *[SECOND] * (len(comparison["cohorts"]) < 2)]
    order = [_key(row) for row in _paper_rows()]
    rows = sorted([*rows, *missing], key=lambda row: order.index(_key(row)) if _key(row) in order else len(order))
    return comparison | {"cohorts": cohorts, "rows": rows}


def _key(row: dict[str, Any]) -> tuple[str, str]:
    """What the paper calls the row's source: (kind, model)."""
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
    """The paper's row for this source; None where it has none."""
    kind, model = _key(row)
    tables = {"real": paper.TABLE_3, "synthetic": paper.TABLE_3, "both": paper.TABLE_A1, PRIVATE: paper.TABLE_B1}
    return tables[kind][region].get(f"real + {model}" if kind == "both" else model) if kind in tables else None


def from_results(results: Sequence[dict[str, Any]], metrics: Iterable[str], variant: str | None) -> dict[str, Any]:
    """A comparison of one cohort made of its segmentation results, each a source with one U-Net.

    variant: of the GAN whose patches the synthetic ones are made with. No intervals, no tests: those take a study.
    """
    cohort = results[0]["cohort"] if results else paper.COHORTS[0]
    metrics = list(metrics)
    rows = []
    for result in results:
        if (kind := KINDS.get(result["name"])) is None:
            continue
        scores = {region: _score_region(result, region, metrics) for region in REGIONS}
        made_by = variant if kind in ("synthetic", "both") else None
        title = (result.get("title") or result["name"]) + (
            f"; {paper.VARIANTS.get(made_by, made_by)}" if made_by else ""
        )
        row = {"name": result["name"], "kind": kind, "title": title, "variant": made_by, "gan": result.get("gan")}
        row["empty"] = {cohort: [result["empty"]]} if "empty" in result else {}
        privacy = result.get("segmented_with", {}).get("privacy") if kind == "synthetic" else None
        rows.append(
            row | {"privacy": privacy, "scores": {cohort: {region: found for region, found in scores.items() if found}}}
        )
    return {"name": cohort, "cohorts": [cohort], "seeds": [], "rows": rows, "unet_steps": None}


def _score_region(result: dict[str, Any], region: str, metrics: list[str]) -> dict[str, Any]:
    entries = [entry for entry in result["subjects"] if entry["region"] == region]
    found = {}
    for metric in metrics:
        values = {e["subject"]: float(e[metric]) for e in entries if isinstance(e.get(metric), int | float)}
        if values and len(values) == len(entries):
            numbers = list(values.values())
            found[metric] = {
                "mean": statistics.fmean(numbers),
                "sd": statistics.stdev(numbers) if len(numbers) > 1 else None,
                "median": statistics.median(numbers),
                "n": len(numbers),
                "interval": None,
                "values": values,
                "difference": None,
            }
    return found
