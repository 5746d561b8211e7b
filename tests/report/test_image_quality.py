import copy
import csv
import io
import re

import pytest

from vesselgan.core.errors import DataError
from vesselgan.report import image_quality


def spread(mean: float, interval: list[float] | None = None) -> dict:
    return {"mean": mean, "sd": 0.001, "by_seed": [mean], "interval": interval}


RADII = {"bin_mm": 0.25, "real": [0.5, 0.25, 0.25], "synthetic": [0.75, 0.25, 0.0]}


def image_result(name: str, *, fid: float = 0.03, is_comparable: bool = True) -> dict:
    side = {"n": 20, "mean": 0.05, "sd": 0.01, "quantiles": {}, "undefined_patches": 0}
    statistic = {"unit": "mm", "real": side, "synthetic": side, "distance": 0.02, "interval": None}
    statistic["floor"] = {"n": 10, "real": 0.011, "synthetic": 0.022}
    return {
        "format_version": 1,
        "job": "image",
        "name": name,
        "cohort": "phantom",
        "split": "validation",
        "label_threshold": 0.3,
        "n": 20,
        "extractor": {
            "title": "MedicalNet ResNet-10" if is_comparable else "random features, not comparable",
            "sha256": "ab" * 32 if is_comparable else "cd" * 32,
            "is_checked": False,
            "is_comparable": is_comparable,
        },
        "preprocessing": {
            "background": "noise",
            "seed": 990,
            "scaling": "volume",
            "zero_share": {"reference": 0.25, "synthetic": fid},
            "num_constant": {"reference": 0, "synthetic": 3},
        },
        "reference": {
            "split": "validation",
            "is_held_out": True,
            "patients": 2,
            "count": 20,
            "purpose": "unet",
            "kinds": {"grid": 7, "vessel": 13},
        },
        "training_overlap": "none: 20 reference patches against 8 training patches, by patient and hash",
        "method": {"num_clusters": 10, "num_runs": 10, "num_angles": 1001, "seeds": [1, 2], "max_patches": None},
        "scores": {"fid": spread(fid, [fid - 0.01, fid + 0.01]), "prd_auc": spread(0.8)},
        "floor": {
            "n": [10, 10],
            "synthetic": {"fid": spread(2 * fid), "prd_auc": spread(0.7)},
            "real": {"fid": spread(0.005), "prd_auc": spread(0.95)},
        },
        "ms_ssim": {"real": 0.1, "synthetic": 0.2, "num_scales": 3},
        "pairwise_distance": {"real": 1.0, "synthetic": 0.9},
        "nearest_distance": 0.5,
        "labels": {
            "n": 20,
            "statistics": {"radius_mm": statistic, "radius_histogram": RADII},
            "consistency_controls": {"real": {"shifted": 0.7, "shuffled": 0.5}},
        },
        "curve": {"precision": [0.0, 0.6, 0.8], "recall": [1.0, 0.7, 0.0]},
        "notes": ["a <note>"],
        "inputs": {"reference shards": "12" * 32, "synthetic shards": name},
    }


def test_models_that_were_scored_alike_share_the_papers_table():
    (group,) = image_quality.groups([image_result("gp", fid=0.04), image_result("sn_mp", fid=0.02), {"job": "other"}])
    lines = image_quality.score_lines(group)
    heads = ["model", "FID", "paper", "FID, 95 % interval", "PRD-AUC", "paper", "PRD-AUC, 95 % interval"]
    assert image_quality.heads_of(group)[:7] == heads
    assert [line[0] for line in lines] == ["GP", "SN", "SN-MP", "c-SN-MP"]
    assert lines[0][1:7] == ["0.0400 (0.0010)", "0.0381", "0.0300 to 0.0500", "0.800 (0.001)", "0.80", "not defined"]
    assert lines[0][7] == "0.200 (real 0.100)"
    assert lines[1] == ["SN", "not run", "0.0322", "not run", "not run", "0.82", *["not run"] * 3]
    assert (lines[2][1], lines[2][2], lines[2][5]) == ("0.0200 (0.0010)", "0.0206", "0.87")
    assert image_quality.floor_lines(group)[1] == ["sn_mp", "10", "0.0400", "0.0050", "0.700", "0.950"]
    assert group.title == (
        "phantom: 20 patches on either side; real ones of split validation (held out), 2 patients, drawn from 7 grid "
        "patches, 13 vessel-centred ones; MedicalNet ResNet-10 (file not checked); zero voxels as noise; 10 clusters, "
        "means over 2 seeds"
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("n",), 19),
        (("cohort",), "other"),
        (("extractor", "sha256"), "ef" * 32),
        (("preprocessing", "background"), "zero"),
        (("method", "num_clusters"), 20),
        (("reference", "split"), "train"),
        (("inputs", "reference shards"), "34" * 32),
    ],
)
def test_unlike_results_never_share_a_table(path, value):
    other = copy.deepcopy(image_result("other"))
    holder = other
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    found = image_quality.groups([image_result("one"), other])
    assert [[result["name"] for result in group.results] for group in found] == [["one"], ["other"]]


