"""The check names every fault of every subject in one run, and what it costs to go on."""

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep import check
from vesselgan.config.schema import PreparedData, Split
from vesselgan.core.errors import DataError, UsageError

from .conftest import ALONE, MPIEXEC, SMALL, MakeCohort, change, python_on_ranks, run


def test_a_sound_cohorts_table_holds_its_numbers(cohort, capsys):
    check.check(cohort(4), ALONE)
    lines = capsys.readouterr().out.splitlines()
    # of 24 x 20 x 18 = 8640 voxels 2 x 12 x 3 = 72 are vessel: 0.833 %, 15 x 14 x 14 = 2940 mask: 34.0 %
    assert lines[2].split() == ["sub-01", "24x20x18", "0.5x0.5x0.7", "RAS", "0,1", "0.833", "34.0", "0.00", "ok"]
    assert lines[-1] == "split: 2 train, 1 validation, 1 test"


def break_all(root: Path) -> dict[str, str]:
    """One fault of each kind; subject -> what must be said of it."""

    def path(number: int, kind: str) -> Path:
        return root / f"sub-{number:02d}" / f"{kind}.nii.gz"

    def fill(value: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda array: np.full_like(array, value)

    cut = path(1, "image").read_bytes()
    path(1, "image").write_bytes(cut[: int(0.6 * len(cut))])
    change(path(2, "image"), lambda a: a[:, :, 0])
    change(path(3, "image"), lambda a: np.where(a > 140, np.nan, a).astype(np.float32))
    change(path(4, "image"), fill(5))
    change(path(5, "vessel"), fill(0))
    change(path(6, "vessel"), lambda a: (a * 0.3).astype(np.float32))
    change(path(7, "vessel"), lambda a: a * np.arange(1, 19, dtype=np.uint8))
    change(path(8, "vessel"), lambda a: a[:, :, :-1])
    moved = nib.load(path(9, "vessel")).affine.copy()
    moved[0, 3] += 0.1
    change(path(9, "vessel"), lambda a: a, moved)
    change(path(10, "vessel"), lambda a: a, np.diag([-0.5, 0.5, 0.7, 1]))
    path(11, "vessel").unlink()
    path(12, "image").write_bytes(path(14, "image").read_bytes())
    change(path(13, "image"), lambda a: np.where(np.arange(a.size).reshape(a.shape) == 4000, 3000, a.clip(0, 200)))
    change(path(13, "vessel"), lambda a: (nib.load(path(13, "image")).get_fdata() == 3000).astype(np.uint8))
    change(path(15, "brain_mask"), fill(0))
    change(path(16, "image"), lambda a: a[:, :, :7])
    change(path(18, "brain_mask"), lambda a: a * 2 + (a == 0))
    change(path(17, "vessel"), lambda a: a[:9])
    change(path(17, "image"), lambda a: a[:9])
    return {
        "sub-01": "cut short",
        "sub-02": "24 x 20",
        "sub-03": "NaN",
        "sub-04": "every voxel is 5",
        "sub-05": "label is empty",
        "sub-06": "label_binarize_threshold",
        "sub-07": "label_values",
        "sub-08": "24 x 20 x 17",
        "sub-09": "0.1 mm",
        "sub-10": "RAS vs LAS",
        "sub-11": "label is missing",
        "sub-14": "sub-12",
        "sub-13": "100.0%",
        "sub-15": "mask is empty",
        "sub-16": "16 x 16 x 8",
        "sub-17": "16 x 16 x 8",
        "sub-18": "brain mask",
    }


def test_every_fault_of_every_subject_is_named(cohort, capsys):
    data = cohort(19)
    expected = break_all(Path(data.root))
    with pytest.raises(DataError) as caught:
        check.check(data, ALONE)
    out = capsys.readouterr().out
    said = [line for line in out.splitlines() if line.startswith("UNUSABLE")]
    for subject, fault in expected.items():
        assert any(line.startswith(f"UNUSABLE {subject}: ") and fault in line for line in said), (subject, said)
    assert {line.split()[1].rstrip(":") for line in said} == set(expected)
    assert caught.value.exit_code == 3 and ", ".join(sorted(expected)) in str(caught.value)
    # every message of one file names it
    assert all(".nii.gz" in line for line in said)


def test_a_patient_in_two_splits_is_refused(cohort):
    data = cohort(4)
    for number, visit in ((1, "sub-01_ses-1"), (2, "sub-01_ses-2")):
        (Path(data.root) / f"sub-{number:02d}").rename(Path(data.root) / visit)
    data.prepare.split.csv = str(Path(data.root).parent / "split.csv")
    Path(data.prepare.split.csv).write_text(
        "subject,split\nsub-01_ses-1,train\nsub-01_ses-2,test\nsub-03,train\nsub-04,validation\n"
    )
    with pytest.raises(DataError, match="sub-01 stands in test and train"):
        check.check(data, ALONE)


def test_a_label_of_two_subjects_is_a_fault(cohort, capsys):
    data = cohort(4)
    root = Path(data.root)
    (root / "sub-04" / "vessel.nii.gz").write_bytes((root / "sub-02" / "vessel.nii.gz").read_bytes())
    with pytest.raises(DataError):
        check.check(data, ALONE)
    faults = [line for line in capsys.readouterr().out.splitlines() if line.startswith("UNUSABLE")]
    assert [line.split(":")[0] for line in faults] == ["UNUSABLE sub-02", "UNUSABLE sub-04"]


def test_similar_ids_are_one_patient_perhaps(cohort, capsys):
    data = cohort(5)
    root = Path(data.root)
    (root / "sub-02").rename(root / "SUB-01_Eq_1")
    (root / "sub-03").rename(root / "sub-01a")
    (warning,) = warnings_of(data, capsys)
    assert warning.startswith("warning: SUB-01_Eq_1, sub-01, sub-01a: ") and "column patient" in warning
    for name in ("sub-01a", "sub-01"):  # one scan, stored in other units
        shutil.copy(root / "sub-04" / "image.nii.gz", root / name / "image.nii.gz")
    change(root / "sub-01a" / "image.nii.gz", lambda a: (a * 1.01).astype(np.int16))
    change(root / "sub-01" / "image.nii.gz", lambda a: (a * 0.99).astype(np.int16))
    data.prepare.max_clipped_vessel_share = 1.0
    with pytest.raises(DataError):
        check.check(data, ALONE)
    faults = [line for line in capsys.readouterr().out.splitlines() if line.startswith("UNUSABLE")]
    assert len(faults) == 1 and faults[0].startswith("UNUSABLE sub-01a: ") and "image of sub-01 " in faults[0]
    rows = [f"{name},train,one" for name in ("SUB-01_Eq_1", "sub-01", "sub-01a")]
    table = root.parent / "split.csv"
    table.write_text("\n".join(["subject,split,patient", *rows, "sub-04,test,", "sub-05,validation,"]))
    data.prepare.split.csv = str(table)
    assert warnings_of(data, capsys) == []


def test_no_usable_subject_is_an_error(cohort):
    data = cohort(1)
    (Path(data.root) / "sub-01" / "image.nii.gz").write_bytes(b"broken")
    data.prepare.quarantine = True
    with pytest.raises(DataError, match="no usable subject"):
        check.check(data, ALONE)


def one_subject(cohort: MakeCohort) -> PreparedData:
    return cohort(1, split=Split(train=None, validation=0, test=0, seed=1, csv=None))


def warnings_of(data: PreparedData, capsys: pytest.CaptureFixture) -> list[str]:
    check.check(data, ALONE)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]


