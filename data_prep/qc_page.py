"""qc.html: one page of projections and histograms per cohort, the most suspicious subject first.

Subjects bear the names that the cohort writes (pseudonyms, where asked for); faults stand without the paths of files.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from data_prep import qc
from data_prep.layouts import without_paths
from data_prep.qc import AXES, Preview
from data_prep.qc_results import CheckResult, CohortReport
from vesselgan.config.schema import PreparedData
from vesselgan.core.atomic_io import describe, write_text
from vesselgan.core.console import counted
from vesselgan.core.errors import ResourceError
from vesselgan.formats.cohort import is_phantom
from vesselgan.formats.nifti import format_sizes
from vesselgan.viz import plots
from vesselgan.viz.pages import render

PAGE = "qc.html"


@dataclass(frozen=True)
class PageEntry:
    """One subject on the page."""

    subject: str
    verdict: str
    """`ok`, `warning` or `UNUSABLE`."""
    split: str | None
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    reasons: tuple[str, ...]
    """What sets it apart from the others."""
    suspicion: float
    measures: dict[str, str]
    preview: Preview | None
    """None where the volumes could not be read."""

    @property
    def histogram(self) -> plots.Chart | None:
        preview = self.preview
        return None if preview is None else plots.intensities(preview.histogram, preview.vessel_histogram)


def write_page(data: PreparedData, report: CohortReport, assigned: dict[str, str]) -> Path:
    """Write <cohort_dir>/qc.html; `assigned`: subject -> split, empty where the cohort could not be divided."""
    outliers = qc.find_outliers([_compared_measures(result) for result in report.results])
    entries = [
        _page_entry(result, reasons, assigned.get(result.subject))
        for result, reasons in zip(report.results, outliers, strict=True)
    ]
    values = {
        "title": f"Quality of cohort {data.name}",
        "subjects": counted(len(entries), "subject"),
        "counts": {verdict: sum(e.verdict == verdict for e in entries) for verdict in ("ok", "warning", "UNUSABLE")},
        "warnings": report.warnings,
        "shows_patients": not is_phantom(data.root),
        "entries": sorted(entries, key=lambda entry: (-entry.suspicion, entry.subject)),
        "axes": AXES,
        "time": f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC",
    }
    page = render("data_prep", "qc.html", values)
    path = Path(data.cohort_dir) / PAGE
    try:
        write_text(path, page)
    except OSError as error:
        raise ResourceError(f"{path}: {describe(error)}; go without the page (qc=false), or make room") from error
    return path


def _compared_measures(result: CheckResult) -> dict[str, float | None]:
    """What subjects are compared by."""
    preview, header = result.preview, result.header
    return {
        "vessel share": result.vessel_share,
        "vessel contrast": preview.contrast if preview else None,
        "brightness": preview.brightness if preview else None,
        "voxel volume (mm3)": float(np.prod(header.spacing_mm)) if header else None,
        "number of voxels": float(np.prod(header.shape)) if header else None,
    }


def _page_entry(result: CheckResult, outliers: list[tuple[float, str]], split: str | None) -> PageEntry:
    preview = result.preview
    reasons = sorted(outliers, reverse=True)
    if preview is not None and preview.contrast is not None and preview.contrast < qc.MIN_CONTRAST:
        text = f"vessels are hardly brighter than what is around them ({preview.contrast:.2f} times): is it the label?"
        reasons.insert(0, (2 * qc.OUTLIER_DEVIATIONS, text))
    suspicion = 100.0 * len(result.faults) + 2.0 * len(result.warnings)
    return PageEntry(
        subject=result.subject,
        verdict=result.verdict,
        split=split,
        faults=tuple(without_paths(fault, result.files) for fault in result.faults),
        warnings=tuple(without_paths(warning, result.files) for warning in result.warnings),
        reasons=tuple(text for _, text in reasons),
        suspicion=suspicion + sum(min(deviations, 20.0) for deviations, _ in reasons),
        measures=_shown_measures(result),
        preview=preview,
    )


def _shown_measures(result: CheckResult) -> dict[str, str]:
    measures: dict[str, str] = {}
    if (header := result.header) is not None:
        spacing = " x ".join(f"{s:.3g}" for s in header.spacing_mm)
        measures = {"voxels": format_sizes(header.shape), "mm": spacing, "axes": header.orientation}
    shares = {"vessel": result.vessel_share, "mask": result.mask_share, "vessel in mask": result.vessel_in_mask_share}
    shares |= {"clipped vessel": result.clipped_vessel_share}
    measures |= {name: f"{100 * share:.3g} %" for name, share in shares.items() if share is not None}
    if result.preview is not None and result.preview.contrast is not None:
        measures["vessel contrast"] = f"{result.preview.contrast:.2f}"
    if result.limits is not None:
        measures["limits"] = f"{result.limits[0]:.4g} to {result.limits[1]:.4g}"
    return measures
