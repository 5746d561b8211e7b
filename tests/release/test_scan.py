"""A planted example of each kind stops a release; what merely looks like one does not."""

import gzip
import json
import socket
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vesselgan.core.errors import PrivacyError
from vesselgan.formats.cohort import Cohort, Subject
from vesselgan.formats.volumes import write_volume
from vesselgan.release.identities import find_identities
from vesselgan.release.run import own_words
from vesselgan.release.scan import Scan

ORIGIN_MM = (-88.125, -120.75, 34.5)
"""Of every training volume."""
AFFINE = np.diag([0.5, 0.5, 0.8, 1.0])
DATE = "2026-11-27"


def write_cohort(folder: Path, files: dict[str, str]) -> Path:
    """A pseudonymous cohort: subject -> name of its volume's file."""
    fixed = {"label": None, "mask": None, "shape": (8, 8, 8), "spacing_mm": (1.0, 1.0, 1.0), "limits": (0.0, 1.0)}
    fixed |= {"num_clipped": 0, "label_sha256": None}
    subjects = {
        name: Subject("train", Path(f"/pacs/export/{stem}.nii.gz"), image_sha256=name, **fixed)
        for name, stem in files.items()
    }
    Cohort("mine", (0.0, 99.99), subjects, is_pseudonymous=True).write(folder)
    return folder


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_set: Callable[..., Path]) -> Path:
    """A pseudonymous cohort of two, whose volumes were Mueller_Hans and Kowalska_Ewa."""
    monkeypatch.setattr(socket, "gethostname", lambda: "mri-gpu07.ward.example")
    monkeypatch.setenv("LOGNAME", "hmeier")
    folder = tmp_path / "mine"
    write_set(folder / "shards" / "gan" / "train", {"anon-12ab": "anon-12ab", "sub-1": "PAT-77x"})
    return write_cohort(folder, {"anon-12ab": "Mueller_Hans", "sub-1": "Kowalska_Ewa"})


