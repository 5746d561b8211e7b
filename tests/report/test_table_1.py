import copy
import csv
import io
import re

import pytest
import yaml

from vesselgan.config.compose import compose, to_yaml
from vesselgan.core.errors import DataError
from vesselgan.report import table_1
from vesselgan.report.blocks import Figure, Section, markdown
from vesselgan.viz import plots


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


def test_models_scored_alike_share_the_papers_table():
    (group,) = table_1.groups([image_result("gp", fid=0.04), image_result("sn_mp", fid=0.02), {"job": "other"}])
    frame = table_1.score_table(group)
    assert frame.index.tolist() == ["GP", "SN-MP"]
    assert frame.loc["GP"].tolist() == [
        "0.0400\n[0.0300, 0.0500]\npaper 0.0381", "0.800\npaper 0.80", "0.200\nreal 0.100",
        "0.900\nreal 1.000"
    ]  # fmt: skip
    # The others share a line.
    missing = ["SN (paper: FID 0.0322, PRD-AUC 0.82)", "c-SN-MP (paper: FID 0.0244, PRD-AUC 0.86)"]
    assert table_1.missing_models(group, []) == missing
    assert frame.loc["SN-MP", "FID"].split("\n")[::2] == ["0.0200", "paper 0.0206"]
    assert table_1.floor_rows(group)[1] == ["sn_mp", "10", "0.0400", "0.0050", "0.700", "0.950"]
    for text in ("20 patches", "validation (held out)", "2 patients", "file not checked", "as noise"):
        assert text in group.title


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
    found = table_1.groups([image_result("one"), other])
    assert [[result["name"] for result in group.results] for group in found] == [["one"], ["other"]]


def test_label_thresholds_part_no_image_table():
    """FID and PRD see no label."""
    other = image_result("other") | {"label_threshold": 0.5}
    (group,) = table_1.groups([image_result("one"), other])
    assert [result["name"] for result in group.results] == ["one", "other"]


def texts_of(part: Section) -> str:
    """All texts of a section, those of its charts too."""
    figures = [block for block in part.blocks if isinstance(block, Figure)]
    texts = [f"{figure.name} {figure.caption} {[chart.title for chart in figure.charts]}" for figure in figures]
    return markdown(part.blocks) + "\n".join(texts)


def test_random_features_are_marked_everywhere():
    result = image_result("gp", is_comparable=False)
    (group,) = table_1.groups([result])
    marked = "gp (random features, not comparable)"
    assert table_1.score_table(group).index.tolist() == [table_1.floor_rows(group)[0][0]] == [marked]
    part = table_1.section([result])
    text = part.files["table-1.md"]
    # Wherever the run is named, in tables, figures and their keys, it is named so.
    assert re.findall(r"\bgp\b(?! \(random features, not comparable\))", texts_of(part)) == []
    assert "paper" not in text and "not run" not in text
    rows = list(csv.DictReader(io.StringIO(part.files["table-1.csv"])))
    assert {row["features"] for row in rows} == {"random features, not comparable"}


def test_the_prd_curve_has_recall_on_x(monkeypatch):
    drawn = []
    curves = plots.curves
    monkeypatch.setattr(plots, "curves", lambda series, **axes: drawn.append((series, axes)) or curves(series, **axes))
    table_1.section([image_result("gp")])
    ((series,), axes) = drawn[0]
    assert axes["x_label"] == "recall" and series.x.tolist() == [1.0, 0.7, 0.0] and series.y.tolist() == [0.0, 0.6, 0.8]


def test_a_run_names_its_patches_model(make_run):
    run = make_run("some-name", {"variant": {"name": "c_sn_mp"}})
    made_by_it = image_result("first try") | {"synthetic": {"run": "some-name"}}
    (group,) = table_1.groups([made_by_it])
    frame = table_1.score_table(group, [run])
    assert frame.index.tolist() == ["c-SN-MP (first try)"]
    assert frame.iloc[0, 0].endswith("\npaper 0.0244")


@pytest.mark.parametrize(
    ("change", "is_the_papers"),
    [
        ("variant.width=16", True),
        ("variant.n_critic=2", True),
        ("variant.condition=label variant.generator_norm=group", False),
        ("variant.generator_norm=group", False),
        ("variant.critic_norm=instance", False),
        ("variant.penalty_weight=0", False),
    ],
)
def test_a_changed_variant_is_not_the_papers(make_run, change, is_the_papers):
    run = make_run("mine", yaml.safe_load(to_yaml(compose("train_gan", ["variant=sn_mp", *change.split()]))))
    (group,) = table_1.groups([image_result("mine") | {"synthetic": {"run": "mine"}}])
    assert ("paper" in table_1.score_table(group, [run]).iloc[0, 0]) == is_the_papers
    assert run.title == ("sn_mp (mine)" if is_the_papers else "sn_mp, changed (mine)")


def test_the_csv_holds_full_numbers():
    result = image_result("<gp>", fid=1 / 3)
    part = table_1.section([result])
    rows = list(csv.DictReader(io.StringIO(part.files["table-1.csv"])))
    fid = {row["statistic"]: row["number"] for row in rows if row["score"] == "fid"}
    assert fid["mean"] == repr(1 / 3) and fid["floor real"] == "0.005"
    radius = {row["statistic"]: row["number"] for row in rows if row["score"] == "radius_mm"}
    assert (radius["distance"], radius["low"], radius["floor synthetic"]) == ("0.02", "", "0.022")
    assert "&lt;gp>" in part.files["table-1.md"] and "a &lt;note>" in part.files["table-1.md"]
    assert table_1.label_rows(result) == [
        ["radius, mm", "0.05 (0.01)", "0.05 (0.01)", "0.02", "not defined", "10", "0.022", "0.011"]
    ]


def test_nothing_is_not_run_and_twice_refused():
    assert "not run" in table_1.section([]).files["table-1.md"]
    with pytest.raises(DataError, match="gp"):
        table_1.groups([image_result("gp"), image_result("gp")])
    with pytest.raises(DataError, match="scores, floor"):
        broken = {k: v for k, v in image_result("gp").items() if k not in ("scores", "floor")}
        table_1.groups([broken])
