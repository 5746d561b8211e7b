"""Check a cohort's headers and voxels before anything costs money: one table, and every fault of every subject.

    vesselgan check data=phantom
    vesselgan check data=pairs data.name=clinic data.root=/data/clinic data.prepare.quarantine=true
    mpiexec -n 8 python -m mpi4py -m vesselgan check data=phantom_paper

Exit 3 when a subject is unusable, unless data.prepare.quarantine=true sets such subjects aside by name. Writes
<cohort_dir>/qc.html, a page of projections and histograms with the most suspicious subject first (qc=false: nothing).
No input is changed.
"""

# X Y Z voxels of the canonical grid

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_prep import mpi, patients, pseudonyms, qc, qc_page, resolve_layout, splits
from data_prep.layouts import CohortFiles, SubjectFiles, hidden_files, without_paths
from data_prep.mpi import MpiWorld
from data_prep.output import check_output_folder
from data_prep.pseudonyms import files_of
from data_prep.qc_results import CheckResult, CohortReport, spacing_warnings, summary, table
from vesselgan.config.compose import parse
from vesselgan.config.schema import Prepare, PreparedData
from vesselgan.core.console import counted, log
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats import volumes
from vesselgan.formats.intensities import intensity_limits, num_outside, padding_problem
from vesselgan.formats.nifti import format_sizes
from vesselgan.formats.synthetic_volumes import origin_of
from vesselgan.formats.volumes import Header, Volume, sha256_of_voxels

Result = TypeVar("Result")

USUAL_SPACING_MM = (0.1, 5.0)
MAX_VESSEL_SHARE = 0.2  # of all voxels: more than any head holds
MAX_BRAIN_SHARE = 0.8  # of all voxels: more than any brain fills of its box
COARSE_BLOCKS = 8  # per axis: the head's shape and brightness, not its noise
MAX_CORRELATION = 0.99  # of two images on the coarse grid under similar ids: the same scan, scaled or shifted a little


def check_cohort(
    data: PreparedData, cohort_files: CohortFiles, world: MpiWorld, *, with_previews: bool = False
) -> CohortReport:
    """Check every subject, on all ranks; `with_previews`: with the images for the page."""

    def check_one(files: SubjectFiles) -> CheckResult:
        with hidden_files(files, is_hidden=data.prepare.pseudonymise):
            return check_subject(files, data.prepare, with_preview=with_previews)

    results = mpi.map_items(world, cohort_files.subjects, check_one, description="check")
    _check_duplicates(results)
    warnings = [*cohort_files.warnings, *_check_similar(cohort_files, results, data), *_check_origin(results, data)]
    for result in results:
        if data.prepare.pseudonymise:
            result.faults = [without_paths(fault, result.files) for fault in result.faults]
            result.warnings = [without_paths(warning, result.files) for warning in result.warnings]
        else:
            result.warnings += pseudonyms.identity_warnings(result.subject)
    warnings += spacing_warnings(r.header.spacing_mm for r in results if r.header)
    if data.prepare.pseudonymise and any(result.faults for result in results):
        warnings.append("faults stand without file names; a check without data.prepare.pseudonymise names them")
    return CohortReport(tuple(results), tuple(warnings))


def check_subject(files: SubjectFiles, prepare: Prepare, *, with_preview: bool = False) -> CheckResult:
    """Read one subject's files and gather every fault, not the first alone."""
    result = CheckResult(files, faults=list(files.missing))
    label_XYZ = mask_XYZ = None
    image = _try(result, lambda: volumes.read_image(files.image, nan_value=prepare.nan_value))
    if image is not None:
        result.header, result.image_sha256 = image.header, sha256_of_voxels(image.data_XYZ)
        result.coarse = coarse(image.data_XYZ)
        _check_image(result, image, prepare)
    label = _try_label(result, prepare)
    if label is not None:
        result.label_values, result.label_sha256 = label.values, sha256_of_voxels(label.data_XYZ)
        _check_label(result, label, prepare)
        if image is not None and _check_grid(result, image, label):
            label_XYZ = label.data_XYZ
            _check_clipping(result, image.data_XYZ, label_XYZ, prepare)
    mask_path = files.mask
    mask = None if mask_path is None else _try(result, lambda: volumes.read_mask(mask_path))
    if mask is not None and (image is None or _check_grid(result, image, mask)):
        mask_XYZ, result.mask_sha256 = mask.data_XYZ, sha256_of_voxels(mask.data_XYZ)
        _check_mask(result, label, mask)
    if with_preview and image is not None and result.limits is not None:
        result.preview = qc.make_preview(
            image.data_XYZ, label_XYZ, mask_XYZ, spacing_mm=image.spacing_mm, limits=result.limits
        )
    return result


