"""What can be wrong with a cohort, met as a user meets it at the commands: message and exit code."""

import gzip
import os
from pathlib import Path

import nibabel as nib

from data_prep import build_shards, check, preprocess


def patients_name(folder: Path) -> None:
    path = folder / "image.nii.gz"
    image = nib.load(path)
    image.header["aux_file"] = b"DOE^JANE"
    nib.save(image, path)


def patients_comment(folder: Path) -> None:
    path = folder / "vessel.nii.gz"
    label = nib.load(path)
    label.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    nib.save(label, path)


def test_no_text_of_a_file_reaches_any_output(cohort, command, tmp_path):
    root = Path(cohort(4).root)
    for folder in sorted(root.iterdir()):
        patients_name(folder), patients_comment(folder)
    plain = ("preprocess.denoise=false", "preprocess.bias=false")
    for module, words in ((check, ()), (build_shards, ()), (preprocess, plain)):
        ended = command(*words, module=module)
        assert (ended.code, ended.err) == (0, "") and "DOE" not in ended.out
    made = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert {path.suffix for path in made} >= {".h5", ".json", ".html", ".gz"}
    for path in made:
        content = path.read_bytes()
        assert b"DOE" not in (gzip.decompress(content) if path.suffix == ".gz" else content), path


def test_ids_like_names_or_dates_are_warned_of(cohort, command, tmp_path):
    root = Path(cohort(4).root)
    (root / "sub-02").rename(root / "DOE^JANE")
    (root / "sub-03").rename(root / "pat_19570312")
    ended = command()
    assert ended.code == 0
    record = [line for line in ended.out.splitlines() if "looks like" in line]
    assert [line.split(":")[0] for line in record] == ["warning DOE^JANE", "warning pat_19570312"]
    assert all("data.prepare.pseudonymise=true" in line for line in record)
    (tmp_path / "key").write_text("a secret of the tests")
    pseudonymous = ["data.prepare.pseudonymise=true", f"data.prepare.key_file={tmp_path / 'key'}"]
    assert "looks like" not in command(*pseudonymous).out


def test_a_small_or_unreadable_cohort_is_exit_3(cohort, command, monkeypatch):
    root = Path(cohort(1).root)
    ended = command()
    assert ended.code == 3 and "at least 3 are needed" in ended.err
    advice = ended.err.partition("what works for 1 subject: ")[2].partition(", all for training")[0]
    assert command(*advice.split()).code == 0
    advice = ended.err.partition("for a cohort that only tests, ")[2]
    assert command(*advice.split()).code == 0
    monkeypatch.setattr(os, "scandir", denied)
    ended = command()
    assert (ended.code, ended.out) == (3, "") and ended.err.startswith(f"error: {root}: ")


def test_a_file_as_work_dir_is_exit_6(cohort, command, tmp_path):
    cohort(3)
    (tmp_path / "file").touch()
    for module, words in ((build_shards, ()), (preprocess, ("preprocess.bias=false",)), (check, ())):
        ended = command(f"work_dir={tmp_path / 'file'}", *words, module=module)
        assert (ended.code, ended.err.count("\n")) == (6, 1)


def denied(path: object) -> None:
    raise PermissionError(13, "Permission denied", str(path))


def test_wrong_settings_are_exit_2_and_make_nothing(command, tmp_path):
    for word, named in (
        ("data.prepare.quarantin=true", "data.prepare.quarantine"),
        ("data.name=../../escape", "data.name"),
        ("data.prepare.nan_value=nan", "nan_value"),
    ):
        ended = command(word)
        assert (ended.code, ended.out) == (2, "") and named in ended.err and ended.err.startswith("error: ")
    assert not (tmp_path / "work").exists()
