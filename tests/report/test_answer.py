"""The head of the page: what the sentence says of every set of results, and what warns beside it."""

import json

import pytest

from vesselgan.config.compose import compose
from vesselgan.formats.cohort import PHANTOM_SETTINGS, Cohort, Subject
from vesselgan.report import page
from vesselgan.report.answer import answer, by_kind, in_words
from vesselgan.report.table_3 import SHOWN, table_of
from vesselgan.report.table_3_rows import from_results, in_paper_order
from vesselgan.report.training import section as training_section


def said(*results: dict, variants: dict | None = None) -> str:
    return " ".join(in_words(in_paper_order(from_results(results, ["dice", "bavd_mm"], variants or {})))).strip()


def test_the_sentence_compares_synthetic_with_real_and_threshold(four_results):
    # 0.80 / 0.90 = 0.889; two subjects.
    assert said(*four_results) == (
        "A U-Net trained on synthetic patches alone reaches Dice 0.80 on 2 whole test volumes: 89% of what real "
        "patches give (0.90), and more than the best single threshold (0.60)."
    )


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ({"synthetic": 0.4, "real": 0.8, "threshold": 0.6}, "50% of what real patches give (0.80), and less than"),
        ({"synthetic": 0.6, "real": 0.8, "threshold": 0.602}, "and as much as the best single threshold (0.60)."),
        ({"synthetic": 0.4, "real": 0.8}, "50% of what real patches give (0.80). The best global threshold was not"),
        ({"synthetic": 0.4, "threshold": 0.6}, "volumes, less than the best single threshold (0.60). No U-Net was"),
        ({"synthetic": 0.4}, "Dice 0.40 on 2 whole test volumes. There is nothing to compare it with"),
        ({"real": 0.8, "threshold": 0.6}, "real patches reaches Dice 0.80 on 2 whole test volumes, more than the best"),
        (
            {"both": 0.8, "threshold": 0.6},
            "real and synthetic patches together reaches Dice 0.80 on 2 whole test volumes",
        ),
        ({"shuffled": 0.3, "threshold": 0.6}, "shuffled labels reaches Dice 0.30 on 2 whole test volumes, less than"),
        ({"synthetic": 0.4, "real": 0.0, "threshold": 0.6}, "volumes: more than real patches give (0.00), and less"),
        ({"threshold": 0.6}, "The best single threshold reaches Dice 0.60 on 2 whole test volumes; no U-Net was"),
        ({"synthetic": 0.4, "shuffled": 0.41}, "Shuffled labels do as well (0.41)"),
        ({"synthetic": 0.4, "real": 0.8, "both": 0.85}, "Real and synthetic patches together reach 0.85."),
    ],
)
def test_the_sentence_of_missing_parts(make_result, scores, text):
    assert text in said(*(make_result(name, dice) for name, dice in scores.items()))


def test_the_best_of_several_generators_is_named(make_result):
    def of(name: str, dice: float) -> dict:
        gan = {"run": name, "weights_sha256": name}
        return make_result(name, dice) | {"segmented_with": {"source": "synthetic"}, "gan": gan}

    for variant, name in (("c_sn_mp", "c-SN-MP"), ("flow", "flow")):
        text = said(of("a", 0.4), of("b", 0.6), variants={"a": "sn", "b": variant})
        assert text.startswith(f"A U-Net trained on synthetic patches alone (of {name}, the best of 2 generators) ")


def test_unets_on_one_generator_are_no_generators(make_result):
    learned = {"segmented_with": {"source": "synthetic"}}
    known = learned | {"gan": {"run": "a", "weights_sha256": "12"}}
    for first, second in ((known, known), (known, learned), (learned, learned)):
        text = said(make_result("synthetic", 0.4) | first, make_result("b", 0.6) | second, variants={"a": "sn"})
        assert "the best of 2 U-Nets" in text


