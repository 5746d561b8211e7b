"""The results of a check: one per subject, the cohort's report, and both as text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.layouts import SubjectFiles
from data_prep.qc import Preview
from vesselgan.core.console import counted
from vesselgan.formats.cohort import SPLITS
from vesselgan.formats.nifti import format_sizes
from vesselgan.formats.volumes import Header

COLUMNS = ("subject", "shape", "spacing mm", "axes", "label values", "vessel %", "mask %", "clipped %", "verdict")


@dataclass
class CheckResult:
    """The check of one subject's files; fields stay None where a fault kept them from being measured."""

    files: SubjectFiles
    faults: list[str] = field(default_factory=list)
    """Why the subject cannot be used."""
    warnings: list[str] = field(default_factory=list)
    header: Header | None = None
    limits: tuple[float, float] | None = None
    num_clipped: int | None = None
    """Non-zero voxels outside the limits."""
    label_values: tuple[float, ...] | None = None
    vessel_share: float | None = None
    """Vessel voxels of all voxels."""
    clipped_vessel_share: float | None = None
    """Vessel voxels outside the limits of all vessel voxels."""
    mask_share: float | None = None
    """Voxels inside the brain mask of all voxels."""
    vessel_in_mask_share: float | None = None
    """Vessel voxels inside the mask of all vessel voxels."""
    image_sha256: str | None = None
    label_sha256: str | None = None
    mask_sha256: str | None = None
    coarse: np.ndarray | None = None
    """The image on a coarse grid, to compare subjects by."""
    preview: Preview | None = None

    @property
    def subject(self) -> str:
        return self.files.subject

    @property
    def verdict(self) -> str:
        return "UNUSABLE" if self.faults else "warning" if self.warnings else "ok"


@dataclass(frozen=True)
class CohortReport:
    """The results of a whole cohort, in the order of the ids."""

    results: tuple[CheckResult, ...]
    warnings: tuple[str, ...]

    @property
    def usable(self) -> list[CheckResult]:
        return [result for result in self.results if not result.faults]

    @property
    def unusable(self) -> list[str]:
        return [result.subject for result in self.results if result.faults]


def table(report: CohortReport) -> str:
    """One line per subject, then every fault and warning."""
    rows = [COLUMNS, *(_row(result) for result in report.results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for result in report.results:
        lines += [f"UNUSABLE {result.subject}: {fault}" for fault in result.faults]
        lines += [f"warning {result.subject}: {warning}" for warning in result.warnings]
    lines += [f"warning: {warning}" for warning in report.warnings]
    return "\n".join(lines)


def summary(report: CohortReport, assigned: dict[str, str]) -> str:
    """Counts of usable subjects and of each split, and who was set aside."""
    num_warned = sum(bool(result.warnings) for result in report.usable)
    text = f"{counted(len(report.results), 'subject')}: {len(report.usable)} usable, {num_warned} of them with warnings"
    if report.unusable:
        text += f"; set aside: {', '.join(report.unusable)}"
    splits_of = list(assigned.values())
    return f"{text}\nsplit: " + ", ".join(f"{splits_of.count(name)} {name}" for name in SPLITS)


def spacing_warnings(spacings_mm: Iterable[Sequence[float]]) -> list[str]:
    """A warning where a cohort's volumes have voxels of several sizes; none where all have one."""
    spacings = sorted({tuple(round(s, 3) for s in spacing_mm) for spacing_mm in spacings_mm})
    if len(spacings) < 2:
        return []
    shown = ", ".join(format_sizes(spacing) for spacing in spacings[:4]) + (", ..." if len(spacings) > 4 else "")
    return [
        f"{len(spacings)} voxel spacings in one cohort ({shown} mm): a patch shows vessels at several scales; "
        "`vesselgan preprocess preprocess.spacing_mm=[X,Y,Z]` brings all to one"
    ]


def _row(result: CheckResult) -> tuple[str, ...]:
    header, values = result.header, result.label_values
    return (
        result.subject,
        "x".join(map(str, header.shape)) if header else "-",
        "x".join(f"{s:.3g}" for s in header.spacing_mm) if header else "-",
        header.orientation if header else "-",
        "-" if values is None else ",".join(f"{v:g}" for v in values[:4]) + (",..." if len(values) > 4 else ""),
        _percent(result.vessel_share, 3),
        _percent(result.mask_share, 1),
        _percent(result.clipped_vessel_share, 2),
        result.verdict,
    )


def _percent(share: float | None, digits: int) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}"
