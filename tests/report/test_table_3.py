"""A study's tables: hand-made comparison, our numbers and the paper's in the right cells."""

import csv
import io

import pytest

from vesselgan.config.compose import compose
from vesselgan.core.errors import DataError
from vesselgan.report import page, table_3_notes
from vesselgan.report.blocks import Figure, Section, markdown
from vesselgan.report.table_3 import FURTHER, SHOWN, comparisons, section, table_of
from vesselgan.report.table_3_rows import from_results, in_paper_order
from vesselgan.viz import plots

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


def cells_of(made: dict, name: str, region: str) -> list[list[list[str]]]:
    """Per row of a table the cells, each as its lines."""
    return [[cell.split("\n") for cell in cells] for cells in table_of(made, name, region).to_numpy().tolist()]


def text_of(part: Section) -> str:
    return markdown(part.blocks)


def lines_of(text: str, start: str) -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [line for line in lines if line[0].startswith(start)]


def test_table_3_holds_synthetic_real_and_references():
    frame = table_of(comparison(), "Table 3", "all")
    assert frame.index.tolist() == [
        "U-Net <sn_mp>\nlabel threshold 0.4",
        "U-Net <other>\nlabel threshold 0.4",
        "U-Net <real>",
        "U-Net <shuffled>",
        "U-Net <threshold>",
    ]
    expected = ["0.810 (0.019)", "median 0.810", "[0.790, 0.830]", "0.900 of real", "-0.090 to real (p 0.062)"]
    cells = cells_of(comparison(), "Table 3", "all")
    assert cells[0][0] == [*expected, "paper 0.782 (0.020)"]
    assert not any("of real" in line for line in cells[2][0])


def test_the_papers_numbers_stand_beside_the_same_score():
    inside = cells_of(comparison(), "Table 3", "intracranial")
    # Table 3 B: SN-MP 0.804 (0.020), 0.784 (0.125) on PEGASUS, 0.785 (0.027), 0.822 (0.211) on 1000Plus.
    numbers = ["0.804 (0.020)", "0.784 (0.125)", "0.785 (0.027)", "0.822 (0.211)"]
    assert [cell[-1] for cell in inside[0]] == [f"paper {number}" for number in numbers]
    assert not any("paper" in line for row in (inside[1], inside[4]) for cell in row for line in cell)
    assert inside[2][1][-1] == "paper 0.294 (0.077)"
    (both, real) = cells_of(comparison(), "Table A.1", "all")
    # Table A.1 A: real+SN-MP 0.903 (0.013), 0.359 (0.133), 0.883 (0.020), 0.511 (0.145).
    numbers = ["0.903 (0.013)", "0.359 (0.133)", "0.883 (0.020)", "0.511 (0.145)"]
    assert [cell[-1] for cell in both] == [f"paper {number}" for number in numbers]
    assert real[0][-1] == "paper 0.906 (0.016)"


def test_markdown_and_csv_hold_it_all():
    files = section(comparison()).files
    assert "paper 0.782 (0.020)" in files["study-study.md"] and "U-Net &lt;real>" in files["study-study.md"]
    rows = list(csv.DictReader(io.StringIO(files["study-study.csv"])))
    means = {
        (r["source"], r["metric"]): r["number"] for r in rows if r["statistic"] == "mean" and r["cohort"] == "first"
    }
    assert means["sn_mp", "dice"] == "0.81" and len(means) == 6 * len([*SHOWN, *FURTHER])
    assert len([r for r in rows if r["statistic"] == "value"]) == 6 * 2 * 2 * len([*SHOWN, *FURTHER]) * 6


def test_empty_volumes_are_counted_once_and_named():
    made = comparison()
    nothing, inside = {"truth": 0, "predicted": 0}, {"truth": 1, "predicted": 1}
    both = {"all": {"truth": 0, "predicted": 1}, "intracranial": inside}
    # Two seeds; the patient whose label is empty inside the brain is one, whatever the source and the seed.
    made["rows"][1]["empty"] = {"first": [both, {"all": nothing, "intracranial": inside}]}
    record = table_3_notes.about(made)
    for text in ("2 predictions of U-Net <sn_mp>", "1 prediction of U-Net <shuffled>", "1 label"):
        assert text in record


def test_equal_steps_are_claimed_where_applied():
    made = comparison()
    for entry, skipped in zip(made["rows"], (0, 0, 3, 0, 0, 0), strict=True):
        entry["runs"] = {"1": {"steps": 250, "skipped_steps": skipped}}
    text = text_of(section(made))
    assert "had the same number of optimizer steps" not in text
    assert "247 to 250 optimizer steps were applied" in text
    made["rows"][2]["runs"]["1"]["skipped_steps"] = 0
    assert "Every U-Net had the same number of optimizer steps." in text_of(section(made))


