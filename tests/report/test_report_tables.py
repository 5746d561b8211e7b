"""The segmentation table: rows, statistics by hand, aims, and what a damaged result says."""

import csv
import io
import json
import math

import pandas as pd
import pytest

from vesselgan.core.errors import DataError
from vesselgan.report import paper, tables
from vesselgan.report.blocks import Table, csv_text, markdown
from vesselgan.report.table_3_rows import from_results


def test_a_region_without_scores_has_no_columns(make_result):
    result = make_result("real", 0.9)
    result["subjects"] = [entry for entry in result["subjects"] if entry["region"] == "all"]
    table = tables.segmentation_scores([result]).table()
    assert set(table.columns.get_level_values(0)) == {"All vessels"}


def test_table_has_four_methods_and_the_paper(four_results):
    table = tables.segmentation_scores(reversed(four_results)).table()
    assert [title.split("\n")[0] for title in table.index] == [*tables.METHODS.values(), tables.PAPER_TITLE]


def test_cell_is_mean_and_sd_over_subjects(four_results):
    scored = tables.segmentation_scores(four_results)
    assert scored.values("real", "all", "dice").to_dict() == pytest.approx({"sub-07": 0.89, "sub-08": 0.91})
    assert cell(scored, "real") == "0.900"  # two subjects have no spread


def cell(scored: tables.Scores, name: str, region: str = "All vessels", metric: str = "Dice") -> str:
    return scored.table().loc[scored.titles[name], (region, metric)]


def test_three_subjects_have_a_spread(make_result):
    result = make_result("real", 0.9)
    result["subjects"].append(result["subjects"][0] | {"subject": "sub-09"})  # 0.89 once more
    # 0.89, 0.89, 0.91: mean 0.8967, SD sqrt((2 * 0.00667^2 + 0.01333^2) / 2) = 0.01155.
    assert cell(tables.segmentation_scores([result]), "real") == "0.897 (0.012)\nmedian 0.890"


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_undefined_values_are_counted_and_not_averaged(make_result, value):
    result = make_result("real", 0.9)
    result["subjects"][0]["bavd_mm"] = value  # sub-07, all
    scored = tables.segmentation_scores([result])
    assert cell(scored, "real", metric="bAVD (mm)") == "0.510\n1 not defined"


def test_threshold_of_each_region_or_one_for_both(make_result):
    fitted = make_result("threshold", 0.6) | {"threshold": 90.5, "thresholds": {"all": 90.5, "intracranial": 80.25}}
    titles = tables.segmentation_scores([fitted, make_result("real", 0.9)]).titles
    assert titles["threshold"].endswith("\nthreshold 90.5 and 80.2") and titles["real"].endswith("\nthreshold 0.5")


def test_rows_of_one_title_bear_their_names(make_result):
    """Also in the terminal, which shows the first line of a title."""
    both = [make_result(name, 0.8) | {"title": "U-Net on synthetic", "threshold": 0.5} for name in ("synthetic", "gan")]
    text = tables.format_text(tables.segmentation_scores(both))
    assert "U-Net on synthetic (synthetic)" in text and "U-Net on synthetic (gan)" in text


def test_aims_compare_mean_dice(four_results):
    verdicts = {aim.text: (aim.verdict, aim.measured) for aim in tables.aims(tables.segmentation_scores(four_results))}
    assert verdicts["U-Net on real minus best threshold, all vessels"] == ("pass", pytest.approx(0.3))
    assert verdicts["U-Net on synthetic as a share of real, intracranial"] == ("pass", pytest.approx(0.8 / 0.9))
    assert verdicts["U-Net on synthetic minus shuffled labels, all vessels"] == ("pass", pytest.approx(0.5))
    assert verdicts["U-Net on synthetic minus best threshold, all vessels"] == ("pass", pytest.approx(0.2))
    assert len(verdicts) == 8


def test_a_row_is_what_its_record_says(make_result):
    """Results may have any name: one called `real` is not of real patches for it."""
    real = make_result("exp-7", 0.9) | {"segmented_with": {"source": "real"}}
    wrong = make_result("real", 0.8) | {"segmented_with": {"source": "synthetic"}}
    fitted = make_result("best", 0.6) | {"fitted_on": {"split": "validation"}}
    scored = tables.segmentation_scores([wrong, fitted, real])
    assert list(scored.titles) == ["best", "exp-7", "real"]
    assert scored.missing == ["U-Net on synthetic, labels shuffled"]
    measured = {aim.text: aim.measured for aim in tables.aims(scored)}
    assert measured["U-Net on real minus best threshold, all vessels"] == pytest.approx(0.3)
    assert measured["U-Net on synthetic as a share of real, all vessels"] == pytest.approx(0.8 / 0.9)
    kinds = {row["name"]: row["kind"] for row in from_results([wrong, fitted, real], ["dice"], {})["rows"]}
    assert kinds == {"real": "synthetic", "best": "threshold", "exp-7": "real"}
    fitted["inputs"] = real["inputs"] = {"sub-07 label": "a"}
    assert tables.of_same_subjects([wrong, fitted, real]) == ([fitted, real], [wrong])


def test_no_aim_is_measured_on_one_of_two(make_result):
    """The better of two would be chosen on the test volumes."""
    both = [make_result(name, 0.8) | {"segmented_with": {"source": "synthetic"}} for name in ("gan", "flow")]
    scored = tables.segmentation_scores([make_result("real", 0.9), *both])
    assert all(aim.measured is None for aim in tables.aims(scored)) and "U-Net on synthetic" not in scored.missing