def test_what_is_odd_and_usable_is_a_warning(cohort, capsys):
    data = one_subject(cohort)
    folder = Path(data.root) / "sub-01"
    image = nib.load(folder / "image.nii.gz")
    image.header["descrip"] = b"DOE^JANE"
    nib.save(image, folder / "image.nii.gz")
    change(folder / "vessel.nii.gz", lambda a: a * 255)
    change(folder / "brain_mask.nii.gz", lambda a: np.ones_like(a))
    data.prepare.num_vessel_patches_unet = 100
    said = "\n".join(warnings_of(data, capsys))
    assert "text in descrip" in said and "DOE" not in said
    assert "255 taken as vessel" in said and "every voxel is inside" in said
    assert "72 vessel voxels for 100 patches" in said


def test_mixed_spacings_and_surplus_labels_are_warnings(cohort, capsys):
    data = cohort(3)
    for name in ("image", "vessel", "brain_mask"):
        change(Path(data.root) / "sub-02" / f"{name}.nii.gz", lambda a: a, np.diag([0.4, 0.4, 0.6, 1]))
    (Path(data.root) / "sub-10").mkdir()
    (Path(data.root) / "sub-10" / "vessel.nii.gz").touch()
    said = warnings_of(data, capsys)
    assert "warning: label without an image: sub-10" in said
    assert any("0.4 x 0.4 x 0.6, 0.5 x" in line and "preprocess.spacing_mm" in line for line in said)


