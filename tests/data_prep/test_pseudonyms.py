"""Pseudonyms: subjects' ids and paths stand in nothing that may be passed on, and every stage still finds its files."""

import errno
import hashlib
import hmac
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import build_shards, check, pseudonyms
from vesselgan.config.schema import PreparedData, Split
from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.formats.cohort import PRIVATE_PATHS, Cohort
from vesselgan.formats.shards import ShardSet

from .conftest import ALONE, MakeCohort, build

KEY = "c2VjcmV0IG9mIHRoZSB0ZXN0cw=="


@pytest.fixture
def named(cohort: MakeCohort, tmp_path: Path) -> Callable[..., PreparedData]:
    """A cohort whose folders bear patients' names, to be pseudonymised."""

    def make(num_subjects: int) -> PreparedData:
        data = cohort(num_subjects)
        for number in range(1, num_subjects + 1):
            (Path(data.root) / f"sub-{number:02d}").rename(Path(data.root) / f"DOE_JANE_{number}")
        (tmp_path / "key").write_text(KEY + "\n")
        data.prepare.pseudonymise, data.prepare.key_file = True, str(tmp_path / "key")
        return data

    return make


def pseudonym(subject: str) -> str:
    return "anon-" + hmac.new(KEY.encode(), subject.encode(), hashlib.sha256).hexdigest()[:16]


def test_ids_and_paths_stand_in_private_files_alone(named):
    data = named(4)
    build(data)
    check.check(data, ALONE)
    folder = Path(data.cohort_dir)
    private = folder / PRIVATE_PATHS
    assert private.stat().st_mode & 0o777 == 0o600
    for path in folder.rglob("*"):
        assert "DOE" not in path.name
        if path.is_file() and path != private:
            content = path.read_bytes()
            assert b"DOE" not in content and str(data.root).encode() not in content, path
            assert KEY.encode() not in content and b"/key" not in content, path
    ids = {pseudonym(f"DOE_JANE_{number}") for number in range(1, 5)}
    assert set(Cohort.read(folder).subjects) == ids == set(json.loads(private.read_text()))
    assert set(ShardSet(folder / "shards/gan/train").subjects) < ids


def test_the_private_file_leads_to_the_volumes(named):
    data = named(4)
    build(data)
    subjects = Cohort.read(data.cohort_dir).subjects
    image = Path(data.root) / "DOE_JANE_2" / "image.nii.gz"
    assert subjects[pseudonym("DOE_JANE_2")].image == image
    assert subjects[pseudonym("DOE_JANE_2")].read_label().data_XYZ.any()
    (Path(data.cohort_dir) / PRIVATE_PATHS).unlink()
    with pytest.raises(DataError, match="paths.private.json"):
        Cohort.read(data.cohort_dir)
    build(data)  # makes it again
    assert Cohort.read(data.cohort_dir).subjects[pseudonym("DOE_JANE_2")].image == image


def test_a_split_may_name_the_ids(named, tmp_path):
    data = named(4)
    lines = ["subject,split", "DOE_JANE_1,train", "DOE_JANE_2,train", "DOE_JANE_3,validation", "DOE_JANE_4,test"]
    (tmp_path / "split.csv").write_text("\n".join(lines) + "\n")
    data.prepare.split = Split(train=None, validation=0, test=0, seed=1, csv=str(tmp_path / "split.csv"))
    build(data)
    assert set(Cohort.read(data.cohort_dir).of_split("test")) == {pseudonym("DOE_JANE_4")}
    build(data)


def test_another_key_is_refused_for_existing_shards(named, tmp_path):
    data = named(4)
    build(data)
    (tmp_path / "other").write_text("another secret of the tests")
    data.prepare.key_file = str(tmp_path / "other")
    with pytest.raises(DataError, match="anon-[0-9a-f]{16} is new"):
        build(data)
    data.prepare.pseudonymise = False
    with pytest.raises(DataError, match="DOE_JANE_1 is new"):
        build(data)


def test_a_changed_file_is_told_by_pseudonym(named, monkeypatch):
    data, resolve = named(4), build_shards.resolve_cohort

    def resolve_then_change(*arguments: object) -> object:
        resolved = resolve(*arguments)
        for path in Path(data.root).rglob("vessel.nii.gz"):
            (path.parent / "brain_mask.nii.gz").replace(path)
        return resolved

    monkeypatch.setattr(build_shards, "resolve_cohort", resolve_then_change)
    with pytest.raises(DataError, match=r"^the label of anon-[0-9a-f]{16}: its voxels changed"):
        build(data)


def test_pseudonyms_depend_on_key_and_id(named):
    data = named(1)
    rename = pseudonyms.renamer(data)
    assert rename("sub-1") == pseudonym("sub-1") != rename("sub-2")
    assert rename(rename("sub-1")) == rename("sub-1")
    data.prepare.pseudonymise = False
    assert pseudonyms.renamer(data)("sub-1") == "sub-1"


@pytest.mark.parametrize(
    ("subject", "what"),
    [
        ("DOE^JANE", "a name"),
        ("pat_19570312", "a date"),
        ("12031957", "a date"),
        ("p12.03.1957", "a date"),
        ("03-25-1957", "a date"),
        ("sub-01", None),
        ("IXI002-Guys-0828", None),
        ("AVM012", None),
        ("P07", None),
        ("20101399", None),  # no month
        ("1203195712", None),  # a longer number
        ("anon-0123456789abcdef", None),
    ],
)
def test_ids_like_names_or_dates_are_found(subject, what):
    record = pseudonyms.identity_warnings(subject)
    assert [f"looks like {what}" in text for text in record] == ([] if what is None else [True])


def test_an_unsafe_or_missing_key_is_refused(named, tmp_path):
    data = named(1)
    (tmp_path / "short").write_text("abc\n")
    (Path(data.root) / "key").write_text(KEY)
    cases = [
        (None, "data.prepare.key_file"),
        (tmp_path / "none", "none"),
        (tmp_path / "short", "3 bytes"),
        (Path(data.root) / "key", "data.root"),
    ]
    for path, said in cases:
        data.prepare.key_file = None if path is None else str(path)
        with pytest.raises(UsageError, match=said) as caught:
            build(data)
        assert caught.value.exit_code == 2
    assert not Path(data.cohort_dir).exists()


def test_a_read_error_names_no_path(named, monkeypatch):
    data, opened = named(4), open

    def refuse(name: object, *arguments: object, **options: object) -> object:
        if str(name).endswith("image.nii.gz"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(name))
        return opened(name, *arguments, **options)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ResourceError) as refusal:
        check.check(data, ALONE)
    assert data.root not in str(refusal.value)