def assign_splits(report: CohortReport, data: PreparedData) -> dict[str, str]:
    """Usable subject -> split. DataError for everything that stands in the way of using the cohort, at once."""
    problems = []
    if report.unusable and not data.prepare.quarantine:
        problems.append(
            f"{len(report.unusable)} of {len(report.results)} subjects are unusable: {', '.join(report.unusable)}; "
            "mend what is listed above, or set them aside with data.prepare.quarantine=true"
        )
    kept = report.usable if data.prepare.quarantine else report.results
    assigned = {}
    try:
        if not kept:
            raise DataError(f"{data.root}: no usable subject is left")
        assigned = splits.assign(
            [result.subject for result in kept],
            data.prepare.split,
            known=[result.subject for result in report.results],
            rename=pseudonyms.renamer(data),
        )
        problems += patients.in_several_splits(patients.patients_of(data), assigned)
    except UsageError:
        if not problems:
            raise
    except DataError as error:
        problems.append(str(error))
    if problems:
        raise DataError("; ".join(problems))
    return assigned


def check_label_settings(prepare: Prepare) -> None:
    """UsageError for settings that contradict each other, before any file is read."""
    if prepare.label_values is not None and prepare.label_binarize_threshold is not None:
        raise UsageError(
            "data.prepare.label_values and data.prepare.label_binarize_threshold exclude each other; leave one at null"
        )


def _try(result: CheckResult, call: Callable[[], Result], path: Path | None = None) -> Result | None:
    """The value of `call`, or None and one more fault. A UsageError is no subject's fault and is not caught."""
    try:
        return call()
    except DataError as error:
        result.faults.append(f"{path}: {error}" if path is not None else str(error))
        return None


def _try_label(result: CheckResult, prepare: Prepare) -> Volume | None:
    path, values, threshold = result.files.label, prepare.label_values, prepare.label_binarize_threshold
    if path is None:
        return None
    return _try(result, lambda: volumes.read_label(path, label_values=values, label_binarize_threshold=threshold))


def _check_image(result: CheckResult, image: Volume, prepare: Prepare) -> None:
    result.warnings += image.notes
    result.warnings += _text_warnings(image.header)
    low, high = USUAL_SPACING_MM
    if not all(low <= spacing <= high for spacing in image.spacing_mm):
        result.warnings.append(
            f"{image.path}: spacing {format_sizes(image.spacing_mm)} mm is unusual; are the units mm?"
        )
    is_thin = any(n < size for n, size in zip(image.data_XYZ.shape, prepare.patch_shape, strict=True))
    voxels, patch = format_sizes(image.data_XYZ.shape), format_sizes(prepare.patch_shape)
    sizes = f"{image.path}: {voxels} voxels are thinner than the patch {patch}"
    if is_thin and prepare.reflect_pad:
        result.warnings.append(f"{sizes}: reflected at the far edge (data.prepare.reflect_pad)")
    elif is_thin:
        result.faults.append(
            f"{sizes}; data.prepare.reflect_pad=true reflects it at its far edge, or choose a smaller "
            "data.prepare.patch_shape"
        )
    percentiles = prepare.percentiles
    result.limits = _try(result, lambda: intensity_limits(image.data_XYZ, percentiles), image.path)
    if result.limits is not None:
        result.num_clipped = num_outside(image.data_XYZ, result.limits)
        if (problem := padding_problem(image.data_XYZ, result.limits)) is not None:
            result.faults.append(f"{image.path}: {problem}")


