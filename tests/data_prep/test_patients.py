"""Whose a subject is: known by its id, by the CSV, by neither; never in clear behind a pseudonym."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.patients import in_several_splits, patients_of
from data_prep.pseudonyms import renamer
from vesselgan.config.compose import compose
from vesselgan.config.schema import PreparedData
from vesselgan.core.errors import DataError

MakeData = Callable[..., PreparedData]


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    def make(*ids: str, csv: str | None = None, pseudonymise: bool = False) -> PreparedData:
        folder = tmp_path / "cohort" / "images"
        folder.mkdir(parents=True)
        for name in ids:
            (folder / f"{name}.nii.gz").touch()
        words = ["data=pairs", f"data.root={tmp_path / 'cohort'}", "data.name=clinic", "data.layout.label=null"]
        if csv is not None:
            (tmp_path / "split.csv").write_text(csv)
            words.append(f"data.prepare.split.csv={tmp_path / 'split.csv'}")
        if pseudonymise:
            (tmp_path / "key").write_text("0123456789abcdef0123")
            words += ["data.prepare.pseudonymise=true", f"data.prepare.key_file={tmp_path / 'key'}"]
        return compose("build_shards", words).data

    return make


def test_visits_in_an_id_are_one_patient(make_data):
    ids = {"sub-1_ses-a": "sub-1", "sub-1_ses-b_run-2": "sub-1", "sub-10": "sub-10", "PAT01_visit1": "PAT01"}
    ids |= {"PAT01_Visit_2": "PAT01", "01_ses-1": "01", "01-tp2": "01", "IXI002-Guys-0828-MRA": "IXI002-Guys-0828-MRA"}
    ids |= {"visit1": "visit1", "session_twelve": "session_twelve", "p3_fu12_x": "p3"}
    assert patients_of(make_data(*ids)) == ids


def test_the_csv_column_names_patients(make_data):
    csv = "subject,split,patient\nscan7,train,ann\nscan9,train, ann\nscan11,train,\n"
    assert patients_of(make_data("scan7", "scan9", "scan11", csv=csv)) == {
        "scan7": "ann", "scan9": "ann", "scan11": "scan11",
    }  # fmt: skip


def test_a_subject_of_two_patients_is_refused(make_data):
    data = make_data("scan7", csv="subject,split,patient\nscan7,train,ann\nscan7,train,bea\n")
    with pytest.raises(DataError, match="scan7 has two patients"):
        patients_of(data)


def test_pseudonymous_visits_share_a_pseudonymous_patient(make_data):
    data = make_data("PAT01_visit1", "PAT01_visit2", "PAT02_visit1", pseudonymise=True)
    rename, found = renamer(data), patients_of(data)
    assert found == {rename(f"{who}_visit{n}"): rename(who) for who, n in (("PAT01", 1), ("PAT01", 2), ("PAT02", 1))}
    assert all(name.startswith("anon-") for pair in found.items() for name in pair)


def test_pseudonyms_need_the_column(make_data):
    one, two = "anon-0123456789abcdef", "anon-fedcba9876543210"
    data = make_data(one, two, csv=f"subject,split,patient\n{one},train,\n{two},train,ann\n")
    assert patients_of(data) == {one: None, two: "ann"}


def test_a_patient_in_two_splits_is_found():
    patients = {"p1_visit1": "p1", "p1_visit2": "p1", "p2": "p2", "anon-1": None, "anon-2": None}
    splits = ["train", "test", "train", "train", "test"]
    (line,) = in_several_splits(patients, dict(zip(patients, splits, strict=True)))
    assert "p1 stands in test and train (p1_visit1, p1_visit2 are one patient)" in line
    assert in_several_splits(patients, dict.fromkeys(patients, "train")) == []


def test_case_and_unicode_form_make_no_patient(make_data):
    data = make_data("PAT01_visit1", "pat01_visit2", "Jos\u00e9_ses-1", "Jose\u0301_ses-2")
    found = patients_of(data)
    assert found["pat01_visit2"] == "PAT01" and found["Jos\u00e9_ses-1"] == found["Jose\u0301_ses-2"]


def test_an_unreadable_csv_loses_no_patient(make_data):
    data = make_data("scan7", csv="subject,split,Patient\nscan7,train,ann\n")
    with pytest.raises(DataError, match="Patient"):
        patients_of(data)
