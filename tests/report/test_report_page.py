"""The page as a whole: complete, offline, escaped, honest about what is missing."""

import csv
import json
import re
import shutil
from collections import Counter, defaultdict
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vesselgan.config import compose
from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.report import figures
from vesselgan.report.page import report


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """Pictures of a quarter of the size: what is tested here does not depend on it."""
    monkeypatch.setattr(figures, "SIDE", 64)
    monkeypatch.setattr(figures, "SIDE_3D", 64)


VOID = {"meta", "img", "br", "link", "input", "hr"}
FETCHING = ("src", "href", "srcset", "data", "poster", "action", "xlink:href")


class Reader(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.rows, self.text = [], [], [], []
        self.headings = defaultdict(list)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)
            if self.open and self.open[-1] in ("h2", "h3"):
                self.headings[self.open[-1]].append(data)
            if "tr" in self.open:
                self.rows[-1] += data + " "


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def make(road, *, runs=None):
    runs = [road / "runs/demo-gan"] if runs is None else runs
    quoted = ",".join(f"'{run}'" for run in runs)
    return report(compose.compose("report", [f"work_dir='{road}'", f"runs=[{quoted}]"]))


def test_page_is_whole_and_the_table_has_five_rows(road):
    path = make(road)
    assert path == road / "report/index.html"
    page = read(path)
    text = " ".join(page.text)
    assert list(page.headings["h2"]) == [
        "Segmentation of held-out volumes",
        "The paper's tables",
        "Image quality and labels",
        "Image quality against segmentation",
        "Synthetic patches",
        "Training and networks",
        "Cohorts",
        "What differs from the paper",
        "Provenance",
    ]
    body = [
        row
        for row in page.rows
        if re.match(r"(Best global|U-Net on (real|synthetic) |U-Net on synthetic,|The paper)", row)
    ][:5]
    assert all("sub-07" in row and "sub-08" in row for row in body[:4])
    assert "0.900 (0.014)" in body[1] and "0.820 (0.017)" in body[4]
    assert "not run: no result of evaluate=image" in text and "not run: figure 3 of phantom" in text
    assert "6 of 6 aims reached" in text
    assert "200 generator steps (finished, 120 ms each, 2 critic steps skipped)" in text
    for name in ("Table 1,", "Table 2,", "Table 3,", "Table A.1,", "Table B.1,", "Figure 2,", "Figure 4,", "Figure 6,"):
        assert name in text, name
    assert text.count("U-Net on synthetic; SN-MP".split(";")[0]) > 3
    assert sum(tag == "img" for tag, _ in page.tags) == 2 * 4 * 2 + 4 * 2 + 4 * 4  # pairs, renderings, neighbours
    beside = {path.name for path in (road / "report").iterdir()}
    assert beside >= {"segmentation.md", "table-1.csv", "table-2.csv", "study-phantom.csv", "study-phantom.md"}
    assert beside >= {"figure-4.png", "figure-2-1.csv", "image-against-segmentation.csv", "deviations.csv"}
    assert beside >= {"nearest-demo-gan.png", "nearest-demo-gan.csv"}
    assert not re.search(r"\b1 (\w+ )?(subjects|patients|patches|seeds|clusters|inputs|steps|parts)\b", text)


def test_page_fetches_nothing(road):
    path = make(road)
    source = path.read_text(encoding="utf-8")
    for tag, attributes in read(path).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name in FETCHING:
            assert attributes.get(name, "#").startswith(("data:image/png;base64,", "#"))
        assert not any(name.startswith("on") for name in attributes)
    outside = re.sub(r"base64,[A-Za-z0-9+/=]+", "", source)
    assert not re.search(r"https?:|//\w|@import|url\(", outside)
    assert "default-src 'none'" in source


def test_text_from_files_is_escaped(road):
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
    page = read(make(road, runs=[run]))
    assert not any(tag in ("script", "b>gan") for tag, _ in page.tags)
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert evil in " ".join(page.text)


def test_commands_and_their_paths_stay_out_of_the_page(road):
    source = make(road).read_text(encoding="utf-8")
    assert "secret-path" not in source and str(road) not in source


def test_missing_parts_say_not_run(road):
    shutil.rmtree(road / "results")
    shutil.rmtree(road / "phantom")
    shutil.rmtree(road / "runs/demo-gan/synthetic")
    (road / "runs/demo-gan/metrics.jsonl").unlink()
    text = " ".join(read(make(road)).text)
    assert text.count("not run") >= 4 * 6 + 6 + 2
    assert "0.820 (0.017)" in text  # the paper's row stays
    text = " ".join(read(make(road, runs=[])).text)
    assert "no run directory was given" in text and "Figure 4, samples of GANs: no run has any" in text


