"""A study's tables: hand-made comparison, our numbers and the paper's in the right cells."""

import csv
import io
import re

import numpy as np
import pytest

from vesselgan.core.errors import DataError
from vesselgan.report import charts, paper, study_notes
from vesselgan.report.markup import csv_text
from vesselgan.report.study_rows import PRIVATE, completed, from_results
from vesselgan.report.study_tables import (
    CSV_COLUMNS,
    FURTHER,
    SHOWN,
    comparisons,
    csv_rows,
    format_markdown,
    rows_of,
    section,
)

PATIENTS = [f"sub-{number}" for number in range(6)]


def facts(mean: float, *, difference: dict | None = None) -> dict:
    values = {patient: mean + (number - 2.5) / 100 for number, patient in enumerate(PATIENTS)}
    interval = [mean - 0.02, mean + 0.02]
    return {"mean": mean, "sd": 0.019, "sd_seeds": None, "median": mean, "n": 6, "num_seeds": 1, "interval": interval,
            "values": values, "difference": difference}  # fmt: skip


def row(name: str, kind: str, variant: str | None, mean: float) -> dict:
    difference = None
    if name != "real":
        difference = {"n": 6, "mean": mean - 0.9, "sd": 0.01, "interval": [-0.2, 0.1], "p": 0.031, "p_holm": 0.062}
    region = {metric: facts(mean, difference=difference) for metric in [*SHOWN, *FURTHER]}
    scores = {cohort: {"all": region, "intracranial": region} for cohort in ("first", "second")}
    empty = {"first": [{"all": {"truth": 0, "predicted": 1}, "intracranial": {"truth": 0, "predicted": 1}}]}
    record = {"name": name, "kind": kind, "title": f"U-Net <{name}>", "variant": variant, "runs": {}, "scores": scores}
    return record | {"label_threshold": 0.4 if variant else None, "empty": empty if kind == "shuffled" else {}}


def comparison() -> dict:
    rows = [
        row("real", "real", None, 0.9),
        row("sn_mp", "synthetic", "sn_mp", 0.81),
        row("other", "synthetic", "of_our_own", 0.72),
        row("real+sn_mp", "both", "sn_mp", 0.95),
        row("shuffled", "shuffled", None, 0.2),
        row("threshold", "threshold", None, 0.5),
    ]
    return {"job": "comparison", "name": "study", "cohorts": ["first", "second"], "seeds": [1], "rows": rows,
            "units": {}, "unet_steps": 250, "unet_batch_size": 16}  # fmt: skip


def test_table_3_holds_synthetic_real_and_references():
    lines = rows_of(comparison(), ("synthetic", "real", "shuffled", "threshold"), "all", SHOWN)
    assert [line.title for line in lines] == [
        "U-Net <sn_mp>; label threshold 0.4",
        "U-Net <other>; label threshold 0.4",
        "U-Net <real>",
        "U-Net <shuffled>",
        "U-Net <threshold>",
    ]
    first = lines[0].cells[0].ours
    assert first.startswith("0.810 (0.019); median 0.810; [0.790, 0.830]; 0.900 of real")
    assert first.endswith("-0.090 to real (p 0.062)")
    assert "of real" not in lines[2].cells[0].ours


def test_the_papers_numbers_stand_beside_the_same_score():
    lines = rows_of(comparison(), ("synthetic", "real", "shuffled", "threshold"), "intracranial", SHOWN)
    # Table 3 B: SN-MP 0.804 (0.020), 0.784 (0.125) on PEGASUS, 0.785 (0.027), 0.822 (0.211) on 1000Plus.
    assert [cell.paper for cell in lines[0].cells] == [
        "0.804 (0.020)", "0.784 (0.125)", "0.785 (0.027)", "0.822 (0.211)"
    ]  # fmt: skip
    assert [cell.paper for cell in lines[1].cells] == [""] * 4  # a variant that the paper has not
    assert lines[2].cells[1].paper == "0.294 (0.077)"
    assert [cell.paper for cell in lines[4].cells] == [""] * 4
    (both, real) = rows_of(comparison(), ("both", "real"), "all", SHOWN)
    # Table A.1 A: real+SN-MP 0.903 (0.013), 0.359 (0.133), 0.883 (0.020), 0.511 (0.145).
    assert [cell.paper for cell in both.cells] == ["0.903 (0.013)", "0.359 (0.133)", "0.883 (0.020)", "0.511 (0.145)"]
    assert real.cells[0].paper == "0.906 (0.016)"


