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
def test_the_papers_72_subjects_are_divided_47_12_13(train: int | None) -> None:
    assigned = splits.assign(IDS, a_split(train, 12, 13))
    assert Counter(assigned.values()) == {"train": 47, "validation": 12, "test": 13}
    assert list(assigned) == IDS


def test_a_draw_depends_on_the_seed_and_not_on_the_order_of_ids() -> None:
    first = splits.assign(IDS, a_split(None, 12, 13))
    assert splits.assign(IDS[::-1], a_split(None, 12, 13)) == first
    assert splits.assign(IDS, a_split(None, 12, 13, seed=991)) != first


def test_a_cohort_that_only_tests_needs_no_training_subject() -> None:
    assert set(splits.assign(IDS, a_split(0, 0, 72)).values()) == {"test"}
    assert set(splits.assign(IDS, a_split(0, 0, None)).values()) == {"test"}
    assert Counter(splits.assign(IDS, a_split(47, 12, None)).values()) == {"train": 47, "validation": 12, "test": 13}
    with pytest.raises(DataError, match="and any for train: at least 73 are needed.*split.train=0"):
        splits.assign(IDS, a_split(None, 0, 72))
    with pytest.raises(DataError, match="and any for test: at least 73 are needed"):
        splits.assign(IDS, a_split(60, 12, None))
    with pytest.raises(UsageError, match="both null"):
        splits.assign(IDS, a_split(None, 0, None))


@pytest.mark.parametrize(("count", "needed"), [(1, 26), (24, 26)])
def test_too_few_subjects_are_told_how_many_are_needed(count: int, needed: int) -> None:
    with pytest.raises(DataError, match=f"^{count} subjects? cannot give .* at least {needed} are needed"):
        splits.assign(IDS[:count], a_split(None, 12, 13))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 24])
def test_the_numbers_that_the_refusal_names_work(count: int) -> None:
    with pytest.raises(DataError) as caught:
        splits.assign(IDS[:count], a_split(None, 12, 13))
    validation, test = map(
        int, re.search(r"split\.validation=(\d+) data\.prepare\.split\.test=(\d+)", str(caught.value)).groups()
    )
    parts = Counter(splits.assign(IDS[:count], a_split(None, validation, test)).values())
    assert parts["train"] > 0 and (count < 3 or min(parts["validation"], parts["test"]) > 0)
    assert "split.train=0 data.prepare.split.validation=0 data.prepare.split.test=null" in str(caught.value)
    assert Counter(splits.assign(IDS[:count], a_split(0, 0, None)).values()) == {"test": count}


def test_subjects_left_over_by_a_fixed_number_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="leave 2 of 72 subjects without a split"):
        splits.assign(IDS, a_split(45, 12, 13))


def write_csv(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return str(path)


def test_a_csv_decides_and_may_name_subjects_that_were_set_aside(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "s.csv", "subject,split,remark", "b,test,", "a, train ,x", "c,validation,")
    assert splits.assign(["a", "b"], a_split(None, 9, 9, csv=path), known=["a", "b", "c"]) == {
        "a": "train",
        "b": "test",
    }


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,train", "a,test", "b,test"], "a stands in test and train"),
        (["a,train"], "in the cohort and not in the file: b"),
        (["a,train", "b,test", "d,test"], "not in the cohort: d"),
        (["a,val", "b,test"], "a has the split 'val', which is none of train, validation, test"),
        (["a", "b,test"], "a has the split ''"),
    ],
)
def test_a_csv_that_does_not_fit_the_cohort_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write_csv(tmp_path / "s.csv", "subject,split", *lines)
    with pytest.raises(DataError, match=message):
        splits.assign(["a", "b"], a_split(None, 0, 0, csv=path))


def test_a_csv_without_the_columns_or_absent_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "s.csv", "id;split", "a;train")
    with pytest.raises(DataError, match="needs a first line `subject,split`"):
        splits.assign(["a"], a_split(None, 0, 0, csv=path))
    with pytest.raises(DataError, match="cannot be read"):
        splits.assign(["a"], a_split(None, 0, 0, csv=str(tmp_path / "none.csv")))


def test_a_csv_that_says_a_column_twice_or_cannot_be_parsed_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "s.csv", "subject,split,split", "a,train,test")
    with pytest.raises(DataError, match="needs a first line `subject,split`, each once"):
        splits.assign(["a"], a_split(None, 0, 0, csv=path))
    path = write_csv(tmp_path / "s.csv", "subject,split,remark", "a,train," + "x" * 140_000)
    with pytest.raises(DataError, match="s.csv: cannot be read .field larger than field limit"):
        splits.assign(["a"], a_split(None, 0, 0, csv=path))


def test_an_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(DataError, match="subjects named twice: a"):
        splits.assign(["a", "b", "a"], a_split(None, 1, 1))


def test_one_image_under_several_names_is_found() -> None:
    assert splits.duplicates({"c": "1", "a": "1", "b": "2", "d": "1"}) == {"c": "a", "d": "a"}
