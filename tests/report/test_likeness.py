"""Synthetic patches that are unlike the real ones, and labels that are empty: said at the head of the page."""

import json
import re
import shutil

import pytest

from vesselgan.config.compose import compose
from vesselgan.report import likeness, page
from vesselgan.report.answer import answer
from vesselgan.report.runs import read_run

from ..conftest import write_set


def galleries(road, *settings: str):
    config = compose("report", [f"work_dir='{road}'", *settings])
    run = read_run(road / "runs/demo-gan")
    return run, *page.read_galleries(config, [], [run])


def test_like_patches_give_no_warning(road):
    synthetic = road / "runs/demo-gan/synthetic"
    shutil.rmtree(synthetic)
    write_set(synthetic, range(10), ["synthetic-7"], kind="synthetic")
    run, real, made = galleries(road)
    assert likeness.warnings(made[run.folder], real) == []


@pytest.mark.parametrize("has_real", [True, False])
def test_empty_labels_are_a_warning(road, has_real):
    run, real, made = galleries(road, "data.label_threshold=0.9")  # the scores are 0.8 at most
    head = answer([], [run], real if has_real else None, made, [])
    (text,) = [text for text in head.warnings if "empty" in text]
    assert "all of the 6 labels" in text and "threshold 0.9" in text
    # The bar is 16 x 4 x 4 of 4,096 voxels.
    assert ("vessel fraction 0 against 0.0625" in text) == has_real
    (figure,) = head.pictures
    assert "The synthetic label is empty" in figure.caption


def test_a_label_is_shown_as_its_unet_learned_it(road, make_result):
    manifest = road / "runs/demo-gan/synthetic/manifest.json"
    made = json.loads(manifest.read_text())
    gan = {"run": "demo-gan", "weights_sha256": "12"}
    manifest.write_text(json.dumps(made | {"extra": gan}))
    settings = {"source": "synthetic", "label_threshold": 0.7, "run": "unet-1", "checkpoint": "step_00000100"}
    result = make_result("synthetic", 0.8) | {"gan": gan, "segmented_with": settings}
    (road / "results/synthetic.json").write_text(json.dumps(result))
    words = [f"work_dir='{road}'", f"runs=['{road}/runs/demo-gan']"]
    text = re.sub("<[^>]*>", "", page.report(compose("report", words)).read_text())
    assert "synthetic labels: threshold 0.7" in text and "Synthetic label at threshold 0.7" in text
    assert "synthetic patches of demo-gan, label threshold 0.7, weights of step 100 (unet-1)" in text
    text = page.report(compose("report", [*words, "data.label_threshold=0.2"])).read_text()
    assert "synthetic labels: threshold 0.2" in text