def test_missed_aim_fails_missing_row_is_not_run(make_result):
    rows = tables.segmentation_scores([make_result("real", 0.9), make_result("threshold", 0.84)])
    verdicts = [aim.verdict for aim in tables.aims(rows)]
    assert verdicts == ["fail", "pass", *["not run"] * 6]  # 0.06 misses 0.10, reaches 0.05


def test_rows_of_one_table_have_one_n(make_result):
    real, synthetic, threshold = (make_result(name, 0.8) for name in ("real", "synthetic", "threshold"))
    synthetic["subjects"] = [entry for entry in synthetic["subjects"] if entry["subject"] == "sub-07"]
    with pytest.raises(DataError, match="synthetic"):
        tables.segmentation_scores([synthetic, real, threshold])
    assert tables.of_same_subjects([synthetic, real, threshold]) == ([real, threshold], [synthetic])
    assert tables.of_same_subjects([synthetic, threshold]) == ([synthetic], [threshold])
    assert tables.of_same_subjects([]) == ([], [])


@pytest.mark.parametrize("role", ["label", "mask"])
def test_results_on_other_labels_share_no_table(make_result, role):
    real, synthetic, threshold = (make_result(name, 0.8) for name in ("real", "synthetic", "threshold"))
    for result, sha256 in ((real, "a"), (synthetic, "b"), (threshold, "a")):
        result["inputs"] = {f"sub-07 {role}": sha256, "sub-07 prediction": result["name"]}
    threshold["inputs"]["fitted on sub-01 label"] = "c"
    assert tables.of_same_subjects([synthetic, real, threshold]) == ([real, threshold], [synthetic])
    with pytest.raises(DataError, match="synthetic"):
        tables.segmentation_scores([synthetic, real, threshold])


def test_csv_holds_every_number_at_full_precision(four_results):
    rows = list(csv.DictReader(io.StringIO(csv_text(tables.segmentation_scores(four_results).frame))))
    values = {
        (r["row"], r["region"], r["metric"], r["statistic"], r["subject"], r["source"]): r["number"] for r in rows
    }
    assert float(values["real", "all", "dice", "value", "sub-07", ""]) == 0.9 - 0.01
    assert float(values["paper", "all", "dice", "mean", "", "c-SN-MP"]) == 0.820
    assert len(values) == len(rows) == 4 * 6 * 4 + 3 * 4 * 2


def test_markdown_keeps_its_columns_whatever_a_name_holds(four_results):
    for result in four_results:
        result["subjects"][0]["subject"] = "a|b<script>"
    lines = markdown([Table(tables.segmentation_scores(four_results).table(has_subjects=True))]).splitlines()
    table = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {8}
    assert not any("<script" in line for line in lines)


def test_two_results_of_one_name_are_refused(make_result):
    with pytest.raises(DataError, match="'real'"):
        tables.segmentation_scores([make_result("real", 0.9), make_result("real", 0.8)])
    with pytest.raises(DataError, match="'paper'"):
        tables.segmentation_scores([make_result("paper", 0.9)])


def test_unlike_cohorts_never_share_a_table(make_result):
    results = [make_result("real", 0.9), make_result("threshold", 0.5, cohort="other")]
    with pytest.raises(DataError, match="other"):
        tables.segmentation_scores(results)
    assert set(tables.by_cohort(results)) == {("phantom", "test"), ("other", "test")}


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda r: "{", "cannot be read"),
        (lambda r: json.dumps(r | {"format_version": 9}), "format 9"),
        (lambda r: json.dumps({k: v for k, v in r.items() if k != "cohort"}), "cohort"),
        (lambda r: json.dumps(r | {"subjects": [{"subject": "a", "region": "leg"}]}), "region"),
        (lambda r: json.dumps(r | {"subjects": [{"subject": "a", "region": "all", "dice": "0.9"}]}), "dice"),
        (lambda r: json.dumps(r | {"subjects": [{"subject": "a", "region": "all", "dice": None}]}), "dice"),
        (lambda r: json.dumps(r | {"subjects": [r["subjects"][0] | {"bavd_mm": math.nan}]}), "bavd_mm"),
        (lambda r: json.dumps(r | {"subjects": []}), "subjects"),
        (lambda r: json.dumps(r | {"subjects": r["subjects"] * 2}), "subjects"),
        (lambda r: json.dumps(r | {"subjects": r["subjects"][1::2]}), "subjects"),  # intracranial alone
        (lambda r: json.dumps([1]), "format None"),
    ],
)
def test_damaged_result_is_named(tmp_path, make_result, damage, said):
    (tmp_path / "real.json").write_text(damage(make_result("real", 0.9)))
    with pytest.raises(DataError, match=said) as error:
        tables.read_results(tmp_path)
    assert "real.json" in str(error.value)


def test_a_missing_folder_has_no_results(tmp_path):
    assert tables.read_results(tmp_path / "nowhere") == []


def test_papers_tables_quote_known_cells():
    for region in tables.REGIONS:
        assert paper.TABLE_A1[region]["real"] == paper.TABLE_3[region]["real"]


def test_no_cell_is_a_formula():
    names = ["=HYPERLINK(1)", "+1+cmd|' /C calc'!A0", "-2+3", "@sum", " =1", "sub-01"]
    frame = pd.DataFrame(
        {"score": [-0.5, 1, "-0.12 (0.01)", "-", "=1", "x"]}, pd.Index(names, name="run"), dtype=object
    )
    rows = list(csv.reader(io.StringIO(csv_text(frame))))[1:]
    assert [name for name, _ in rows] == [f"'{name}" for name in names[:-1]] + ["sub-01"]
    assert [score for _, score in rows] == ["-0.5", "1", "-0.12 (0.01)", "-", "'=1", "x"]
