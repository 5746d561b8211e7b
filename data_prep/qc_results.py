"""What a check found out about a cohort, and how it is told: one table, then every fault in words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from data_prep import splits
from data_prep.layouts import SubjectFiles
from data_prep.qc import Preview
from vesselgan.formats.volumes import Header

COLUMNS = ("subject", "shape", "spacing mm", "axes", "label values", "vessel %", "mask %", "clipped %", "verdict")


@dataclass
class Finding:
    """What one subject's files turned out to be; fields stay None where a fault kept them from being known."""

    files: SubjectFiles
    faults: list[str] = field(default_factory=list)
    """Why the subject cannot be used."""
    warnings: list[str] = field(default_factory=list)
    header: Header | None = None
    limits: tuple[float, float] | None = None
    num_clipped: int | None = None
    """Voxels above the upper limit."""
    label_values: tuple[float, ...] | None = None
    vessel_share: float | None = None
    """Vessel voxels of all voxels."""
    clipped_vessel_share: float | None = None
    """Vessel voxels above the upper limit of all vessel voxels."""
    mask_share: float | None = None
    """Voxels inside the brain mask of all voxels."""
    image_sha256: str | None = None
    label_sha256: str | None = None
    look: Preview | None = None
    """Pictures and numbers for the page, where they are asked for."""

    @property
    def subject(self) -> str:
        return self.files.subject

    @property
    def verdict(self) -> str:
        return "UNUSABLE" if self.faults else "warning" if self.warnings else "ok"


@dataclass(frozen=True)
class CohortReport:
    """A whole cohort's findings, in the order of the ids."""

    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]

    @property
    def usable(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.faults]

    @property
    def unusable(self) -> list[str]:
        return [finding.subject for finding in self.findings if finding.faults]


def table(checked: CohortReport) -> str:
    """One line per subject, then faults and warnings in words."""
    rows = [COLUMNS, *(_row(finding) for finding in checked.findings)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for finding in checked.findings:
        lines += [f"UNUSABLE {finding.subject}: {fault}" for fault in finding.faults]
        lines += [f"warning {finding.subject}: {warning}" for warning in finding.warnings]
    lines += [f"warning: {warning}" for warning in checked.warnings]
    return "\n".join(lines)


def summary(checked: CohortReport, assigned: dict[str, str]) -> str:
    """How many subjects are what, and who was set aside."""
    with_warnings = sum(bool(finding.warnings) for finding in checked.usable)
    who = "1 subject" if len(checked.findings) == 1 else f"{len(checked.findings)} subjects"
    text = f"{who}: {len(checked.usable)} usable, {with_warnings} of them with warnings"
    if checked.unusable:
        text += f"; set aside: {', '.join(checked.unusable)}"
    counts = {name: sum(split == name for split in assigned.values()) for name in splits.NAMES}
    return f"{text}\nsplit: " + ", ".join(f"{count} {name}" for name, count in counts.items())


def _row(finding: Finding) -> tuple[str, ...]:
    header, values = finding.header, finding.label_values
    return (
        finding.subject,
        "x".join(map(str, header.shape)) if header else "-",
        "x".join(f"{s:.3g}" for s in header.spacing_mm) if header else "-",
        header.orientation if header else "-",
        "-" if values is None else ",".join(f"{v:g}" for v in values[:4]) + (",..." if len(values) > 4 else ""),
        "-" if finding.vessel_share is None else f"{100 * finding.vessel_share:.3f}",
        "-" if finding.mask_share is None else f"{100 * finding.mask_share:.1f}",
        "-" if finding.clipped_vessel_share is None else f"{100 * finding.clipped_vessel_share:.2f}",
        finding.verdict,
    )


def mixed_spacings(spacings_mm: Iterable[Sequence[float]]) -> list[str]:
    """A warning where a cohort's volumes have voxels of several sizes; none where all have one."""
    spacings = sorted({tuple(round(s, 3) for s in spacing_mm) for spacing_mm in spacings_mm})
    if len(spacings) < 2:
        return []
    shown = ", ".join(by(spacing) for spacing in spacings[:4]) + (", ..." if len(spacings) > 4 else "")
    return [
        f"{len(spacings)} voxel spacings in one cohort ({shown} mm): a patch shows vessels at several scales; "
        "data_prep.preprocess with preprocess.spacing_mm=[X,Y,Z] brings all to one"
    ]


def by(numbers: Sequence[float]) -> str:
    """`0.5 x 0.5 x 0.7`."""
    return " x ".join(f"{number:g}" for number in numbers)
