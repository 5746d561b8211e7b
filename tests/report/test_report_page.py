"""The page as a whole: complete, offline, escaped, honest about what is missing."""

import csv
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest

from vesselgan.config import compose
from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.formats.cohort import Cohort
from vesselgan.report import scores
from vesselgan.report.page import report
from vesselgan.report.table_3_rows import from_results

from ..conftest import edit_json, write_set

FETCHING = ("src", "href", "srcset", "data", "poster", "action", "xlink:href")


class Reader(HTMLParser):
    """Collects tags with their attributes, headings, and text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.titles, self.last = [], [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.last = tag

    def handle_data(self, data):
        if self.last not in ("style", "script"):
            self.text.append(data)
        if self.last == "h2" and data.strip():
            self.titles.append(data)
        self.last = "" if self.last == "h2" else self.last


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def make(road, *, runs=None):
    runs = [road / "runs/demo-gan"] if runs is None else runs
    quoted = ",".join(f"'{run}'" for run in runs)
    return report(compose.compose("report", [f"work_dir='{road}'", f"runs=[{quoted}]"]))


def test_page_holds_every_section_and_number(road, drawn_charts):
    path = make(road)
    assert path == road / "report/index.html"
    source, page = path.read_text(encoding="utf-8"), read(path)
    text = " ".join(page.text)
    assert len(page.titles) == 9 and page.titles[0] == "Segmentation of held-out volumes"
    assert "0.900" in text and "0.820 (0.017)" in text
    assert "200 generator steps" in text
    for name in ("Table 2,", "Table 3,", "Table A.1:", "Table B.1:", "Figure 2,", "Figure 4,", "Figure 6,"):
        assert name in text, name
    # The head, pairs, renderings, neighbours.
    assert sum(tag == "img" for tag, _ in page.tags) == 4 + 2 * 4 * 2 + 4 * 2 + 4 * 4
    beside = {path.name for path in (road / "report").iterdir()}
    assert beside >= {"segmentation.md", "table-1.csv", "table-2.csv", "study-phantom.csv", "study-phantom.md"}
    assert beside >= {"figure-4.png", "figure-2-1.csv", "deviations.csv"}
    assert beside >= {"nearest-demo-gan.png", "nearest-demo-gan.csv"}
    charts = sorted(path.name for path in (road / "report/charts").iterdir())
    assert charts[0] == "01-dice_of_every_test_volume__all_vessels.png" and charts[1].endswith("all_vessels.svg")
    assert len(charts) == 2 * sum(tag == "svg" for tag, _ in page.tags)
    assert "secret-path" not in source and str(road) not in source  # commands and their paths stay out


def test_texts_are_escaped_and_nothing_is_fetched(road, drawn_charts):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    path = road / "results/real.json"
    result = json.loads(path.read_text())
    result["title"] = result["cohort"] = evil
    result["provenance"] = {"vesselgan": evil, "packages": {evil: evil}}
    result["inputs"] = {evil: evil}
    for entry in result["subjects"]:
        entry["subject"] = evil + entry["subject"]
    path.write_text(json.dumps(result))
    other = dict(result, name=evil)
    (road / "results/other.json").write_text(json.dumps(other))
    run = road / "runs" / "<b>gan"
    shutil.move(road / "runs/demo-gan", run)
    (run / "config.yaml").write_text(json.dumps({"variant": {"name": evil}}))
    (run / "provenance.json").write_text(json.dumps({"python": evil}))
    path = make(road, runs=[run])
    page = read(path)
    assert evil in " ".join(page.text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "b>gan")
        assert not any(name.startswith("on") for name in attributes)
        for name in FETCHING:
            assert attributes.get(name, "#").startswith(("data:image/png;base64,", "#"))
    source = re.sub(r"base64,[A-Za-z0-9+/=]+", "", path.read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", source) and "default-src 'none'" in source


def test_commands_are_code_without_backticks(road, drawn_charts):
    shutil.rmtree(road / "results")
    source = make(road).read_text(encoding="utf-8")
    assert "`" not in re.sub("<style>.*?</style>", "", source, flags=re.DOTALL)
    assert "<code>vesselgan audit run=" in source


def test_only_identical_voxels_count_as_seen(make_result):
    result = make_result("real", 0.9) | {"segmented_with": {}, "training_overlap": "none; 1 compared"}
    (note,) = (note for note in scores.notes_of([result], []) if "Training volumes" in note)
    assert "another scan of a patient" in note and "identical voxels" in note


def test_missing_parts_say_not_run(road):
    shutil.rmtree(road / "results")
    shutil.rmtree(road / "phantom")
    shutil.rmtree(road / "runs/demo-gan/synthetic")
    (road / "runs/demo-gan/metrics.jsonl").unlink()
    text = " ".join(read(make(road)).text)
    assert 8 <= text.count("not run") <= 14  # a line each, not a cell each
    assert "No U-Net was scored yet" in text


def test_copied_samples_stand_at_distance_zero(road):
    made = road / "runs/demo-gan/synthetic"
    shutil.rmtree(made)
    write_set(made, [5, 4, 3, 2, 1, 0], ["synthetic-7"], kind="synthetic")
    text = " ".join(read(make(road)).text)
    pairs = re.findall(r"sample (\d) \| sub-0\d, patch (\d) \(vessel\) \| distance (0\.00\d)", text)
    assert len(pairs) == 4
    rows = list(csv.DictReader((road / "report/nearest-demo-gan.csv").read_text().splitlines()))
    shown = [row for row in rows if row["kind"] == "shown"]
    assert [(row["patch"], row["nearest training patch"]) for row in shown] == [pair[:2] for pair in pairs]
    assert Counter(row["kind"] for row in rows) == {"shown": 4, "synthetic": 6, "real to another patient": 10}
    assert all(int(sample) + int(twin) == 5 for sample, twin, _ in pairs)


def test_another_visit_is_no_strangers_patch(road):
    train = road / "phantom/shards/gan/train/manifest.json"
    edit_json(train, lambda manifest: [subject.update(patient="ann") for subject in manifest["subjects"].values()])
    assert "the training shards are one patient's" in " ".join(read(make(road)).text)


def test_patches_may_lie_outside_the_run(road):
    shutil.move(road / "runs/demo-gan/synthetic", road / "studies/gans/demo-gan")
    words = [f"work_dir='{road}'", f"runs=['{road}/runs/demo-gan']"]
    page = read(report(compose.compose("report", [*words, f"synthetic=['{road}/studies/gans/demo-gan']"])))
    assert "Figure 4, axial slices." in " ".join(page.text)
    with pytest.raises(UsageError, match="synthetic"):
        report(compose.compose("report", [*words, "synthetic=[a,b]"]))


def test_wrong_inputs_are_refused(road):
    manifest = road / "runs/demo-gan/synthetic/manifest.json"
    whole = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(whole) | {"patch_shape": [8, 8, 8]}))
    with pytest.raises(UsageError, match=r"\[8, 8, 8\]"):
        make(road)
    manifest.write_text(whole)
    shutil.copytree(road / "runs/demo-gan", road / "other/demo-gan")
    with pytest.raises(UsageError, match=r"runs: .*runs/demo-gan and .*other/demo-gan"):
        make(road, runs=[road / "runs/demo-gan", road / "other/demo-gan"])
    (road / "report").write_text("in the way")
    with pytest.raises(ResourceError, match="report"):
        make(road)
    (road / "report").unlink()
    (road / "results/real.json").write_text("{")
    with pytest.raises(DataError, match="real.json"):
        make(road)
    assert not (road / "report").exists()


def test_rows_of_other_subjects_are_left_out(road):
    for name in ("real", "threshold"):
        path = road / f"results/{name}.json"
        result = json.loads(path.read_text())
        result["subjects"] = [
            dict(result["subjects"][0], subject=f"sub-{k:02d}", region=region)
            for k in range(13)
            for region in ("all", "intracranial")
        ]
        path.write_text(json.dumps(result))
    make(road)
    means = {r["row"] for r in csv.DictReader((road / "report/segmentation.csv").read_text().splitlines())}
    assert means == {"threshold", "real", "paper"}
    study = csv.DictReader((road / "report/study-phantom.csv").read_text().splitlines())
    assert {row["source"] for row in study} == {"threshold", "real"}


def test_results_of_two_cohorts_stay_apart(road, make_result):
    (road / "results/far.json").write_text(json.dumps(make_result("real", 0.7, cohort="far")))
    page = read(make(road, runs=[]))
    titles = page.titles
    assert len(titles) == len(set(titles)) and {
        f"Appendix: the paper's tables, {name}" for name in ("far", "phantom")
    } <= set(titles)
    anchors = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{anchor}" for anchor in anchors] and len(set(anchors)) == len(anchors)
    assert {"segmentation-far-test.csv", "segmentation-phantom-test.csv", "study-far.md", "study-phantom.md"} <= {
        path.name for path in (road / "report").iterdir()
    }


def test_validation_is_not_taken_for_test(road, make_result, drawn_charts):
    for name in ("real", "synthetic"):
        result = make_result(name, 0.5) | {"split": "validation"}
        for entry in result["subjects"]:
            entry["subject"] = f"chosen-{entry['subject']}"
        (road / f"results/a-{name}.json").write_text(json.dumps(result))  # read before the test results
    page = read(make(road, runs=[]))
    text = " ".join(page.text)
    assert "alone reaches Dice 0.80 on 2 whole test volumes" in text and "reaches Dice 0.50 on 2 whole valid" in text
    assert "Test patients: 2 of phantom" in text and "Validation patients: 2 of phantom" in text
    assert len(page.titles) == len(set(page.titles))
    beside = road / "report"
    for stem, mean in (("study-phantom", "0.8"), ("study-phantom__validation", "0.5")):
        (row,) = (
            row
            for row in csv.DictReader((beside / f"{stem}.csv").read_text().splitlines())
            if [row[key] for key in ("source", "region", "metric", "statistic")] == ["synthetic", "all", "dice", "mean"]
        )
        assert float(row["number"]) == pytest.approx(float(mean))
    charts = {path.name[3:] for path in (beside / "charts").glob("*.png")}
    assert {f"dice_of_every_{split}_subject__intracranial_vessels.png" for split in ("test", "validation")} <= charts


def test_validation_alone_is_named(road, make_result):
    shutil.rmtree(road / "results")
    (road / "results").mkdir()
    (road / "results/real.json").write_text(json.dumps(make_result("real", 0.9) | {"split": "validation"}))
    page = read(make(road, runs=[]))
    assert "Segmentation of held-out volumes, phantom, validation" in page.titles
    assert (road / "report/segmentation-phantom-validation.csv").is_file()


def test_a_file_is_not_written_twice(road, four_results):
    study = from_results(four_results, ["dice", "bavd_voxels"], {})
    study |= {"job": "comparison", "format_version": 1, "name": "phantom", "unet_steps": 5, "units": {}}
    (road / "results/comparison.json").write_text(json.dumps(study))
    with pytest.raises(UsageError, match="study-phantom"):
        make(road, runs=[])


def test_another_cohorts_headline_names_it(road, make_result):
    for path in (road / "results").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"cohort": "far"}))
    assert "on 2 whole test volumes of cohort far: 89%" in " ".join(read(make(road, runs=[])).text)


def test_the_page_bears_the_cohorts_own_name(road):
    """Results take it from cohort.json, whatever data.name says."""
    Cohort("far", (0.0, 100.0), {}).write(road / "phantom")
    for path in (road / "results").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"cohort": "far"}))
    (road / "results/threshold.json").unlink()
    text = " ".join(read(make(road, runs=[])).text)
    assert "Synthetic vessel patches, cohort far" in text and "cohort phantom" not in text
    assert "on 2 whole test volumes: 89%" in text
    assert re.search(r"evaluate=threshold name=threshold data.name=far data.cohort_dir=\S*/phantom", text)


def test_warnings_of_training_are_on_the_page(road, drawn_charts):
    with (road / "runs/demo-gan/metrics.jsonl").open("a") as file:
        file.write('{"step": 210, "warning/mode_collapse": 1.0}\n')
    text = " ".join(read(make(road)).text)
    assert text.count("mode collapse in 1 of 1 measurements, last at step 210") == 2  # the head, the training section
