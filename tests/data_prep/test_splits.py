"""Dividing a cohort: by subject, the same on every machine, nobody twice."""

import re
from collections import Counter
from pathlib import Path

import pytest

from data_prep import splits
from vesselgan.config.schema import Split
from vesselgan.core.errors import DataError, UsageError

IDS = [f"sub-{number:02d}" for number in range(72)]


def a_split(train: int | None, validation: int, test: int | None, *, seed: int = 990, csv: str | None = None) -> Split:
    return Split(train=train, validation=validation, test=test, seed=seed, csv=csv)


@pytest.mark.parametrize("train", [None, 47])
def test_the_papers_72_subjects_give_47_12_13(train):
    assigned = splits.assign(IDS, a_split(train, 12, 13))
    assert Counter(assigned.values()) == {"train": 47, "validation": 12, "test": 13}
    assert list(assigned) == IDS


def test_a_draw_depends_on_the_seed_alone():
    first = splits.assign(IDS, a_split(None, 12, 13))
    assert splits.assign(IDS[::-1], a_split(None, 12, 13)) == first
    assert splits.assign(IDS, a_split(None, 12, 13, seed=991)) != first


def test_a_cohort_may_only_test():
    assert set(splits.assign(IDS, a_split(0, 0, 72)).values()) == {"test"}
    assert set(splits.assign(IDS, a_split(0, 0, None)).values()) == {"test"}
    assert Counter(splits.assign(IDS, a_split(47, 12, None)).values()) == {"train": 47, "validation": 12, "test": 13}
    with pytest.raises(DataError, match="train: at least 73"):
        splits.assign(IDS, a_split(None, 0, 72))
    with pytest.raises(DataError, match="test: at least 73"):
        splits.assign(IDS, a_split(60, 12, None))
    with pytest.raises(UsageError, match="both null"):
        splits.assign(IDS, a_split(None, 0, None))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 24])
def test_the_numbers_that_the_refusal_names_work(count):
    with pytest.raises(DataError) as caught:
        splits.assign(IDS[:count], a_split(None, 12, 13))
    validation, test = map(
        int, re.search(r"split\.validation=(\d+) data\.prepare\.split\.test=(\d+)", str(caught.value)).groups()
    )
    parts = Counter(splits.assign(IDS[:count], a_split(None, validation, test)).values())
    assert parts["train"] > 0 and (count < 3 or min(parts["validation"], parts["test"]) > 0)
    assert "split.train=0 data.prepare.split.validation=0 data.prepare.split.test=null" in str(caught.value)
    assert Counter(splits.assign(IDS[:count], a_split(0, 0, None)).values()) == {"test": count}


def test_subjects_left_over_are_a_usage_error():
    with pytest.raises(UsageError, match="2 of 72"):
        splits.assign(IDS, a_split(45, 12, 13))


def write_csv(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return str(path)


def test_a_csv_may_name_quarantined_subjects(tmp_path):
    path = write_csv(tmp_path / "s.csv", "subject,split,patient", "b,test,", "a, train ,x", "c,validation,")
    found = splits.assign(["a", "b"], a_split(None, 9, 9, csv=path), known=["a", "b", "c"])
    assert found == {"a": "train", "b": "test"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,train", "a,test", "b,test"], "a stands in test and train"),
        (["a,train"], "in the cohort and not in the file: b"),
        (["a,train", "b,test", "d,test"], "not in the cohort: d"),
        (["a,val", "b,test"], "a has the split 'val'"),
        (["a", "b,test"], "a has the split ''"),
        (["a,train," + "x" * 140_000], "s.csv"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused(tmp_path, lines, message):
    path = write_csv(tmp_path / "s.csv", "subject,split", *lines)
    with pytest.raises(DataError, match=message):
        splits.assign(["a", "b"], a_split(None, 0, 0, csv=path))


@pytest.mark.parametrize(
    "head",
    [
        "id;split",
        "subject,split,split",
        "subject,split,Patient",
        "subject,split,patient,patient",
        "subject,split",
        None,
    ],
)
def test_a_csv_without_its_columns_is_refused(tmp_path, head):
    path = tmp_path / "s.csv"
    if head is not None:
        write_csv(path, head, "a,train,test")
    with pytest.raises(DataError, match="s.csv"):
        splits.assign(["a"], a_split(None, 0, 0, csv=str(path)))


def test_an_id_that_stands_twice_is_refused():
    with pytest.raises(DataError, match="a"):
        splits.assign(["a", "b", "a"], a_split(None, 1, 1))


def test_one_image_under_several_names_is_found():
    assert splits.duplicates({"c": "1", "a": "1", "b": "2", "d": "1"}) == {"c": "a", "d": "a"}