def _check_label(result: CheckResult, label: Volume, prepare: Prepare) -> None:
    result.warnings += [f"{label.path}: {note}" for note in label.notes]
    result.warnings += _text_warnings(label.header)
    num_vessels = int(np.count_nonzero(label.data_XYZ))
    num_patches = max(prepare.num_vessel_patches_gan, prepare.num_vessel_patches_unet)
    share = result.vessel_share = num_vessels / label.data_XYZ.size
    if num_vessels == 0:
        result.faults.append(f"{label.path}: the label is empty; draw it, or take the subject out")
    elif num_vessels < num_patches:
        result.warnings.append(
            f"{label.path}: {num_vessels} vessel voxels for {num_patches} patches: drawn with replacement"
        )
    if share > MAX_VESSEL_SHARE:
        result.warnings.append(f"{label.path}: {share:.1%} of all voxels are vessel; is it the label?")


def _check_clipping(result: CheckResult, image_XYZ: np.ndarray, label_XYZ: np.ndarray, prepare: Prepare) -> None:
    if result.limits is None or not result.vessel_share:
        return
    low, high = result.limits
    vessel = image_XYZ[label_XYZ == 1]
    share = result.clipped_vessel_share = num_outside(vessel, result.limits) / vessel.size
    if share > prepare.max_clipped_vessel_share:
        result.faults.append(
            f"{result.files.image}: {share:.1%} of the vessel voxels lie outside the limits {low:g} and {high:g} and "
            f"would be flattened (allowed: {prepare.max_clipped_vessel_share:.1%}); raise "
            f"data.prepare.upper_percentile ({prepare.upper_percentile:g}), or lower data.prepare.lower_percentile "
            f"({prepare.lower_percentile:g})"
        )


def _check_mask(result: CheckResult, label: Volume | None, mask: Volume) -> None:
    result.warnings += [f"{mask.path}: {note}" for note in mask.notes]
    result.warnings += _text_warnings(mask.header)
    share = result.mask_share = float(np.count_nonzero(mask.data_XYZ) / mask.data_XYZ.size)
    if share == 0:
        result.faults.append(f"{mask.path}: the mask is empty; make it anew, or set data.layout.mask=null")
    elif share == 1:
        result.warnings.append(f"{mask.path}: every voxel is inside: intracranial scores will be those of all vessels")
    elif share > MAX_BRAIN_SHARE:
        result.warnings.append(f"{mask.path}: {share:.1%} of all voxels are inside; is it a brain mask?")
    elif label is not None and label.data_XYZ.shape == mask.data_XYZ.shape:
        if result.vessel_share:
            result.vessel_in_mask_share = float(mask.data_XYZ[label.data_XYZ > 0].mean())
        if result.vessel_in_mask_share == 0:
            result.warnings.append(f"{mask.path}: no vessel voxel lies inside the mask")


def _check_grid(result: CheckResult, image: Volume, other: Volume) -> bool:
    difference = volumes.grid_difference(image.header, other.header)
    if difference is not None:
        result.faults.append(f"{other.path}: not on the grid of {image.path}: {difference}; resample it onto the image")
    return difference is None


def _check_duplicates(results: Sequence[CheckResult]) -> None:
    """An image that is there twice is a fault of its second subject, a label of both: either may be the copy."""
    images = {result.subject: result.image_sha256 for result in results if result.image_sha256 is not None}
    labels = {result.subject: result.label_sha256 for result in results if result.label_sha256 and result.vessel_share}
    same_image, same_label = splits.duplicates(images), splits.duplicates(labels)
    same_label |= {first: second for second, first in same_label.items()}
    for result in results:
        if result.subject in same_image:
            result.faults.append(
                f"{result.files.image}: the very voxels of subject {same_image[result.subject]}: one patient under "
                "two names could stand in two splits; remove one of the two"
            )
        if result.subject in same_label:
            result.faults.append(
                f"{result.files.label}: the very label of subject {same_label[result.subject]}: copied by mistake, or "
                "one patient under two names; correct it, or remove one of the two"
            )