def test_a_private_gan_stands_in_no_other_box(monkeypatch):
    made = comparison()
    made["rows"].append(row("dp", "synthetic", "dpgan", 0.5) | {"privacy": PRIVACY})
    monkeypatch.setattr(plots, "boxes", lambda rows, **axes: plots.Chart(str(rows), 0, "", b""))
    boxes = [chart.title for b in section(made).blocks if isinstance(b, Figure) for chart in b.charts]
    assert len(boxes) == 2 * 2 * 2 * len(SHOWN) and not any("U-Net <dp>" in title for title in boxes)


def test_two_patients_have_no_spread(make_result):
    made = from_results([make_result("real", 0.9), make_result("synthetic", 0.8)], [*SHOWN, *FURTHER], {})
    text = text_of(section(made))
    table, *_ = text.split("## Table A.1")
    assert "median" not in table and "| 0.900;" in table
    assert not any(isinstance(block, Figure) for block in section(made).blocks)


def test_a_distance_beyond_the_head_is_explained():
    made = comparison()
    for name, precision in (("shuffled", 0.05), ("sn_mp", 0.7)):
        (entry,) = (entry for entry in made["rows"] if entry["name"] == name)
        region = dict(facts(0.9), values={"a": 0.9}), dict(facts(precision), values={"a": precision}), facts(448.2)
        entry["scores"]["first"]["all"] |= dict(zip(("recall", "precision", "bavd_voxels"), region, strict=True))
    (note,) = table_3_notes.bavd_notes(made)
    # 0.9 / 0.05: a prediction of 18 times the label's voxels.
    assert "U-Net <shuffled> (first) predicts 18 times as many, its bAVD is 448 voxels" in note and "sn_mp" not in note


PRIVACY = {"epsilon": 1200.0, "delta": 1 / 2350, "unit": "patch", "noise_multiplier": 0.3}
PRIVACY |= {"not_covered": ["the <range>"]}


def test_what_no_epsilon_covers_is_said():
    made = comparison()
    assert "No epsilon covers" not in text_of(section(made))
    made["rows"].append(row("dp", "synthetic", "dpgan", 0.5) | {"privacy": PRIVACY})
    assert "No epsilon covers: the &lt;range>." in text_of(section(made))


def private_titles(source: dict) -> list[str]:
    return table_of(in_paper_order({"cohorts": ["first"], "rows": [source]}), "Table B.1", "all").index.tolist()


def test_a_private_gan_stands_beside_its_budget():
    private = row("dp", "synthetic", "dpgan", 0.5) | {"privacy": PRIVACY}
    assert private_titles(private) == [
        "U-Net <dp>\nepsilon 1.2e+03 per patch at delta 0.00043: no differential privacy\nnoise multiplier 0.3\n"
        "label threshold 0.4",
    ]
    made = in_paper_order({"cohorts": ["first"], "rows": [private]})
    (cells,) = cells_of(made, "Table B.1", "all")
    # Table B.1, noise 0.3, whose row is "epsilon 1e3": 0.562 (0.050), 6.307 (2.406).
    assert [cell[-1] for cell in cells] == ["paper, epsilon 1e3, 0.562 (0.050)", "paper, epsilon 1e3, 6.307 (2.406)"]
    assert "dp" not in [r["name"] for r in made["rows"] if r["kind"] == "synthetic"]


def test_the_papers_private_row_is_of_equal_noise():
    # Whatever a run of other patches and steps spends: here less than the paper's 1e3 of noise 0.3.
    private = row("dp", "synthetic", "dpgan", 0.5) | {"privacy": PRIVACY | {"epsilon": 320.0, "noise_multiplier": 0.5}}
    (cells,) = cells_of(in_paper_order({"cohorts": ["first"], "rows": [private]}), "Table B.1", "all")
    assert cells[0][-1] == "paper, epsilon 1e2, 0.085 (0.012)"


@pytest.mark.parametrize(
    ("variant", "unlike"),
    [
        ("dp_flow", {}),
        ("dpgan", {"unit": "patient"}),
        (None, {}),
        ("dpgan", {"noise_multiplier": 2.0}),
        ("dpgan", {"is_key_secret": False}),
    ],
)
def test_the_papers_private_rows_are_its_gans_alone(variant, unlike):
    private = row("dp", "synthetic", variant, 0.5) | {"privacy": PRIVACY | unlike}
    (cells,) = cells_of(in_paper_order({"cohorts": ["first"], "rows": [private]}), "Table B.1", "all")
    assert not any("paper" in line for cell in cells for line in cell)