def test_a_results_record_beats_its_name(make_result):
    shuffled = {"segmented_with": {"source": "synthetic", "shuffle_labels": True}}
    assert "shuffled labels reaches Dice 0.30" in said(make_result("synthetic", 0.3) | shuffled)
    mixed = make_result("real", 0.8) | {"segmented_with": {"source": "synthetic"}}, make_result("threshold", 0.6)
    assert said(*mixed).startswith("A U-Net trained on synthetic patches alone reaches")
    made = from_results([mixed[0], make_result("mine", 0.4) | {"segmented_with": {"source": "real"}}], SHOWN, {})
    assert "2.000 of real" in table_of(in_paper_order(made), "Table 3", "all").iloc[0, 0]


def test_a_private_generator_stands_with_its_budget(make_result):
    privacy = {"epsilon": 1200.0, "delta": 1e-4, "unit": "patch", "noise_multiplier": 0.3}
    private = make_result("synthetic", 0.3) | {"segmented_with": {"privacy": privacy}}
    assert "noised steps, epsilon 1.2e+03 per patch at delta 0.0001: no differential privacy)" in said(private)


def test_another_cohort_adds_a_sentence(make_result, four_results):
    made = from_results(four_results, ["dice"], {})
    for row in made["rows"]:
        row["scores"]["far"] = row["scores"]["phantom"]
    made["cohorts"].append("far")
    text = "On 2 volumes of far, where nothing was trained, synthetic ones reach 0.80, real patches 0.90."
    assert in_words(made)[1] == text


def test_few_volumes_are_a_warning(four_results):
    head = answer([from_results(four_results, ["dice", "bavd_mm"], {})], [], None, {}, [])
    assert any("2 volumes of cohort phantom cannot tell" in text for text in head.warnings)
    (table,) = (block for block in head.blocks if block.kind == "table")
    assert table.frame.loc["real"].tolist() == ["0.900", "0.50", "0.900", "0.50"]


def test_a_study_alone_is_a_report(road, four_results):
    study = from_results(four_results, ["dice", "bavd_mm"], {})
    study |= {"job": "comparison", "format_version": 1, "name": "main", "unet_steps": 5, "units": {}}
    for path in (road / "results").iterdir():
        path.unlink()
    (road / "results/comparison.json").write_text(json.dumps(study))
    text = page.report(compose("report", [f"work_dir='{road}'", "runs=[]"])).read_text()
    assert "alone reaches Dice 0.80" in text and "Study main" in text and "Appendix" not in text


def test_nothing_scored_is_said():
    assert answer([from_results([], ["dice"], {})], [], None, {}, []).sentence.startswith("No U-Net was scored yet")
    assert not any(by_kind(from_results([], ["dice"], {})).values())


def test_patients_are_announced_and_phantoms_are_not(road):
    settings = [f"work_dir='{road}'", f"runs=['{road}/runs/demo-gan']"]
    banner = "This page shows patient data"
    assert banner in page.report(compose("report", settings)).read_text()  # shards of no known cohort
    root = road / "phantom/nifti"
    nobody = Subject(
        "test", root / "sub-01/image.nii.gz", None, None, (1, 1, 1), (1.0, 1.0, 1.0), (0.0, 1.0), 0, "", None
    )
    Cohort("phantom", (0.0, 100.0), {"sub-01": nobody}).write(road / "phantom")
    assert banner in page.report(compose("report", settings)).read_text()
    root.mkdir()
    (root / PHANTOM_SETTINGS).write_text("{}")
    assert banner not in page.report(compose("report", settings)).read_text()


def test_a_run_without_critic_has_its_losses(make_run, tmp_path):
    run = make_run("flow-run", {"variant": {"name": "flow"}})
    (run.folder / "metrics.jsonl").write_text('{"step": 1, "loss/velocity": 2.0}\n{"step": 2, "loss/velocity": 1.0}\n')
    layer = {"kind": "Attention", "shape": [4, 2, 2, 2], "parameters": 8}
    network = {"input": [2, 2, 2, 2], "layers": [layer], "output": [4, 2, 2, 2], "parameters": 8}
    (run.folder / "architecture.json").write_text(json.dumps({"velocity": network}))
    figures = [b for b in training_section([page.read_run(run.folder)]).blocks if b.kind == "figure"]
    assert [chart.title for figure in figures for chart in figure.charts] == ["Loss", "Velocity, 8 parameters"]
    assert "GAN" not in figures[0].how_to_read