def coarse(image_XYZ: np.ndarray) -> np.ndarray:
    """Sums over COARSE_BLOCKS blocks per axis, float64, as a vector of mean 0 and length 1 (0 where all are equal)."""
    sums_XYZ = image_XYZ
    for axis, size in enumerate(image_XYZ.shape):
        starts = np.unique(np.linspace(0, size, COARSE_BLOCKS, endpoint=False).astype(int))
        sums_XYZ = np.add.reduceat(sums_XYZ, starts, axis=axis, dtype=np.float64)
    centred = sums_XYZ.ravel() - sums_XYZ.mean()
    return centred / (np.linalg.norm(centred) or 1.0)


def _check_similar(cohort_files: CohortFiles, results: Sequence[CheckResult], data: PreparedData) -> list[str]:
    """Warnings of similar ids; a fault where their images are nearly the same. The column `patient` settles both."""
    remedy = "if they are one patient, say so in the column patient of data.prepare.split.csv, or remove one"
    by_id, named = {result.subject: result for result in results}, patients.named_patients(data)
    warnings = []
    for group in ([subject for subject in group if subject not in named] for group in cohort_files.similar):
        if len(group) > 1:
            warnings.append(f"{', '.join(group)}: ids that nearly agree; {remedy}")
        for first, second in itertools.combinations(group, 2):
            a, b = by_id[first].coarse, by_id[second].coarse
            if a is not None and b is not None and a.size == b.size and (correlation := a @ b) > MAX_CORRELATION:
                by_id[second].faults.append(
                    f"{by_id[second].files.image}: nearly the image of {first} (correlation {correlation:.4f} on a "
                    f"coarse grid, allowed {MAX_CORRELATION:g}), under a similar id; {remedy}"
                )
    return warnings


def _check_origin(results: Sequence[CheckResult], data: PreparedData) -> list[str]:
    """Warnings of volumes whose headers say that a generator made them; a fault of others among synthetic heads."""
    made = {result.subject for result in results if result.header and result.header.is_synthetic}
    if origin_of(data.root) == "synthetic":
        for result in results:
            if result.header and result.subject not in made:
                result.faults.append(f"{result.files.image}: not a generator's, among its heads; take it out")
        return []
    names = f"{', '.join(sorted(made)[:3])}{' ...' * (len(made) > 3)}"
    return [
        f"{counted(len(made), 'volume')} of {len(results)} were made by a generator, as their headers say ({names}): "
        "they would count as real, and nothing says whose volumes the generator learned from; take them out, or name "
        "the folder that `vesselgan generate volumes=N` wrote"
    ] * bool(made)


def _text_warnings(header: Header) -> list[str]:
    if not header.text_fields:
        return []
    return [
        f"{header.path}: text in {', '.join(header.text_fields)} (never copied to shards or reports); "
        "look for names and dates in it before you pass the file on"
    ]


def check(data: PreparedData, world: MpiWorld, *, with_page: bool = False) -> None:
    """Check the cohort and print the report; DataError when it cannot be used as it is.

    `with_page`: write <cohort_dir>/qc.html, also for a cohort that cannot be used.
    """
    check_label_settings(data.prepare)
    resolve_layout.resolve(data, world)
    if with_page:
        check_output_folder(data.cohort_dir, "data.cohort_dir", data.root)
    cohort_files = mpi.run_on_rank0(world, lambda: files_of(data))
    report = check_cohort(data, cohort_files, world, with_previews=with_page)

    def write_report() -> None:
        log.info(f"cohort {data.name}, {data.root}\n{table(report)}")
        assigned: dict[str, str] = {}
        try:
            assigned = assign_splits(report, data)
            log.info(summary(report, assigned))
        finally:
            if with_page:
                log.info(f"wrote {qc_page.write_page(data, report, assigned)}")

    mpi.run_on_rank0(world, write_report)


def main() -> None:
    """Entry of `vesselgan check`."""
    mpi.run(
        lambda: parse("check", __doc__).config, lambda config, world: check(config.data, world, with_page=config.qc)
    )


if __name__ == "__main__":
    main()
