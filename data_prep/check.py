"""Read a cohort's headers and voxels and say, before anything costs money, what is wrong with which subject.

    python -m data_prep.check data=phantom
    python -m data_prep.check data=pairs data.name=clinic data.root=/data/clinic data.prepare.quarantine=true
    mpiexec -n 8 python -m mpi4py -m data_prep.check data=phantom_paper

Prints one table and every fault of every subject; exit 3 when a subject is unusable, unless
data.prepare.quarantine=true sets such subjects aside by name. Writes <cohort_dir>/qc.html, a page of projections and
histograms with the most suspicious subject first (qc=false: nothing). No input is changed.
"""

# X Y Z voxels of the canonical grid

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_prep import mpi, patients, pseudonyms, qc, qc_page, splits
from data_prep import paths as places
from data_prep.layouts import KINDS, CohortFiles, SubjectFiles, find_subjects, without_paths
from data_prep.mpi import World
from data_prep.qc_results import CohortReport, Finding, by, mixed_spacings, summary, table
from vesselgan.config.compose import parse
from vesselgan.config.schema import Prepare, PreparedData
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats import volumes
from vesselgan.formats.volumes import Header, Volume

Result = TypeVar("Result")

USUAL_SPACING_MM = (0.1, 5.0)
MOST_VESSEL = 0.2  # of all voxels: more than any head holds
MOST_BRAIN = 0.8  # of all voxels: more than any brain fills of its box


def sha256_of_voxels(volume_XYZ: np.ndarray) -> str:
    """The same for the same voxels, however they are stored, packed or oriented in a file."""
    digest = hashlib.sha256(f"{volume_XYZ.dtype} {volume_XYZ.shape}".encode())
    digest.update(np.ascontiguousarray(volume_XYZ).data)
    return digest.hexdigest()


def check_cohort(data: PreparedData, found: CohortFiles, here: World, *, with_looks: bool = False) -> CohortReport:
    """Every subject of the cohort, on all ranks; `with_looks`: with what the page shows."""

    def check_mine() -> list[Finding]:
        mine = []
        with mpi.Progress(here, len(found.subjects), what="check", unit="subject") as progress:
            for files in found.subjects[here.rank :: here.size]:
                mine.append(check_subject(files, data.prepare, with_look=with_looks))
                progress.advance()
        return mine

    findings = [finding for part in mpi.together(here, check_mine) for finding in part]
    findings.sort(key=lambda finding: finding.subject)
    _refuse_twins(findings)
    for finding in findings:
        if data.prepare.pseudonymise:
            finding.faults = [without_paths(fault, finding.files) for fault in finding.faults]
            finding.warnings = [without_paths(warning, finding.files) for warning in finding.warnings]
        else:
            finding.warnings += pseudonyms.suspicion(finding.subject)
    said = [*found.warnings, *mixed_spacings(finding.header.spacing_mm for finding in findings if finding.header)]
    if data.prepare.pseudonymise and any(finding.faults for finding in findings):
        said.append("faults stand without the names of files; a check without data.prepare.pseudonymise names them")
    return CohortReport(tuple(findings), tuple(said))


def check_subject(files: SubjectFiles, prepare: Prepare, *, with_look: bool = False) -> Finding:
    """Read one subject's files and gather every fault, not the first alone."""
    finding = Finding(files, faults=list(files.missing))
    on_grid: dict[str, np.ndarray | None] = dict.fromkeys(KINDS)
    image = _try(finding, lambda: volumes.read_image(files.image, nan_value=prepare.nan_value))
    if image is not None:
        finding.header, finding.image_sha256 = image.header, sha256_of_voxels(image.data_XYZ)
        _check_image(finding, image, prepare)
    label = None
    if files.label is not None:
        rules = {"label_values": prepare.label_values, "label_binarize_threshold": prepare.label_binarize_threshold}
        label = _try(finding, lambda: volumes.read_label(files.label, **rules))
        if label is not None:
            finding.label_values, finding.label_sha256 = label.values, sha256_of_voxels(label.data_XYZ)
            _check_label(finding, label, prepare)
            if image is not None and _same_grid(finding, image, label):
                on_grid["label"] = label.data_XYZ
                _check_clipping(finding, image.data_XYZ, label.data_XYZ, prepare)
    if files.mask is not None:
        mask = _try(finding, lambda: volumes.read_mask(files.mask))
        if mask is not None and (image is None or _same_grid(finding, image, mask)):
            on_grid["mask"] = mask.data_XYZ
            _check_mask(finding, label, mask)
    if with_look and image is not None and finding.limits is not None:
        places = {"spacing_mm": image.spacing_mm, "limits": finding.limits}
        finding.look = qc.look(image.data_XYZ, on_grid["label"], on_grid["mask"], **places)
    return finding