@pytest.fixture
def scan(cohort: Path) -> Scan:
    return Scan(find_identities(cohort, [cohort], own_words()), AFFINE, "synthetic", DATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release that holds nothing of anybody."""
    out = tmp_path / "out"
    write_volume(out / "a.nii.gz", np.zeros((4, 4, 4), np.float32), AFFINE, "synthetic")
    save_file({"w": torch.zeros(4)}, out / "generator.safetensors")
    (out / "README.md").write_text(f"Released {DATE}; see https://example.org/a/b and sub-synth00001/anat, n=1967.\n")
    return out


def kinds(scan: Scan, folder: Path) -> set[str]:
    return {hit.kind for path in folder.rglob("*") if path.is_file() for hit in scan.hits_of(path, path.name)}


def test_a_clean_folder_passes(scan, folder):
    assert scan.check(folder) == 3


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("made from anon-12ab", "the id of a subject"),
        ("ANON-12AB_0000", "the id of a subject"),
        ("as PAT-77x says", "the id of a patient"),
        ("visit of Mueller, Hans", "the original of a pseudonym"),
        ("Kowalska_Ewa", "the original of a pseudonym"),
        ("read from /srv/pacs/export", "an absolute path"),
        ('{"path": "/home/someone"}', "an absolute path"),
        (r"C:\Users\x", "an absolute path"),
        ("by hmeier", "a user's name"),
        ("on mri-gpu07", "a host's name"),
        ("scanned 1967-03-12", "a date"),
        ("scanned 12.03.1967", "a date"),
        ("study 19670312", "a date"),
        ("at 2019-04-12T10:15:00", "a date"),
        ("at 20190412T101500", "a date"),
        ("born 2.3.1967", "a date"),
        ("born 12 March 1967", "a date"),
        ("am 12. März 1967", "a date"),
        ("am 3. MAI 1967", "a date"),
        ("le 12 août 1967", "a date"),
        ("12 de marzo de 1967", "a date"),
        ("12-Mar-1967", "a date"),
        ("from store:/export/scans", "an absolute path"),
        ("file:///export/scans", "an absolute path"),
        (f"origin {ORIGIN_MM}", "the origin of a real volume's affine"),
        ('{"a": "M\\u0075eller"}', "the original of a pseudonym"),
    ],
)
def test_a_planted_text_is_found(scan, folder, text, kind):
    (folder / ("planted.json" if text.startswith("{") else "planted.txt")).write_text(text)
    assert kind in kinds(scan, folder)
    with pytest.raises(PrivacyError, match=f"planted.*{kind}"):
        scan.check(folder)


def test_a_known_path_is_found_in_any_words(scan, cohort, folder):
    (folder / "planted.txt").write_text(f"x={cohort}")
    assert "a path" in kinds(scan, folder)


def test_a_file_name_is_searched(scan, folder):
    (folder / "Mueller.txt").write_text("")
    assert kinds(scan, folder) == {"the original of a pseudonym"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, "TE=7.15") for field in ("descrip", "aux_file", "intent_name", "db_name")),
        *(("intent_p1", 19670312), ("cal_max", 1967), ("toffset", 12.5), ("glmax", 19670312), ("qoffset_x", -88.125)),
    ],
)
def test_other_nifti_fields_are_found(scan, folder, field, value):
    image = nib.Nifti1Image.from_bytes(gzip.decompress((folder / "a.nii.gz").read_bytes()))
    image.header[field] = value
    (folder / "a.nii.gz").write_bytes(gzip.compress(image.to_bytes(), mtime=0))
    assert kinds(scan, folder) == {f"the NIfTI header's {field}"}


def test_nifti_extensions_and_trailing_bytes_are_found(scan, folder):
    content = gzip.decompress((folder / "a.nii.gz").read_bytes())
    (folder / "a.nii.gz").write_bytes(gzip.compress(content + b"Mueller", mtime=0))
    assert kinds(scan, folder) == {
        "a NIfTI extension or bytes behind the voxels", "the original of a pseudonym",
    }  # fmt: skip
    image = nib.Nifti1Image.from_bytes(content)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note"))
    (folder / "a.nii.gz").write_bytes(gzip.compress(image.to_bytes(), mtime=0))
    assert "a NIfTI extension or bytes behind the voxels" in kinds(scan, folder)


def test_a_gzip_header_and_another_affine_are_found(scan, folder):
    moved = AFFINE.copy()
    moved[:3, 3] = ORIGIN_MM
    write_volume(folder / "b.nii.gz", np.zeros((4, 4, 4), np.float32), moved, "synthetic")
    assert {f"the NIfTI header's {field}" for field in ("srow_x", "qoffset_x")} <= kinds(scan, folder)
    content = gzip.decompress((folder / "a.nii.gz").read_bytes())
    with open(folder / "b.nii.gz", "wb") as file, gzip.GzipFile("Hans.nii", "wb", fileobj=file, mtime=1) as packed:
        packed.write(content)
    assert kinds(scan, folder) == {"a name or a time in the gzip header"}
    (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes() + (folder / "b.nii.gz").read_bytes())
    assert kinds(scan, folder) == {"bytes behind the gzip stream"}


def test_safetensors_headers_and_payload_are_searched(scan, folder):
    save_file({"w": torch.zeros(4)}, folder / "generator.safetensors", metadata={"by": "hmeier"})
    assert kinds(scan, folder) == {"a user's name"}
    hidden = torch.frombuffer(bytearray(b"\0Mueller\0\0\0\0"), dtype=torch.uint8)
    save_file({"w": hidden}, folder / "generator.safetensors")
    assert kinds(scan, folder) == {"the original of a pseudonym"}


def test_unknown_binary_files_and_links_are_found(scan, folder):
    (folder / "x.bin").write_bytes(b"\xff\xfe\x00")
    assert kinds(scan, folder) == {"neither text nor a format of this release"}
    (folder / "x.bin").unlink()
    (folder / "link").symlink_to(folder / "README.md")
    with pytest.raises(PrivacyError, match="a link"):
        scan.check(folder)


def test_short_and_ordinary_words_are_not_searched(scan, folder, write_set):
    ids = ["1", "22", "1234", "patch", "synthetic"]
    write_set(folder.parent / "other" / "shards" / "gan" / "train", {name: name for name in ids})
    found = find_identities(folder.parent / "other", [], own_words())
    assert set(ids) <= set(found.skipped) and not set(ids) & set(found.terms)
    assert "sub-1" in scan.identities.terms and "1" not in scan.identities.terms
    (folder / "b.txt").write_text("sub-10 and sub-synth00001, chmeiers, 1.20261127 and 0a20210405b")
    assert kinds(scan, folder) == set()


@pytest.mark.parametrize("stem", ["Mueller_Hans_ses-{}", "Mueller-Hans.{}", "Hans.Mueller {}"])
def test_a_name_behind_two_visits_is_searched(tmp_path, write_set, stem):
    folder = tmp_path / "mine"
    visits = {f"anon-{i}": stem.format(i) for i in (1, 2)}
    write_set(folder / "shards" / "gan" / "train", dict.fromkeys(visits, "anon-a") | {"anon-3": "anon-b"})
    terms = find_identities(write_cohort(folder, visits | {"anon-3": "Kowalska_Ewa_ses-1"}), [], own_words()).terms
    assert {"Mueller", "Hans", "Kowalska"} <= set(terms) and not {"pacs", "export", "ses"} & set(terms)


def test_bare_numbers_are_searched_from_five_digits(tmp_path, write_set):
    write_set(tmp_path / "shards" / "gan" / "train", {"sub-48213": "sub-48213", "sub-4821": "sub-4821"})
    terms = find_identities(tmp_path, [], own_words()).terms
    assert "48213" in terms and "4821" not in terms


def test_a_hit_stops_the_command(work, capsys):
    run = work.run("sn")
    words = ["name=a", f"run={run}", f"audit={work.audit(run, {'verdict': 'fail'})}"]
    with pytest.raises(PrivacyError, match="README.md: the id of a patient, 'KOW1971'"):
        work.release(*words, 'reason="KOW1971 agreed"')
    assert list((work.path / "release").iterdir()) == []
    assert json.dumps(str(work.path)) not in capsys.readouterr().out