def test_markdown_csv_and_page_hold_it_all():
    markdown = format_markdown(comparison())
    assert "paper 0.782 (0.020)" in markdown and "U-Net &lt;real>" in markdown
    rows = list(csv.DictReader(io.StringIO(csv_text(CSV_COLUMNS, csv_rows(comparison())))))
    means = {
        (r["source"], r["metric"]): r["number"] for r in rows if r["statistic"] == "mean" and r["cohort"] == "first"
    }
    assert means["sn_mp", "dice"] == "0.81" and len(means) == 6 * len([*SHOWN, *FURTHER])
    assert len([r for r in rows if r["statistic"] == "value"]) == 6 * 2 * 2 * len([*SHOWN, *FURTHER]) * 6
    page = section(comparison()).html
    assert "<real>" not in page and "U-Net &lt;real&gt;" in page


def test_empty_volumes_are_counted_once_and_named():
    made = comparison()
    nothing, inside = {"truth": 0, "predicted": 0}, {"truth": 1, "predicted": 1}
    both = {"all": {"truth": 0, "predicted": 1}, "intracranial": inside}
    # Two seeds; the patient whose label is empty inside the brain is one, whatever the source and the seed.
    made["rows"][1]["empty"] = {"first": [both, {"all": nothing, "intracranial": inside}]}
    record = study_notes.about(made)
    for text in ("2 predictions of U-Net <sn_mp>", "1 prediction of U-Net <shuffled>", "1 label"):
        assert text in record


def test_equal_steps_are_claimed_where_applied():
    made = comparison()
    for entry, skipped in zip(made["rows"], (0, 0, 3, 0, 0, 0), strict=True):
        entry["runs"] = {"1": {"steps": 250, "skipped_steps": skipped}}
    for text in (section(made).html, format_markdown(made)):
        assert "had the same number of optimizer steps" not in text
        assert "247 to 250 optimizer steps were applied" in text
    made["rows"][2]["runs"]["1"]["skipped_steps"] = 0
    assert "Every U-Net had the same number of optimizer steps." in format_markdown(made)


def test_a_private_gan_stands_in_no_other_box():
    made = comparison()
    made["rows"].append(row("dp", "synthetic", "dpgan", 0.5) | {"privacy": PRIVACY})
    figures = re.findall(r"<svg.*?</svg>", section(made).html, re.S)
    assert len(figures) == 2 * 2 * 2 * len(SHOWN) and not any("U-Net &lt;dp&gt;" in svg for svg in figures)


def cells_of(page_or_markdown: str, start: str) -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in page_or_markdown.splitlines() if line.startswith("| ")]
    return [line for line in lines if line[0].startswith(start)]


def test_every_source_of_the_paper_has_its_row():
    markdown = format_markdown(comparison())
    (gp, gp_inside) = cells_of(markdown, "U-Net on GP")
    # Table 3: GP 0.793 (0.024), 2.648 (1.189), 0.807 (0.03), 1.895 (1.061); inside the brain 0.827 (0.015) ...
    assert gp[1:] == [
        f"not run; paper {s}" for s in ("0.793 (0.024)", "2.648 (1.189)", "0.807 (0.030)", "1.895 (1.061)")
    ]
    assert gp_inside[1] == "not run; paper 0.827 (0.015)"
    assert len(cells_of(markdown, "U-Net on real and c-SN-MP")) == 2  # Table A.1, both regions
    (budget, inside) = cells_of(markdown, "U-Net on DPGAN; epsilon 1e3")
    assert budget[1:3] == ["not run; paper 0.562 (0.050)", "not run; paper 6.307 (2.406)"]
    assert inside[4] == "not run; paper 2.698 (0.604)"
    assert cells_of(markdown, "U-Net on SN-MP") == []  # it was run


PRIVACY = {
    "epsilon": 1200.0,
    "delta": 1 / 2350,
    "unit": "patch",
    "noise_multiplier": 0.3,
    "not_covered": ["the <range>"],
}


def test_what_no_epsilon_covers_is_said():
    made = comparison()
    assert "No epsilon covers" not in section(made).html + format_markdown(made)
    made["rows"].append(row("dp", "synthetic", "dpgan", 0.5) | {"privacy": PRIVACY})
    assert "No epsilon covers: the &lt;range&gt;." in section(made).html
    assert format_markdown(made).endswith("No epsilon covers: the <range>.")