def test_settings_make_nan_and_soft_labels_usable(cohort):
    data = one_subject(cohort)
    folder = Path(data.root) / "sub-01"
    change(folder / "image.nii.gz", lambda a: np.where(a > 140, np.nan, a).astype(np.float32))
    change(folder / "vessel.nii.gz", lambda a: (a * 0.7).astype(np.float32))
    with pytest.raises(DataError):
        check.check(data, ALONE)
    data.prepare.nan_value, data.prepare.label_binarize_threshold, data.prepare.max_clipped_vessel_share = 0.0, 0.5, 1.0
    check.check(data, ALONE)
    data.prepare.label_values = [1]
    with pytest.raises(UsageError, match="label_values|label_binarize_threshold"):
        check.check(data, ALONE)


def test_padding_is_a_fault_until_its_percentile_is_cut(cohort, capsys):
    data = one_subject(cohort)
    change(Path(data.root) / "sub-01" / "image.nii.gz", lambda a: np.where(a == 0, -2000, a))
    with pytest.raises(DataError):
        check.check(data, ALONE)
    assert "data.prepare.lower_percentile above 12.5" in capsys.readouterr().out  # 3 of 24 slices
    data.prepare.lower_percentile = 12.6
    assert warnings_of(data, capsys) == []
    data.prepare.lower_percentile = 49.0  # above the half of the tissue, and of the vessels none
    change(Path(data.root) / "sub-01" / "image.nii.gz", lambda a: np.where(a > 160, 60, a))
    with pytest.raises(DataError):
        check.check(data, ALONE)
    assert "lie outside the limits" in capsys.readouterr().out


def test_inputs_are_not_changed(cohort):
    data = cohort(3)
    before = {path: path.read_bytes() for path in Path(data.root).rglob("*.nii.gz")}
    check.check(data, ALONE)
    assert {path: path.read_bytes() for path in Path(data.root).rglob("*") if path.is_file()} == before
    assert not Path(data.cohort_dir).exists()


def test_the_command_ends_with_exit_3(cohort):
    data = cohort(3)
    (Path(data.root) / "sub-02" / "image.nii.gz").write_bytes(b"broken")
    words = [*python_on_ranks(2 if MPIEXEC.exists() else 1), "-m", "data_prep.check", "data=phantom"]
    words += [f"data.root={data.root}", f"work_dir={data.root}/../work", *SMALL]
    done = run(words)
    assert done.returncode == 3
    assert done.stdout.count("UNUSABLE sub-02") == 1
    assert len(done.stderr.splitlines()) == 1 and "data.prepare.quarantine" in done.stderr
