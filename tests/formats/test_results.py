"""Results come back as written; a file of another format is refused by name."""

import pytest

from vesselgan.core.errors import DataError
from vesselgan.formats.results import Results, read_result, write_result


def test_results_come_back_by_name(tmp_path):
    for name in ("b", "a"):
        write_result(tmp_path / f"{name}.json", {"job": "image", "name": name})
    assert [(path.name, result["name"]) for path, result in Results(tmp_path)] == [("a.json", "a"), ("b.json", "b")]
    assert read_result(tmp_path / "a.json") == {"format_version": 1, "job": "image", "name": "a"}
    assert list(Results(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format_version": 2}'])
def test_what_is_no_result_is_named(tmp_path, text):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(DataError, match="odd.json"):
        list(Results(tmp_path))


@pytest.mark.parametrize("result", [{"name": "a"}, {"job": ["image"], "name": "a"}, {"job": "image"}])
def test_a_result_without_job_is_not_passed_over(tmp_path, result):
    write_result(tmp_path / "a.json", result)
    with pytest.raises(DataError, match="a.json"):
        list(Results(tmp_path))


def test_no_result_is_read_through_a_link(tmp_path):
    write_result(tmp_path / "elsewhere" / "a.json", {"job": "image", "name": "a"})
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").symlink_to(tmp_path / "elsewhere" / "a.json")
    with pytest.raises(DataError, match="a link leads out of"):
        list(Results(tmp_path / "results"))
