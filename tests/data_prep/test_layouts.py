"""Finding subjects: exact keys, every missing and every surplus file, whatever the order of the directory."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import layouts
from vesselgan.config.schema import Layout
from vesselgan.core.errors import DataError, ResourceError, UsageError

from .conftest import touch

PAIRS = Layout("images/{subject}.nii.gz", "labels/{subject}.nii.gz", None)


def test_pairs_do_not_depend_on_directory_order(tmp_path, monkeypatch):
    ids = [f"sub-{number}" for number in range(1, 13)]
    touch(tmp_path, *(f"{kind}/{name}.nii.gz" for kind in ("images", "labels") for name in ids))
    scandir = os.scandir

    def shuffled(path: Path) -> Iterator[os.DirEntry]:
        entries = list(scandir(path))
        random.shuffle(entries)
        return iter(entries)

    monkeypatch.setattr(os, "scandir", shuffled)
    found = layouts.find_subjects(tmp_path, PAIRS)
    assert [files.subject for files in found.subjects] == sorted(ids)
    for files in found.subjects:
        assert files.image == tmp_path / f"images/{files.subject}.nii.gz"
        assert files.label == tmp_path / f"labels/{files.subject}.nii.gz"
        assert files.mask is None and files.missing == ()


def test_missing_and_surplus_labels_are_named(tmp_path):
    touch(tmp_path, *(f"images/sub-{number}.nii.gz" for number in (1, 2, 3, 4, 10)))
    touch(tmp_path, *(f"labels/sub-{number}.nii.gz" for number in (2, 3, 4, 10, 11)))
    found = layouts.find_subjects(tmp_path, PAIRS)
    faults = {files.subject: files.missing for files in found.subjects}
    (fault,) = faults.pop("sub-1")
    assert f"{tmp_path}/labels/sub-1.nii.gz" in fault and "data.layout.label" in fault
    assert set(faults.values()) == {()}  # sub-1 did not take sub-10's or sub-11's label, nor did they lose theirs
    assert found.warnings == ("label without an image: sub-11",)


def test_volumes_left_out_are_named(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "images/notes.txt", ".trash/b.nii.gz")
    assert layouts.find_subjects(tmp_path, PAIRS).warnings == ()
    touch(tmp_path, "images/b.nii", "masks/a.nii.gz", "images/d.NII.GZ")
    (record,) = layouts.find_subjects(tmp_path, PAIRS).warnings
    assert all(name in record for name in ("images/b.nii", "masks/a.nii.gz", "images/d.NII.GZ"))
    (hidden,) = layouts.find_subjects(tmp_path, PAIRS, rename=str.upper).warnings  # names may be patients'
    assert "(3)" in hidden and "nii" not in hidden


def test_broken_links_are_subjects(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz", "labels/c.nii.gz")
    (tmp_path / "images/b.nii.gz").symlink_to("c.nii.gz")
    (tmp_path / "images/c.nii.gz").symlink_to("b.nii.gz")
    (tmp_path / "images/d.nii.gz").symlink_to("nowhere")
    (tmp_path / "images/again").symlink_to(tmp_path)  # a folder inside itself is not walked for ever
    found = layouts.find_subjects(tmp_path, PAIRS)
    assert [files.subject for files in found.subjects] == ["a", "b", "c", "d"] and found.warnings == ()


def test_a_link_out_of_the_root_is_refused_unless_asked_for(tmp_path):
    touch(tmp_path, "outside/a.nii.gz", "cohort/.store/b.nii.gz", "cohort/labels/a.nii.gz", "cohort/labels/b.nii.gz")
    root = tmp_path / "cohort"
    (root / "images").mkdir()
    (root / "images/b.nii.gz").symlink_to("../.store/b.nii.gz")
    (tmp_path / "link").symlink_to(root)
    assert [files.subject for files in layouts.find_subjects(tmp_path / "link", PAIRS).subjects] == ["b"]
    (root / "images/a.nii.gz").symlink_to(tmp_path / "outside/a.nii.gz")
    with pytest.raises(DataError, match="follow_links"):
        layouts.find_subjects(root, PAIRS)
    assert len(layouts.find_subjects(root, PAIRS, follow_links=True).subjects) == 2
    (root / "images/a.nii.gz").unlink(), (root / "images/b.nii.gz").unlink(), (root / "images").rmdir()
    (root / "images").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="follow_links"):
        layouts.find_subjects(root, PAIRS)


def test_a_name_beyond_utf8_is_refused(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    (tmp_path / os.fsdecode(b"M\xfcller.nii.gz")).touch()
    (record,) = layouts.find_subjects(tmp_path, PAIRS).warnings
    assert record.endswith(r"(1): M\udcfcller.nii.gz") and record.encode()
    (tmp_path / "images" / os.fsdecode(b"M\xfcller.nii.gz")).touch()
    with pytest.raises(DataError, match=r"the name 'images/M\\udcfcller\.nii\.gz' holds bytes.*rename"):
        layouts.find_subjects(tmp_path, PAIRS)


def test_pseudonyms_hide_names_of_visits_and_files(tmp_path):
    layout = Layout("{subject}/{session}.nii.gz", "{subject}/{session}-label.nii.gz", None)
    touch(tmp_path, "doe/20190312.nii.gz", "doe/20200415.nii.gz")
    found = layouts.find_subjects(tmp_path / "." / "", layout, rename=lambda subject: "anon-1")
    (warning,) = found.warnings
    assert warning.startswith("anon-1: ") and "2019" not in warning
    (files,) = found.subjects
    record = layouts.without_paths(files.missing[0], files)
    assert "label is missing" in record and "doe" not in record and "2019" not in record


def test_pseudonyms_hide_names_in_what_the_system_refuses(tmp_path, monkeypatch):
    touch(tmp_path, "images/doe.nii.gz", "labels/doe.nii.gz")
    (files,) = layouts.find_subjects(tmp_path, PAIRS).subjects
    for is_hidden in (True, False):
        with pytest.raises(ResourceError) as refused, layouts.hidden_files(files, is_hidden=is_hidden):
            raise ResourceError(f"{files.image}: Permission denied")
        assert ("doe" in str(refused.value)) is not is_hidden
    with pytest.raises(ResourceError, match="^label: Permission denied"), layouts.hidden_files(files, is_hidden=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(files.label))

    def refused_too(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    # In a folder that may not be entered nothing can be asked about the file.
    monkeypatch.setattr(os, "readlink", refused_too)
    monkeypatch.setattr(Path, "is_symlink", refused_too)
    with pytest.raises(ResourceError, match="^image: Permission denied"), layouts.hidden_files(files, is_hidden=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(files.image))


def test_an_unknown_session_is_a_usage_error(tmp_path):
    touch(tmp_path, "images/a.nii.gz")
    with pytest.raises(UsageError, match=r"data\.layout\.label="):
        layouts.find_subjects(tmp_path, Layout("images/{subject}.nii.gz", "labels/{session}/{subject}.nii", None))


def test_folders_per_subject_and_wild_parts_are_found(tmp_path):
    layout = Layout(
        "sub-{subject}/ses-*/anat/sub-{subject}_ses-*_angio.nii.gz", "derivatives/sub-{subject}/*_mask.nii.gz", None
    )
    touch(tmp_path, "sub-01/ses-a/anat/sub-01_ses-a_angio.nii.gz", "sub-01/ses-a/anat/sub-02_ses-a_angio.nii.gz")
    touch(tmp_path, "derivatives/sub-01/vessels_mask.nii.gz", "sub-01/ses-a/anat/sub-01_ses-a_angio.json")
    (found,) = layouts.find_subjects(tmp_path, layout).subjects
    assert (found.subject, found.label.name) == ("01", "vessels_mask.nii.gz")
    assert found.image.name == "sub-01_ses-a_angio.nii.gz"


def test_hidden_files_and_longer_names_do_not_count(tmp_path):
    touch(tmp_path, "images/b.nii.gz.partial", "images/c.nii.gz.bak", "old/images/d.nii.gz", "images/e/e.nii.gz")
    touch(tmp_path, "images/a.nii.gz", "images/._a.nii.gz", "labels/a.nii.gz", ".trash/images/b.nii.gz")
    assert [files.subject for files in layouts.find_subjects(tmp_path, PAIRS).subjects] == ["a"]


def test_two_files_for_one_subject_are_refused(tmp_path):
    touch(tmp_path, "a/t1_tof.nii.gz", "a/t2_tof.nii.gz")
    with pytest.raises(DataError, match=r"subject a: a/t1_tof\.nii\.gz and a/t2_tof\.nii\.gz"):
        layouts.find_subjects(tmp_path, Layout("{subject}/*_tof.nii.gz", None, None))


def test_regular_expression_signs_are_ordinary(tmp_path):
    touch(tmp_path, "images/a+(1).nii.gz", "labels/a+(1).nii.gz", "images/axniixgz")
    assert [files.subject for files in layouts.find_subjects(tmp_path, PAIRS).subjects] == ["a+(1)"]


@pytest.mark.parametrize("pattern", ["image.nii.gz", "/data/{subject}.nii.gz", "../{subject}.nii.gz"])
def test_a_pattern_must_name_subjects_below_the_root(tmp_path, pattern):
    with pytest.raises(UsageError, match="data.layout.image="):
        layouts.find_subjects(tmp_path, Layout(pattern, None, None))


def test_absent_empty_and_unfitting_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="none"):
        layouts.find_subjects(tmp_path / "none", PAIRS)
    with pytest.raises(DataError, match="no files"):
        layouts.find_subjects(tmp_path, PAIRS)
    touch(tmp_path, "images/a.mha")
    with pytest.raises(DataError, match=r"images/a\.mha"):
        layouts.find_subjects(tmp_path, PAIRS)