def divide(checked: CohortReport, data: PreparedData) -> dict[str, str]:
    """Usable subject -> split. DataError for everything that stands in the way of using the cohort, at once."""
    problems = []
    if checked.unusable and not data.prepare.quarantine:
        problems.append(
            f"{len(checked.unusable)} of {len(checked.findings)} subjects are unusable: {', '.join(checked.unusable)}; "
            "mend what is listed above, or set them aside with data.prepare.quarantine=true"
        )
    kept = checked.usable if data.prepare.quarantine else checked.findings
    known = [finding.subject for finding in checked.findings]
    assigned = {}
    try:
        if not kept:
            raise DataError(f"{data.root}: no usable subject is left")
        assigned = splits.assign(
            [finding.subject for finding in kept], data.prepare.split, known=known, rename=pseudonyms.renamer(data)
        )
        problems += patients.divided(patients.patients_of(data), assigned)
    except UsageError:
        if not problems:
            raise
    except DataError as error:
        problems.append(str(error))
    if problems:
        raise DataError("; ".join(problems))
    return assigned


def require_rules(prepare: Prepare) -> None:
    """UsageError for settings that contradict each other, before any file is read."""
    if prepare.label_values is not None and prepare.label_binarize_threshold is not None:
        raise UsageError(
            "data.prepare.label_values and data.prepare.label_binarize_threshold exclude each other; leave one at null"
        )


def _check_image(finding: Finding, image: Volume, prepare: Prepare) -> None:
    finding.warnings += image.notes
    finding.warnings += _text_warning(image.header)
    low, high = USUAL_SPACING_MM
    if not all(low <= spacing <= high for spacing in image.spacing_mm):
        finding.warnings.append(f"{image.path}: spacing {by(image.spacing_mm)} mm is unusual; are the units mm?")
    thin = any(n < size for n, size in zip(image.data_XYZ.shape, prepare.patch_shape, strict=True))
    sizes = f"{image.path}: {by(image.data_XYZ.shape)} voxels are thinner than the patch {by(prepare.patch_shape)}"
    if thin and prepare.reflect_pad:
        finding.warnings.append(f"{sizes}: reflected at the far edge (data.prepare.reflect_pad)")
    elif thin:
        finding.faults.append(
            f"{sizes}; data.prepare.reflect_pad=true reflects it at its far edge, or choose a smaller "
            "data.prepare.patch_shape"
        )
    percentile = prepare.upper_percentile
    finding.limits = _try(finding, lambda: volumes.intensity_limits(image.data_XYZ, percentile), image.path)
    if finding.limits is not None:
        finding.num_clipped = int((image.data_XYZ > finding.limits[1]).sum())


def _check_label(finding: Finding, label: Volume, prepare: Prepare) -> None:
    finding.warnings += [f"{label.path}: {note}" for note in label.notes]
    finding.warnings += _text_warning(label.header)
    num_vessels = int(np.count_nonzero(label.data_XYZ))
    finding.vessel_share = num_vessels / label.data_XYZ.size
    most = max(prepare.num_vessel_patches_gan, prepare.num_vessel_patches_unet)
    if num_vessels == 0:
        finding.faults.append(f"{label.path}: the label is empty; draw it, or take the subject out")
    elif num_vessels < most:
        finding.warnings.append(f"{label.path}: {num_vessels} vessel voxels for {most} patches: drawn with replacement")
    if finding.vessel_share > MOST_VESSEL:
        finding.warnings.append(f"{label.path}: {finding.vessel_share:.1%} of all voxels are vessel; is it the label?")


