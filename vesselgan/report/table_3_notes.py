"""The notes below a study's tables: what all sources share, empty volumes, how to read a cell."""

from typing import Any

from vesselgan.config.private import PROTECTS_NOBODY
from vesselgan.core.console import counted
from vesselgan.report import paper
from vesselgan.report.table_3_rows import split_of
from vesselgan.report.tables import REGIONS

PAPER_NOTE = (
    "The paper's numbers are of its own cohorts (PEGASUS beside our first, 1000Plus beside our second) and show what "
    "to expect at full size."
)
NOTE = (
    "A cell holds the mean over patients (SD of the patients' means over seeds), the median, [the 95 % bootstrap "
    "interval over patients and seeds], Dice as a share of that of real patches, and the difference to real patches "
    "with its Holm-adjusted Wilcoxon p. SD and median need three patients, interval and test five. The controls (best "
    "global threshold, shuffled labels) are not tested. {steps} " + PAPER_NOTE
)
SINGLE_NOTE = (
    "A cell holds the mean (SD) over patients, the median, and Dice as a share of that of real patches; SD and median "
    "need three patients. Every row is one U-Net; intervals and tests need a study. " + PAPER_NOTE
)
INFLATED = 2.0
"""Predicted voxels per voxel of the label from which bAVD is explained."""
EMPTY = "Dice 0 and the volume's diagonal as distance; 1 and 0 if both sides are empty"


def note_of(comparison: dict[str, Any]) -> str:
    """How to read the tables; equal numbers of steps are claimed only if the applied ones are equal."""
    if comparison["unet_steps"] is None:
        return SINGLE_NOTE
    runs = [run for row in comparison["rows"] for run in (row.get("runs") or {}).values()]
    applied = sorted({run["steps"] - (run.get("skipped_steps") or 0) for run in runs})
    if len(applied) < 2:
        return NOTE.format(steps="Every U-Net had the same number of optimizer steps.")
    return NOTE.format(
        steps="Every U-Net saw the same number of batches; without the steps that were skipped for non-finite "
        f"gradients, {applied[0]} to {applied[-1]} optimizer steps were applied."
    )


def about(comparison: dict[str, Any]) -> str:
    """Patients, seeds and steps, which all sources share, and the empty volumes."""
    scores: dict[str, Any] = next((row["scores"] for row in comparison["rows"] if row["scores"]), {})
    patients = ", ".join(f"{regions['all']['dice']['n']} of {cohort}" for cohort, regions in scores.items())
    texts = [f"{split_of(comparison).capitalize()} patients: {patients or 'none, nothing was run'}"]
    if comparison["seeds"]:
        texts.append(f"seed{'s' * (len(comparison['seeds']) > 1)} {', '.join(map(str, comparison['seeds']))}")
    if comparison["unet_steps"] is not None:
        size = comparison.get("unet_batch_size", "?")
        texts.append(f"{comparison['unet_steps']} optimizer steps of {size} patches for every U-Net")
    empty = [f"{counted(count, 'prediction')} of {title}" for title, count in empty_predictions(comparison).items()]
    if labels := empty_labels(comparison):
        empty.append(counted(labels, "label"))
    return "; ".join(texts) + "." + (f" Empty, and scored as such ({EMPTY}): {', '.join(empty)}." if empty else "")


def budget(privacy: dict[str, Any]) -> str:
    """The privacy budget that was spent; no epsilon if the noise is not secret."""
    if not privacy.get("is_key_secret", True):
        return "no epsilon, as its noise seed is known: no differential privacy"
    spent = f"epsilon {privacy['epsilon']:.3g} per {privacy['unit']} at delta {privacy['delta']:.2g}"
    return f"{spent}: no differential privacy" if privacy["epsilon"] >= PROTECTS_NOBODY else spent


def bavd_notes(comparison: dict[str, Any]) -> list[str]:
    """Why a bAVD may exceed the head: a sentence if a source predicts far more voxels than the label has."""
    texts = []
    for row in comparison["rows"]:
        for cohort, regions in row["scores"].items():
            scores = regions.get("all", {})
            if not {"precision", "recall", "bavd_voxels"} <= set(scores):
                continue
            precision = scores["precision"]["values"]
            ratios = [recall / precision[s] for s, recall in scores["recall"]["values"].items() if precision.get(s)]
            if ratios and (ratio := sum(ratios) / len(ratios)) > INFLATED:
                where = f" ({cohort})" if len(comparison["cohorts"]) > 1 else ""
                bavd, title = scores["bavd_voxels"]["mean"], row["title"].split("; ")[0]
                texts.append(f"{title}{where} predicts {ratio:.0f} times as many, its bAVD is {bavd:.0f} voxels")
    if not texts:
        return []
    return [
        "bAVD may be larger than the head: it sums the distances of all predicted voxels and divides by the number of "
        "the label's voxels (the paper's equation 4), so whoever predicts many times as many is charged for each. "
        f"{'; '.join(texts)}."
    ]


def empty_predictions(comparison: dict[str, Any]) -> dict[str, int]:
    """Title of a source -> number of empty predictions (one per patient and seed), whole or in a region."""
    by_title = {}
    for row in comparison["rows"]:
        results = [regions for results in row.get("empty", {}).values() for regions in results]
        # A volume without any vessel has none in the brain either: it counts once.
        by_title[row["title"]] = sum(max(counts["predicted"] for counts in regions.values()) for regions in results)
    return {title: count for title, count in by_title.items() if count}


def empty_labels(comparison: dict[str, Any]) -> int:
    """Number of patients with an empty label, whole or in a region; every source has the same patients."""
    by_cohort: dict[str, int] = {}
    for row in comparison["rows"]:
        for cohort, results in row.get("empty", {}).items():
            counts = [counts["truth"] for regions in results for counts in regions.values()]
            by_cohort[cohort] = max([by_cohort.get(cohort, 0), *counts])
    return sum(by_cohort.values())


def text_values() -> str:
    """The values of 1000Plus in the paper's text that differ from its Table 3."""
    names = ("Dice", "bAVD (voxels)")
    texts = []
    for (region, source), values in paper.TABLE_3_TEXT_1000PLUS.items():
        quoted = [f"{name} {value:.3f}" for name, value in zip(names, values, strict=True) if value is not None]
        texts.append(f"{source}, {REGIONS[region].lower()}: {', '.join(quoted)}")
    return "The paper's section 3 gives other values for 1000Plus than its Table 3: " + "; ".join(texts) + "."
