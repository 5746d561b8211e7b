"""cohort.json comes back as it was written, moves with its data, and never lets one volume into two splits."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.cohort import COHORT, PRIVATE_PATHS, Cohort, Subject

from ..conftest import edit_json


def subject(folder: Path, name: str, split: str = "train") -> Subject:
    return Subject(
        split=split,
        image=folder / "nifti" / name / "image.nii.gz",
        label=folder / "nifti" / name / "vessel.nii.gz",
        mask=None,
        shape=(312, 384, 127),
        spacing_mm=(0.5, 0.5, 0.1 + 0.6),
        limits=(1.0, 873.25),
        num_clipped=2**33,
        image_sha256=name.encode().hex().ljust(64, "0"),
        label_sha256=None,
        patient=f"patient-of-{name}",
    )


def cohort(folder: Path) -> Cohort:
    splits = {"sub-10": "test", "sub-1": "train", "sub-é": "validation", "sub-2": "train"}
    return Cohort("phantom", (0.0, 99.99), {name: subject(folder, name, split) for name, split in splits.items()})


def test_a_cohort_comes_back_as_it_was_written(tmp_path):
    written = cohort(tmp_path)
    assert written.write(tmp_path) == tmp_path / COHORT
    assert Cohort.read(tmp_path) == written
    assert list(Cohort.read(tmp_path).subjects) == ["sub-10", "sub-1", "sub-é", "sub-2"]
    assert list(written.of_split("train")) == ["sub-1", "sub-2"]


def test_a_name_needs_neither_paths_nor_cohort(tmp_path):
    assert Cohort.name_in(tmp_path, "mine") == "mine"
    replace(cohort(tmp_path), is_pseudonymous=True).write(tmp_path)
    (tmp_path / PRIVATE_PATHS).unlink()  # as where the shards were passed on
    assert Cohort.name_in(tmp_path, "mine") == "phantom"
    edit_json(tmp_path / COHORT, lambda content: content.update(name="../up"))
    with pytest.raises(DataError, match=COHORT):
        Cohort.name_in(tmp_path, "mine")


def test_a_cohort_moves_with_the_files_below_it(tmp_path):
    here, there, outside = tmp_path / "here", tmp_path / "there", tmp_path / "herenot"
    written = cohort(here)
    written.subjects["sub-1"] = replace(written.subjects["sub-1"], mask=outside / "mask.nii.gz")
    written.write(here)
    stored = json.loads((here / COHORT).read_text())["subjects"]["sub-1"]
    assert stored["image"] == "nifti/sub-1/image.nii.gz" and stored["mask"] == str(outside / "mask.nii.gz")
    here.rename(there)
    moved = Cohort.read(there).subjects["sub-1"]
    assert moved.image == there / "nifti/sub-1/image.nii.gz" and moved.mask == outside / "mask.nii.gz"


def test_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cohort(Path("work")).write("work")
    assert json.loads((tmp_path / "work" / COHORT).read_text())["subjects"]["sub-1"]["image"].startswith("nifti")
    assert Cohort.read("work") == cohort(Path("work"))
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    assert Cohort.read("../work").subjects["sub-1"].image.resolve() == tmp_path / "work/nifti/sub-1/image.nii.gz"


def test_one_volume_in_two_splits_is_refused(tmp_path):
    leaking = cohort(tmp_path)
    leaking.subjects["sub-99"] = replace(leaking.subjects["sub-1"], split="test")
    with pytest.raises(DataError, match="sub-1 .*sub-99"):
        leaking.write(tmp_path)
    assert not (tmp_path / COHORT).exists()
    leaking.subjects["sub-99"] = leaking.subjects["sub-1"]
    leaking.write(tmp_path)  # twice in one split: wasteful, not a leak
    edit_json(tmp_path / COHORT, lambda content: content["subjects"]["sub-99"].update(split="validation"))
    with pytest.raises(DataError, match="sub-99"):
        Cohort.read(tmp_path)


def test_one_label_in_two_splits_is_refused(tmp_path):
    leaking = cohort(tmp_path)
    for name in ("sub-1", "sub-10"):
        leaking.subjects[name] = replace(leaking.subjects[name], label_sha256="ab" * 32)
    with pytest.raises(DataError, match="same label"):
        leaking.write(tmp_path)


@pytest.mark.parametrize("path", ["../../etc/shadow", "a/../../b.nii", "two\nlines.nii"])
def test_a_path_stays_below_or_is_absolute(tmp_path, path):
    cohort(tmp_path).write(tmp_path)
    edit_json(tmp_path / COHORT, lambda content: content["subjects"]["sub-1"].update(label=path))
    with pytest.raises(DataError):
        Cohort.read(tmp_path)


def test_an_empty_or_unknown_split_is_refused(tmp_path):
    one = Cohort("mine", (0.0, 99.9), {"a": subject(tmp_path, "a")})
    with pytest.raises(DataError, match="data.prepare.split"):
        one.of_split("test")
    with pytest.raises(UsageError, match="training"):
        one.of_split("training")


def test_a_missing_cohort_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match="vesselgan build-shards") as caught:
        Cohort.read(tmp_path)
    assert caught.value.exit_code == 3


def edit(change: Callable[[dict], object]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "cannot be read"),
        (lambda text: text[:-20], "cannot be read"),
        (lambda text: "[]", "not a cohort"),
        (lambda text: text.replace('"sub-2"', '"sub-1"'), "duplicate keys: sub-1"),
        (edit(lambda c: c.update(format_version=4, made_by="vesselgan 4.0")), "made by vesselgan 4.0 .*upgrade"),
        (edit(lambda c: c.update(format="x")), "not a cohort"),
        (edit(lambda c: c.pop("name")), "KeyError: 'name'"),
        (edit(lambda c: c.update(subjects=[])), "damaged"),
        (edit(lambda c: c["subjects"]["sub-1"].update(split="training")), "training"),
        (edit(lambda c: c["subjects"]["sub-1"].update(image=None)), "image None"),
        (edit(lambda c: c["subjects"]["sub-1"].update(shape=[3, 4])), "shape"),
        (edit(lambda c: c["subjects"]["sub-1"].update(patient="../up")), "up"),
        (edit(lambda c: c["subjects"]["sub-1"].update(spacing_mm=[1, 1, 0])), "spacing_mm"),
        (edit(lambda c: c["subjects"]["sub-1"].update(limits=[3, 3])), "limits"),
        (edit(lambda c: c["subjects"]["sub-1"].update(limits=[3, float("inf")])), "limits"),
    ],
)
def test_a_damaged_or_newer_cohort_is_refused(tmp_path, change, message):
    cohort(tmp_path).write(tmp_path)
    path = tmp_path / COHORT
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        Cohort.read(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("hostile", ["../../up", "/tmp/up", "two\nlines", "\x1b[2J", "."])
def test_an_id_is_a_plain_name(tmp_path, hostile):
    cohort(tmp_path).write(tmp_path)
    content = json.loads((tmp_path / COHORT).read_text())
    as_name = content | {"name": hostile}
    as_subject = content | {"subjects": {hostile: content["subjects"]["sub-1"]}}
    for damaged in (as_name, as_subject):
        (tmp_path / COHORT).write_text(json.dumps(damaged))
        with pytest.raises(DataError):
            Cohort.read(tmp_path)