def _check_clipping(finding: Finding, image_XYZ: np.ndarray, label_XYZ: np.ndarray, prepare: Prepare) -> None:
    if finding.limits is None or not finding.vessel_share:
        return
    share = float((image_XYZ[label_XYZ == 1] > finding.limits[1]).mean())
    finding.clipped_vessel_share = share
    if share > prepare.max_clipped_vessel_share:
        finding.faults.append(
            f"{finding.files.image}: {share:.1%} of the vessel voxels lie above the upper limit {finding.limits[1]:g} "
            f"and would be flattened (allowed: {prepare.max_clipped_vessel_share:.1%}); raise "
            f"data.prepare.upper_percentile ({prepare.upper_percentile:g})"
        )


def _check_mask(finding: Finding, label: Volume | None, mask: Volume) -> None:
    finding.warnings += [f"{mask.path}: {note}" for note in mask.notes]
    finding.warnings += _text_warning(mask.header)
    share = finding.mask_share = float(np.count_nonzero(mask.data_XYZ) / mask.data_XYZ.size)
    if share == 0:
        finding.faults.append(f"{mask.path}: the mask is empty; make it anew, or set data.layout.mask=null")
    elif share == 1:
        finding.warnings.append(f"{mask.path}: every voxel is inside: intracranial scores will be those of all vessels")
    elif share > MOST_BRAIN:
        finding.warnings.append(f"{mask.path}: {share:.1%} of all voxels are inside; is it a brain mask?")
    elif label is not None and label.data_XYZ.shape == mask.data_XYZ.shape:
        if finding.vessel_share and not (label.data_XYZ & mask.data_XYZ).any():
            finding.warnings.append(f"{mask.path}: no vessel voxel lies inside the mask")


def _same_grid(finding: Finding, image: Volume, other: Volume) -> bool:
    difference = volumes.grid_difference(image.header, other.header)
    if difference is not None:
        finding.faults.append(
            f"{other.path}: not on the grid of {image.path}: {difference}; resample it onto the image"
        )
    return difference is None


def _refuse_twins(findings: Sequence[Finding]) -> None:
    digests = {finding.subject: finding.image_sha256 for finding in findings if finding.image_sha256 is not None}
    twins = splits.same_content(digests)
    for finding in findings:
        if finding.subject in twins:
            finding.faults.append(
                f"{finding.files.image}: the very voxels of subject {twins[finding.subject]}: one patient under "
                "two names could stand in two splits; remove one of the two"
            )


def _try(finding: Finding, call: Callable[[], Result], path: Path | None = None) -> Result | None:
    """The result of `call`, or None and one more fault. A wrong setting is no subject's fault and goes on upward."""
    try:
        return call()
    except DataError as error:
        finding.faults.append(f"{path}: {error}" if path is not None else str(error))
        return None


def _text_warning(header: Header) -> list[str]:
    if not header.text_fields:
        return []
    return [
        f"{header.path}: text in {', '.join(header.text_fields)} (never copied to shards or reports); "
        "look for names and dates in it before you pass the file on"
    ]


def check(data: PreparedData, here: World, *, with_page: bool = False) -> None:
    """Check the cohort and print what was found; DataError when it cannot be used as it is.

    `with_page`: write <cohort_dir>/qc.html, whatever was found.
    """
    require_rules(data.prepare)
    if with_page:
        places.refuse(data.cohort_dir, "data.cohort_dir", data.root)
    found = mpi.run_on_rank0(here, lambda: find_subjects(data.root, data.layout, rename=pseudonyms.renamer(data)))
    checked = check_cohort(data, found, here, with_looks=with_page)

    def write_report() -> None:
        print(f"cohort {data.name}, {data.root}\n{table(checked)}", flush=True)
        assigned: dict[str, str] = {}
        try:
            assigned = divide(checked, data)
            print(summary(checked, assigned), flush=True)
        finally:
            if with_page:
                print(f"wrote {qc_page.write(data, checked, assigned)}", flush=True)

    mpi.run_on_rank0(here, write_report)


def main() -> None:
    """Entry of `python -m data_prep.check`."""
    mpi.run(lambda: parse("check", __doc__).config, lambda config, here: check(config.data, here, with_page=config.qc))


if __name__ == "__main__":
    main()