def test_a_gan_of_known_noise_has_no_epsilon():
    known = row("dp", "synthetic", "dpgan", 0.5) | {"privacy": PRIVACY | {"is_key_secret": False}}
    title = (
        "U-Net <dp>\nno epsilon, as its noise seed is known: no differential privacy\nnoise multiplier 0.3\n"
        "label threshold 0.4"
    )
    assert title in private_titles(known)
    secret = known | {"privacy": PRIVACY | {"is_key_secret": True}}
    assert any("epsilon 1.2e+03 per patch" in title for title in private_titles(secret))


def test_segmentation_results_alone_fill_what_they_can(make_result):
    synthetic = make_result("synthetic", 0.8, title="U-Net on synthetic")
    made = from_results(
        [make_result("real", 0.9), synthetic, make_result("x", 0.1)], [*SHOWN, *FURTHER], {"some-gan": "sn_mp"}
    )
    assert [(r["name"], r["kind"], r["variant"]) for r in made["rows"]] == [
        ("real", "real", None), ("synthetic", "synthetic", "sn_mp")
    ]  # fmt: skip
    dice = made["rows"][1]["scores"]["phantom"]["all"]["dice"]
    # 0.79 and 0.81: mean and median 0.80, SD 0.02 / sqrt(2).
    assert (dice["mean"], dice["median"], dice["n"]) == (pytest.approx(0.8), pytest.approx(0.8), 2)
    assert dice["sd"] == pytest.approx(0.02 / 2**0.5)
    line = lines_of(text_of(section(made)), "U-Net on synthetic; SN-MP")[0]
    assert line[1] == "0.800; 0.889 of real; paper 0.782 (0.020)"
    assert section(made).title == "Appendix: the paper's tables"


def test_visits_of_a_patient_are_averaged(make_result):
    visits = make_result("real", 0.8) | {"patients": {"sub-07": "P1", "sub-08": "P1"}}
    dice = from_results([visits], SHOWN, {})["rows"][0]["scores"]["phantom"]["all"]["dice"]
    assert (dice["n"], dice["values"]) == (1, {"P1": pytest.approx(0.8)})


def test_a_changed_run_is_no_papers_source(make_result, make_run):
    """Whether a study names its variant or a result its run."""
    run = make_run("mine", {"variant": {"name": "sn_mp", "generator_norm": "group"}})
    gan = {"run": "mine", "weights_sha256": "12"}
    synthetic = make_result("synthetic", 0.8) | {"gan": gan}
    study = from_results([synthetic], [*SHOWN, *FURTHER], {"mine": "sn_mp"})
    study |= {"job": "comparison", "name": "main", "units": {}, "unet_steps": 5, "unet_batch_size": 1}
    for results in ([synthetic], [study]):
        _, sections = page.build(compose("report", []), results, [run])
        text = "".join(map(text_of, sections))
        assert "sn_mp, changed" in text and "paper 0.782" not in text


def test_results_of_several_generators_are_sources(make_result):
    def of(name: str, run: str) -> dict:
        return make_result(name, 0.5) | {"segmented_with": {"source": "synthetic"}, "gan": {"run": run}}

    made = from_results([of("first", "a"), of("second", "b")], SHOWN, {"a": "sn", "b": "c_sn_mp"})
    assert [(r["name"], r["kind"], r["variant"]) for r in made["rows"]] == [
        ("first", "synthetic", "sn"), ("second", "synthetic", "c_sn_mp")
    ]  # fmt: skip


def test_a_comparison_that_lacks_something_is_refused():
    with pytest.raises(DataError, match="rows"):
        comparisons([{key: value for key, value in comparison().items() if key != "rows"}])
    assert comparisons([{"job": "segmentation"}]) == []
    for damage in ({"rows": 3}, {"rows": [{}]}, {"rows": [comparison()["rows"][0] | {"title": 3}]}, {"cohorts": []}):
        with pytest.raises(DataError, match="damaged"):
            comparisons([comparison() | damage])
    for region, scores in (("all", {"dice": {"mean": "0.9"}}), ("all", {}), ("intracranial", {})):
        broken = comparison()
        broken["rows"][0]["scores"]["first"][region] = scores
        with pytest.raises(DataError, match="damaged"):
            comparisons([broken])
    without = comparison()
    del without["rows"][0]["scores"]["first"]["all"]
    with pytest.raises(DataError, match="damaged"):
        comparisons([without])