def test_label_thresholds_part_no_table_of_images_and_stand_at_the_labels():
    """FID and PRD see no label."""
    other = image_result("other") | {"label_threshold": 0.5}
    (group,) = image_quality.groups([image_result("one"), other])
    assert [result["name"] for result in group.results] == ["one", "other"]
    part = image_quality.section([image_result("one"), other])
    for text in (part.html, part.files["table-1.md"]):
        assert "Labels of one, cut at 0.3" in text and "Labels of other, cut at 0.5" in text


def test_how_it_was_measured_stands_beside_it():
    part = image_quality.section([image_result("gp", fid=0.03)])
    for text in (part.html, part.files["table-1.md"]):
        assert "MS-SSIM, 3 scales" in text and "none is given below five patients" in text
        assert "filled with noise: reference 25.0%, synthetic 3.0%; patches of one value: reference 0, sy" in text
    assert "Vessel radius. Labels of gp, cut at 0.3" in part.html
    rows = csv.DictReader(io.StringIO(part.files["table-1.csv"]))
    radii = {row["statistic"]: float(row["number"]) for row in rows if row["score"] == "radius_histogram"}
    assert radii["synthetic to 0.25 mm"] == 0.75 and radii["real to 0.75 mm"] == 0.25 and len(radii) == 6


def test_random_features_are_marked_everywhere_and_stand_beside_nothing_of_the_paper():
    result = image_result("gp", is_comparable=False)
    (group,) = image_quality.groups([result])
    for lines in (image_quality.score_lines(group), image_quality.floor_lines(group)):
        assert [line[0] for line in lines] == ["gp (random features, not comparable)"]
    part = image_quality.section([result])
    first, second = part.html.split("Table 1, image quality")[1:]
    # The table, figure 5 and the floor.
    assert first.count("Random features, not comparable.") == 3 and "random" not in second.lower()
    assert "Labels of gp (random features, not comparable), cut at 0.3" in first
    # Wherever the run is named, in tables, figures and their keys, it is named so.
    named = re.findall(r"\bgp\b(?! \(random features, not comparable\))", part.html + part.files["table-1.md"])
    assert named == []
    assert "<th>paper</th>" not in first and "The paper" not in first
    assert second.count("<th>paper</th>") == 2 and second.count("not run") == 4 * 6
    assert part.files["table-1.md"].count("random features, not comparable") >= 3
    rows = list(csv.DictReader(io.StringIO(part.files["table-1.csv"])))
    assert {row["features"] for row in rows} == {"random features, not comparable"}


def test_the_prd_curve_is_drawn_with_recall_to_the_right():
    curves, radii, *_ = image_quality.section([image_result("gp")]).html.split("</figure>")
    (path,) = re.findall(r'class="line s0" d="([^"]+)"', curves)
    assert "Vessel radius" in radii
    # Recall 1, 0.7, 0 at precision 0, 0.6, 0.8 in a square of 330 that begins at 58 and ends at 342 from the top.
    assert path == "M388.0 342.0L289.0 144.0L58.0 78.0"


def test_a_run_tells_the_model_that_its_patches_are_of(make_run):
    run = make_run("some-name", {"variant": {"name": "c_sn_mp"}})
    made_by_it = image_result("first try") | {"synthetic": {"run": "some-name"}}
    (group,) = image_quality.groups([made_by_it])
    lines = image_quality.score_lines(group, [run])
    assert [line[0] for line in lines] == ["GP", "SN", "SN-MP", "c-SN-MP (first try)"]
    assert lines[3][2] == "0.0244"


def test_the_csv_holds_full_numbers_and_the_page_escapes_its_texts():
    result = image_result("<gp>", fid=1 / 3)
    rows = list(csv.DictReader(io.StringIO(image_quality.format_csv(image_quality.groups([result])))))
    fid = {row["statistic"]: row["number"] for row in rows if row["score"] == "fid"}
    assert fid["mean"] == repr(1 / 3) and fid["floor real"] == "0.005"
    radius = {row["statistic"]: row["number"] for row in rows if row["score"] == "radius_mm"}
    assert (radius["distance"], radius["low"], radius["floor synthetic"]) == ("0.02", "", "0.022")
    page = image_quality.section([result]).html
    assert "&lt;gp&gt;" in page and "a &lt;note&gt;" in page and "<gp>" not in page
    assert "Training patches among the real ones: none: 20 reference patches against 8" in page
    assert image_quality.label_lines(result) == [
        ["radius, mm", "0.05 (0.01)", "0.05 (0.01)", "0.02", "not defined", "10", "0.022", "0.011"]
    ]


def test_nothing_and_too_much_are_said():
    assert "not run: no result of evaluate=image" in image_quality.section([]).html
    with pytest.raises(DataError, match="two image results are called 'gp'"):
        image_quality.groups([image_result("gp"), image_result("gp")])
    with pytest.raises(DataError, match="image result 'gp' lacks scores, floor"):
        broken = {k: v for k, v in image_result("gp").items() if k not in ("scores", "floor")}
        image_quality.groups([broken])
