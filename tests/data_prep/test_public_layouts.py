"""The layouts of cohorts that a user may have, on fake files that bear their names."""

from collections import Counter
from pathlib import Path

import pytest

from data_prep import build_shards, check
from data_prep.layouts import CohortFiles, find_subjects
from vesselgan.config.compose import compose
from vesselgan.config.schema import PreparedData
from vesselgan.core.errors import DataError
from vesselgan.formats.cohort import Cohort

from .conftest import ALONE, SMALL, touch, write_pair

SIZES = SMALL[:3]


def data_of(name: str, root: Path, *words: str) -> PreparedData:
    words = [f"data={name}", f"data.root={root}", f"work_dir={root.parent / 'work'}", *SIZES, *words]
    return compose("build_shards", words).data


def found(name: str, root: Path) -> CohortFiles:
    return find_subjects(root, data_of(name, root).layout)


def names(root: Path, cohort: CohortFiles) -> list[tuple[str, str, str | None]]:
    relative = [[None if p is None else str(p.relative_to(root)) for p in (f.image, f.label)] for f in cohort.subjects]
    return [(f.subject, *paths) for f, paths in zip(cohort.subjects, relative, strict=True)]


PAPERS = ("P01/001_img_denoised.nii.gz", "P01/001_Vessel-Manual-Gold-int.nii")


@pytest.mark.parametrize(
    ("name", "subject", "image", "label", "surplus"),
    [
        ("pairs", "a", "images/a.nii.gz", "labels/a.nii.gz", ()),
        ("ixi", "IXI002-Guys-0828", "IXI002-Guys-0828-MRA.nii.gz", None, ("IXI002-Guys-0828-T1.nii.gz",)),
        ("topcow", "001", "imagesTr/topcow_mr_001_0000.nii.gz", "cow_seg_labelsTr/topcow_mr_001.nii.gz",
         ("imagesTr/topcow_ct_001_0000.nii.gz", "cow_seg_labelsTr/topcow_ct_001.nii.gz")),
        ("pegasus", "P01", *PAPERS, ()),
        ("thousandplus", "P01", *PAPERS, ()),
    ],
)  # fmt: skip
def test_a_public_layout_finds_its_files(tmp_path, name, subject, image, label, surplus):
    touch(tmp_path, image, *([label] if label else []), *surplus)
    assert names(tmp_path, found(name, tmp_path)) == [(subject, image, label)]


def test_ds003949_gives_one_visit_per_subject(tmp_path):
    image = "sub-{0}/ses-{1}/anat/sub-{0}_ses-{1}_angio.nii.gz"
    visits = [("000", "20101018"), ("022", "20120305"), ("022", "20110114")]
    touch(tmp_path, *(image.format(*visit) for visit in visits), "participants.tsv", "dataset_description.json")
    touch(tmp_path, "sub-000/ses-20101018/anat/sub-000_ses-20101018_T1w.nii.gz")
    lesion = "derivatives/manual_masks/sub-000/ses-20101018/anat/sub-000_ses-20101018_desc-Lesion_1_mask.nii.gz"
    touch(tmp_path, lesion)
    cohort = found("ds003949", tmp_path)
    assert names(tmp_path, cohort) == [
        ("000", image.format("000", "20101018"), None),
        ("022", image.format("022", "20110114"), None),
    ]
    t1 = "sub-000/ses-20101018/anat/sub-000_ses-20101018_T1w.nii.gz"
    first, second = cohort.warnings
    assert "20110114" in first and lesion in second and t1 in second


def test_a_label_of_another_visit_is_not_taken(tmp_path):
    touch(tmp_path, "sub-1/ses-a/sub-1_ses-a_angio.nii.gz", "sub-1/ses-b/sub-1_ses-b_angio.nii.gz")
    touch(tmp_path, "vessels/sub-1/ses-b/label.nii.gz")
    layout = data_of("ds003949", tmp_path).layout
    layout.image = "sub-{subject}/ses-{session}/sub-{subject}_ses-{session}_angio.nii.gz"
    layout.label = "vessels/sub-{subject}/ses-{session}/label.nii.gz"
    (files,) = find_subjects(tmp_path, layout).subjects
    assert files.label is None
    assert f"{tmp_path}/vessels/sub-1/ses-a/label.nii.gz" in files.missing[0]
    touch(tmp_path, "vessels/sub-1/ses-a/label.nii.gz")
    (files,) = find_subjects(tmp_path, layout).subjects
    assert files.label == tmp_path / "vessels/sub-1/ses-a/label.nii.gz" and files.missing == ()


def test_topcow_classes_become_vessel(tmp_path):
    root = tmp_path / "topcow"
    for n in range(1, 4):
        image = root / f"imagesTr/topcow_mr_{n:03d}_0000.nii.gz"
        write_pair(image, root / f"cow_seg_labelsTr/topcow_mr_{n:03d}.nii.gz", [1, 4, 12, 15], n)
    data = data_of("topcow", root, "data.prepare.split.validation=1", "data.prepare.split.test=1")
    config = compose("build_shards", ["data=topcow", "purposes=[gan]"])
    config.data = data
    build_shards.build(config, ALONE)
    (subject,) = Cohort.read(data.cohort_dir).of_split("test").values()
    assert subject.read_label().data_XYZ.sum() == 4 * 12  # what evaluation compares with


def test_an_external_cohort_is_tested_whole(tmp_path):
    root = tmp_path / "external"
    for n in range(1, 4):
        folder = root / f"P{n}"
        write_pair(folder / "001_img_denoised.nii.gz", folder / "001_Vessel-Manual-Gold-int.nii", [1], n)
    config = compose("build_shards", ["data=thousandplus"])
    config.data = data_of("thousandplus", root)
    build_shards.build(config, ALONE)
    cohort = Cohort.read(config.data.cohort_dir)
    assert Counter(s.split for s in cohort.subjects.values()) == {"test": 3} and cohort.name == "thousandplus"
    assert not list(Path(config.data.cohort_dir).rglob("*.h5"))


def test_unlabelled_cohorts_can_be_segmented(tmp_path):
    root = tmp_path / "ixi"
    for n in (2, 12):
        write_pair(root / f"IXI{n:03d}-Guys-0828-MRA.nii.gz", root / "labels/unused.nii.gz", [1], n)
    config = compose("build_shards", ["data=ixi"])
    config.data = data_of("ixi", root)
    check.check(config.data, ALONE)
    build_shards.build(config, ALONE)
    assert len(Cohort.read(config.data.cohort_dir).of_split("test")) == 2
    config.data.prepare.split.train, config.data.prepare.split.test = None, 0
    config.data.cohort_dir = str(tmp_path / "other")
    with pytest.raises(DataError, match="data.layout.label"):
        build_shards.build(config, ALONE)