def test_missing_training_shards_leave_the_synthetic_half(road):
    shutil.rmtree(road / "phantom")
    page = read(make(road))
    assert sum(tag == "img" for tag, _ in page.tags) == 4 * 2 + 4
    text = " ".join(page.text)
    assert text.count("not run: no training shards") == 2  # slices and renderings
    assert "not run: the cohort's training shards are not there" in text


def test_copied_samples_are_shown_beside_their_twins_at_distance_zero(road, write_set):
    made = road / "runs/demo-gan/synthetic"
    shutil.rmtree(made)
    write_set(made, origin="synthetic", subjects=["synthetic-7"], patches=[5, 4, 3, 2, 1, 0])
    text = " ".join(read(make(road)).text)
    pairs = re.findall(r"sample (\d) \| sub-0\d, patch (\d) \(vessel\)\s+distance (0\.00\d)", text)
    assert len(pairs) == 4
    rows = list(csv.DictReader((road / "report/nearest-demo-gan.csv").read_text().splitlines()))
    shown = [row for row in rows if row["kind"] == "shown"]
    assert [(row["patch"], row["nearest training patch"]) for row in shown] == [pair[:2] for pair in pairs]
    assert Counter(row["kind"] for row in rows) == {"shown": 4, "synthetic": 6, "real to another subject": 10}
    # Four rows of two slices and two projections, of which a copy shows the same.
    sheet = np.asarray(Image.open(road / "report/nearest-demo-gan.png"))
    assert np.array_equal(sheet[6:70, 6:70], sheet[6:70, 76:140]) and sheet.shape == (4 * 70 + 6, 4 * 70 + 6, 3)
    assert all(int(sample) + int(twin) == 5 for sample, twin, _ in pairs)
    assert re.search(r"6\s+of 6\s+synthetic samples lie nearer", text)


def test_patches_may_lie_elsewhere_than_in_the_run(road):
    shutil.move(road / "runs/demo-gan/synthetic", road / "studies/gans/demo-gan")
    words = [f"work_dir='{road}'", f"runs=['{road}/runs/demo-gan']"]
    page = read(report(compose.compose("report", [*words, f"synthetic=['{road}/studies/gans/demo-gan']"])))
    assert "Figure 4, mid-axial slices." in " ".join(page.text)
    with pytest.raises(UsageError, match="synthetic: 2 folders for 1 runs"):
        report(compose.compose("report", [*words, "synthetic=[a,b]"]))


def test_foreign_patch_size_is_a_usage_error(road):
    manifest = road / "runs/demo-gan/synthetic/manifest.json"
    content = json.loads(manifest.read_text())
    content["patch_shape"] = [32, 32, 32]
    manifest.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"\[32, 32, 32\]"):
        make(road)


def test_damaged_result_writes_no_page(road):
    (road / "results/real.json").write_text("{")
    with pytest.raises(DataError, match="real.json"):
        make(road)
    assert not (road / "report").exists()


def test_output_that_cannot_be_written_is_a_resource_error(road):
    (road / "report").write_text("in the way")
    with pytest.raises(ResourceError, match="report"):
        make(road)


def test_many_subjects_get_a_table_of_their_own(road):
    for name in ("real", "threshold"):
        path = road / f"results/{name}.json"
        result = json.loads(path.read_text())
        result["subjects"] = [
            dict(result["subjects"][0], subject=f"sub-{k:02d}", region=region)
            for k in range(13)
            for region in ("all", "intracranial")
        ]
        path.write_text(json.dumps(result))
    page = read(make(road))
    assert sum("sub-12" in row for row in page.rows) == 2
    text = " ".join(page.text)
    assert "different subjects" in text  # the other two rows still have two
    assert "Left out, for they were scored on different subjects: shuffled; synthetic." in text
    means = {r["row"] for r in csv.DictReader((road / "report/segmentation.csv").read_text().splitlines())}
    assert means == {"threshold", "real", "paper"}
    study = csv.DictReader((road / "report/study-phantom.csv").read_text().splitlines())
    assert {row["source"] for row in study} == {"threshold", "real"}


def test_results_of_two_cohorts_get_sections_and_files_of_their_own(road, make_result):
    (road / "results/far.json").write_text(json.dumps(make_result("real", 0.7, cohort="far")))
    page = read(make(road, runs=[]))
    titles = page.headings["h2"]
    assert len(titles) == len(set(titles)) and {"The paper's tables, far", "The paper's tables, phantom"} <= set(titles)
    anchors = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{anchor}" for anchor in anchors] and len(set(anchors)) == len(anchors)
    assert {"segmentation-far-test.csv", "segmentation-phantom-test.csv", "study-far.md", "study-phantom.md"} <= {
        path.name for path in (road / "report").iterdir()
    }
