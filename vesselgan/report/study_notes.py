"""What a study's tables say in words: what all sources had in common, what was empty, how to read a cell."""

from typing import Any

from vesselgan.report import paper
from vesselgan.report.markup import counted
from vesselgan.report.tables import REGIONS

NOTE = (
    "Mean (SD over patients of their means over seeds), median, [95 % bootstrap interval over patients and seeds; none "
    "below five patients]. Dice as a share of real's; difference to real with Holm-adjusted Wilcoxon p; the controls "
    "(best global threshold, shuffled labels) are not tested. {steps} The paper's numbers come from its own cohorts "
    "(PEGASUS for our first, 1000Plus for our second) and say what to expect at full size."
)
SINGLE_NOTE = (
    "Mean (SD over patients), median, Dice as a share of real's; one U-Net each, no interval and no test: those take a "
    "study. Synthetic patches are taken to be of the one GAN that this page was given. The paper's numbers come from "
    "its own cohorts (PEGASUS for our first, 1000Plus for a second) and say what to expect at full size."
)
EMPTY = "Dice 0 and the volume's diagonal as distance; 1 and 0 where both sides are empty"


def note_of(comparison: dict[str, Any]) -> str:
    """How to read the tables. That efforts were equal is said where the updates that were applied are."""
    if comparison["unet_steps"] is None:
        return SINGLE_NOTE
    runs = [run for row in comparison["rows"] for run in (row.get("runs") or {}).values()]
    applied = sorted({run["steps"] - (run.get("skipped_steps") or 0) for run in runs})
    if len(applied) < 2:
        return NOTE.format(steps="Every U-Net had the same number of optimizer steps.")
    least, most = applied[0], applied[-1]
    return NOTE.format(
        steps=f"Every U-Net saw the same number of batches; steps that were skipped, for their gradients were not "
        f"finite, leave {least} to {most} optimizer steps that were applied."
    )


def about(comparison: dict[str, Any]) -> str:
    """What all sources had in common, how many patients there were, and whose volumes were empty."""
    first = next((row["scores"] for row in comparison["rows"] if row["scores"]), {})
    patients = ", ".join(f"{cohort} {regions['all']['dice']['n']}" for cohort, regions in first.items())
    texts = [f"Test patients: {patients or 'none, nothing was run'}"]
    if comparison["seeds"]:
        texts.append(f"seed{'s' * (len(comparison['seeds']) > 1)} {', '.join(map(str, comparison['seeds']))}")
    if comparison["unet_steps"] is not None:
        size = comparison.get("unet_batch_size", "?")
        texts.append(f"{comparison['unet_steps']} optimizer steps of {size} patches for every U-Net")
    empty = [f"{counted(count, 'prediction')} of {title}" for title, count in empty_predictions(comparison).items()]
    if labels := empty_labels(comparison):
        empty.append(counted(labels, "label"))
    return "; ".join(texts) + "." + (f" Empty, and scored as such ({EMPTY}): {', '.join(empty)}." if empty else "")


def empty_predictions(comparison: dict[str, Any]) -> dict[str, int]:
    """Title of a source -> its predicted volumes (one per patient and seed) that are empty, whole or in a region."""
    found = {}
    for row in comparison["rows"]:
        results = [regions for results in row.get("empty", {}).values() for regions in results]
        # What is empty as a whole is so in the brain too: one volume, not two.
        found[row["title"]] = sum(max(counts["predicted"] for counts in regions.values()) for regions in results)
    return {title: count for title, count in found.items() if count}


def empty_labels(comparison: dict[str, Any]) -> int:
    """Patients with an empty label, whole or in a region: the same ones for every source."""
    most: dict[str, int] = {}
    for row in comparison["rows"]:
        for cohort, results in row.get("empty", {}).items():
            counts = [counts["truth"] for regions in results for counts in regions.values()]
            most[cohort] = max([most.get(cohort, 0), *counts])
    return sum(most.values())


def text_values() -> str:
    """What the paper's own text says of 1000Plus where it is not its Table 3."""
    names = ("Dice", "bAVD (voxels)")
    texts = []
    for (region, source), values in paper.TABLE_3_TEXT_1000PLUS.items():
        known = [f"{name} {value:.3f}" for name, value in zip(names, values, strict=True) if value is not None]
        texts.append(f"{source}, {REGIONS[region].lower()}: {', '.join(known)}")
    return "The paper's section 3 gives other values for 1000Plus than its Table 3: " + "; ".join(texts) + "."