def test_a_private_gan_stands_beside_its_budget():
    private = row("dp", "synthetic", "dpgan", 0.5) | {"privacy": PRIVACY}
    lines = rows_of(completed({"cohorts": ["first"], "rows": [private]}), (PRIVATE,), "all", SHOWN)
    assert [line.title for line in lines] == [
        "U-Net on DPGAN; epsilon 1e2",
        "U-Net <dp>; epsilon 1.2e+03 per patch at delta 0.00043; noise multiplier 0.3; label threshold 0.4",
        "U-Net on DPGAN; epsilon 1e6",
    ]
    # Table B.1, about 1e3: 0.562 (0.050), 6.307 (2.406); the second cohort was not run: 0.567 (0.041).
    assert [cell.paper for cell in lines[1].cells][:3] == ["0.562 (0.050)", "6.307 (2.406)", "0.567 (0.041)"]
    assert [cell.ours for cell in lines[1].cells][2:] == ["not run", "not run"]
    assert "dp" not in [
        r["name"] for r in completed({"cohorts": [], "rows": [private]})["rows"] if r["kind"] == "synthetic"
    ]


def test_a_gan_of_known_noise_has_no_epsilon():
    known = row("dp", "synthetic", "dpgan", 0.5) | {"privacy": PRIVACY | {"is_key_secret": False}}
    titles = [
        line.title for line in rows_of(completed({"cohorts": ["first"], "rows": [known]}), (PRIVATE,), "all", SHOWN)
    ]
    assert "U-Net <dp>; no epsilon, as its noise seed is known; noise multiplier 0.3; label threshold 0.4" in titles
    secret = known | {"privacy": PRIVACY | {"is_key_secret": True}}
    titles = [line.title for line in rows_of(completed({"cohorts": [], "rows": [secret]}), (PRIVATE,), "all", SHOWN)]
    assert any("epsilon 1.2e+03 per patch" in title for title in titles)


def test_segmentation_results_alone_fill_what_they_can(make_result):
    results = [
        make_result("real", 0.9),
        make_result("synthetic", 0.8, title="U-Net on synthetic"),
        make_result("x", 0.1),
    ]
    made = from_results(results, [*SHOWN, *FURTHER], "sn_mp")
    assert [(r["name"], r["kind"], r["variant"]) for r in made["rows"]] == [
        ("real", "real", None), ("synthetic", "synthetic", "sn_mp")
    ]  # fmt: skip
    dice = made["rows"][1]["scores"]["phantom"]["all"]["dice"]
    # 0.79 and 0.81: mean and median 0.80, SD 0.02 / sqrt(2).
    assert (dice["mean"], dice["median"], dice["n"]) == (pytest.approx(0.8), pytest.approx(0.8), 2)
    assert dice["sd"] == pytest.approx(0.02 / 2**0.5)
    line = cells_of(format_markdown(made), "U-Net on synthetic; SN-MP")[0]
    assert line[1] == "0.800 (0.014); median 0.800; 0.889 of real; paper 0.782 (0.020)"
    assert section(made).title == "The paper's tables"


def test_nothing_gives_the_papers_numbers_alone():
    part = section(from_results([], SHOWN, None))
    # Rows of the paper: 4 + real, 4 + real, 3; two regions; four cells.
    assert part.html.count(">not run<") == (5 + 5 + 3) * 2 * 4


def test_every_paper_row_of_the_mapping_is_there():
    for name in paper.VARIANTS.values():
        assert name in paper.TABLE_3["all"] and f"real + {name}" in paper.TABLE_A1["all"]


def test_a_box_has_median_quartiles_and_extremes():
    (values,) = [np.array([0.1, 0.2, 0.4, 0.8])]
    svg = charts.box_plot([charts.Box("a<b", values)], x_label="Dice", title="t", high=1.0)
    # From 238 to 538: 300 per unit. Quartiles 0.175, 0.3, 0.5; whiskers 0.1 and 0.8.
    assert 'class="dot" x="290.5" y=' in svg and 'width="97.5"' in svg
    assert 'class="mean" x1="328.0"' in svg
    assert 'class="axis" x1="268.0" x2="478.0"' in svg
    assert "a&lt;b" in svg


def test_a_comparison_that_lacks_something_is_refused():
    with pytest.raises(DataError, match="rows"):
        comparisons([{key: value for key, value in comparison().items() if key != "rows"}])
    assert comparisons([{"job": "segmentation"}]) == []
