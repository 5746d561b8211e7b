"""The page's further sections: agreement of scores, cohorts, error maps, networks, deviations, and the page's size."""

import csv
import io
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from vesselgan.config import compose
from vesselgan.core.errors import DataError
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.synthetic_volumes import COMPARISON
from vesselgan.formats.volumes import write_volume
from vesselgan.report import (
    agreement,
    cohorts,
    deviations,
    error_maps,
    heads,
    page,
    table_1,
    table_2,
    table_3_rows,
    training,
)
from vesselgan.report.blocks import Figure
from vesselgan.report.runs import read_run

from ..conftest import write_subject
from .test_table_1 import image_result


def by_pencil(models: pd.DataFrame, image: str, use: str) -> float:
    """(concordant - discordant) / pairs, where no two values are equal; better with better is concordant."""
    signs = {"fid": -1, "prd_auc": 1, "dice": 1, "bavd_voxels": -1}
    pairs = list(itertools.combinations(models.to_dict("records"), 2))
    agree = [signs[image] * (a[image] - b[image]) * signs[use] * (a[use] - b[use]) > 0 for a, b in pairs]
    return (2 * sum(agree) - len(pairs)) / len(pairs)


def test_kendalls_tau_of_the_papers_numbers():
    (_, all_vessels), (_, inside) = agreement.all_models([], []).groupby("scores of", sort=False)
    # FID ranks SN-MP, c-SN-MP, SN, GP; Dice c-SN-MP, SN, GP, SN-MP: 3 of 6 pairs agree. bAVD (2.648, 2.425, 2.334,
    # 1.859): only SN-MP and c-SN-MP are exchanged, so 5 of 6 agree: (5 - 1) / 6.
    assert agreement.kendall(all_vessels, "fid", "dice") == pytest.approx(0)
    assert agreement.kendall(all_vessels, "fid", "bavd_voxels") == pytest.approx(2 / 3)
    for models in (all_vessels, inside):
        for image, use in itertools.product(agreement.IMAGE_SCORES, agreement.UNET_SCORES):
            assert agreement.kendall(models, image, use) == pytest.approx(by_pencil(models, image, use))


def test_kendalls_tau_needs_three_unequal_scores():
    models = pd.DataFrame({"fid": [0, 1, 2], "prd_auc": [1, 1, 1], "dice": [0, -1, -2]})
    assert agreement.kendall(models, "fid", "dice") == pytest.approx(1)  # the lower FID, the higher Dice
    assert agreement.kendall(models, "prd_auc", "dice") is None
    assert agreement.kendall(models[:2], "fid", "dice") is None


def test_our_models_are_joined_by_weights(make_result):
    image = {"name": "first", "scores": {"fid": {"mean": 0.5}, "prd_auc": {"mean": 0.6}}}
    synthetic = make_result("synthetic", 0.8) | {"gan": {"run": "a", "weights_sha256": "12"}}
    made = table_3_rows.from_results([make_result("real", 0.9), synthetic], ["dice", "bavd_voxels"], {"a": "sn"})
    (model,) = agreement._models("here", made, "phantom", "all", {("a", "12", ""): image})
    assert model == ("here", "SN", 0.5, 0.6, pytest.approx(0.8), pytest.approx(1.0))
    # A later checkpoint, another run, heads, patches that do not say.
    for other in (("a", "34", ""), ("b", "12", ""), ("a", "12", "heads, noise None"), None):
        assert list(agreement._models("here", made, "phantom", "all", {other: image})) == []


def test_scores_of_runs_and_cohorts_stay_apart(monkeypatch):
    def facts(value: float) -> dict:
        return {"all": {"dice": {"mean": value}, "bavd_voxels": {"mean": value}}}

    rows, images = [], []
    for number, name in enumerate(("one", "two", "three")):
        gan = {"run": name, "weights_sha256": str(number)}
        scores = {cohort: facts(0.1 * number) for cohort in ("own", "other")}
        rows.append({"name": f"gp-{name}", "kind": "synthetic", "title": f"U-Net on gp-{name}", "variant": "gp",
                     "scores": scores, "gan": gan})  # fmt: skip
        scored = {"fid": {"mean": 1.0 * number}, "prd_auc": {"mean": 0.2 * number}}
        images.append({"name": name, "cohort": "own", "n": 20, "synthetic": gan, "scores": scored})
    comparison = {"cohorts": ["own", "other"], "rows": rows}
    groups = [table_1.Group("own", True, tuple(images))]
    groups.append(table_1.Group("other", True, tuple(image | {"cohort": "other"} for image in images)))
    monkeypatch.setattr(table_1, "groups", lambda results: groups)
    frame = agreement.all_models([], [comparison])
    ours = [(title, models) for title, models in frame.groupby("scores of", sort=False) if "paper" not in title]
    assert [title for title, _ in ours] == [
        "own, all vessels; image scores of table 1, 20 patches",
        "other, all vessels, images of own; image scores of table 1, 20 patches",
    ]
    for _, models in ours:
        assert models.model.tolist() == ["GP (gp-one)", "GP (gp-two)", "GP (gp-three)"]
        assert models.fid.tolist() == [0.0, 1.0, 2.0]


def test_unlike_sets_have_taus_of_their_own(make_result):
    def images(n: int) -> list[dict]:
        gans = [("sn", "a", 0.01 * n), ("gp", "b", 0.02 * n)]
        return [image_result(run, fid=fid) | {"n": n, "synthetic": gan_record(run, sha)} for run, sha, fid in gans]

    def gan_record(run: str, sha: str) -> dict:
        return {"run": run, "weights_sha256": sha}

    def comparison(name: str, dice: float) -> dict:
        gans = {"sn": ("sn", "a"), "gp": ("gp", "b"), "gp-again": ("gp", "b")}
        unets = [
            make_result(title, dice + 0.01 * number)
            | {"segmented_with": {"source": "synthetic"}, "gan": gan_record(*gan)}
            for number, (title, gan) in enumerate(gans.items())
        ]
        return table_3_rows.from_results(unets, ["dice", "bavd_voxels"], {"sn": "sn", "gp": "gp"}) | {"name": name}

    results, studies = [*images(10), *images(20)], [comparison("one", 0.5), comparison("two", 0.6)]
    frame = agreement.all_models(results, studies)
    ours = frame[~frame["scores of"].str.startswith("the paper")]
    # Two image scorings, two studies, two regions; two GANs, one of which has two U-Nets: 0.51 and 0.52.
    sizes = ours.groupby("scores of").size()
    assert sizes.tolist() == [2] * 8
    assert sorted(ours.dice[ours.model.str.startswith("GP")].round(2).unique()) == [0.52, 0.62]
    assert agreement.section(results, studies) is None


def test_a_label_threshold_is_its_gans():
    def row(run: str, threshold: float | None, dice: float) -> dict:
        gan = {"run": run, "weights_sha256": "12"}
        scores = {"here": {"all": {"dice": {"mean": dice}}}}
        return {"name": run, "kind": "synthetic", "gan": gan, "label_threshold": threshold, "scores": scores}

    rows = [row("a", 0.1, 0.5), row("a", 0.3, 0.6), row("b", 0.5, 0.4), row("c", None, 0.7)]
    first = {"cohorts": ["here"], "rows": rows}
    second = {"cohorts": ["here"], "rows": [row("a", 0.7, 0.9), row("d", 0.2, 0.1)]}
    # Of the U-Nets of one comparison the best; the first comparison is a study's.
    assert page._thresholds([first, second]) == {
        ("a", "12", ""): 0.3,
        ("b", "12", ""): 0.5,
        ("d", "12", ""): 0.2,
    }


def test_heads_and_patches_of_one_generator_are_two_models(make_result):
    """Each U-Net stands beside the image scores of the patches that it learned from."""
    network = {"run": "flow", "weights_sha256": "12"}
    made = {"patches": network, "heads": network | {"shape": [96, 112, 48]}}
    made["noisy"] = made["heads"] | {"noise": [0.0, 9.0]}
    images = [image_result(name, fid=fid) | {"synthetic": made[name]} for fid, name in enumerate(made)]
    unets = [
        make_result(name, 0.5 + 0.1 * number) | {"segmented_with": {"source": "synthetic"}, "gan": made[name]}
        for number, name in enumerate(made)
    ]
    comparison = table_3_rows.from_results(unets, ["dice", "bavd_voxels"], {"flow": "flow_label"}) | {"name": "one"}
    frame = agreement.all_models(images, [comparison])
    ours = frame[frame["scores of"].str.endswith("all vessels") & ~frame["scores of"].str.startswith("the paper")]
    assert dict(zip(ours.fid, ours.dice.round(1), strict=True)) == {0.0: 0.5, 1.0: 0.6, 2.0: 0.7}


def write_head(folder: Path, split: str = "test") -> Cohort:
    """A cohort of one subject: a mask over the left half, one vessel inside it and one outside."""
    folder.mkdir()
    label = np.zeros((8, 8, 4), np.uint8)
    label[1, 2:6, 1], label[6, 2:6, 1] = 1, 1
    mask = np.zeros((8, 8, 4), np.uint8)
    mask[:4] = 1
    arrays = {"image": label * 100.0 + 20, "label": label, "mask": mask}
    subject = write_subject(folder, split, arrays, np.eye(4), limits=(20.0, 120.0))
    cohort = Cohort("heads <b>", (0.0, 99.99), {"sub-1": subject})
    cohort.write(folder)
    return cohort


def test_figure_3_shows_vessels_inside_the_mask(tmp_path):
    shown = cohorts.panels_of(write_head(tmp_path / "heads").subjects["sub-1"])
    red = {name: (picture == (255, 92, 72)).all(axis=2) for name, picture in shown.items()}
    side = cohorts.SIDE
    assert {picture.shape for picture in shown.values()} == {(side, side, 3)}
    # X 1 is on the left of the picture and inside the mask, X 6 on the right and outside.
    assert red["vessel label"][:, : side // 2].any() and red["vessel label"][:, side // 2 :].any()
    assert red["label inside the mask"][:, : side // 2].any() and not red["label inside the mask"][:, side // 2 :].any()
    part = cohorts.section([str(tmp_path / "heads"), str(tmp_path / "none")])
    assert part.blocks[0].name == "Cohort heads <b>:" and list(part.files) == ["figure-3-heads__b_.png"]
    write_volume(tmp_path / "heads/mask.nii.gz", np.ones((8, 8, 4), np.uint8), np.eye(4))
    (_, note) = cohorts.section([str(tmp_path / "heads")]).blocks
    assert "sub-1 cannot be read" in note.text


def test_synthetic_heads_stand_beside_a_real_one(tmp_path, make_run):
    write_head(tmp_path / "cohort", "train")
    run = make_run("flow-1", {"variant": {"name": "flow_label"}})
    assert heads.section([run], tmp_path / "cohort") is None
    label = np.zeros((8, 8, 4), np.uint8)
    label[1:7, 3, 1] = 1
    out = RunDir(run.folder).synthetic_volumes
    for kind, array in {"images": label * np.float32(200), "labels": label, "masks": label}.items():
        write_volume(out / kind / "synthetic-1.nii.gz", array, np.eye(4))
    (out / COMPARISON).write_text('{"synthetic heads": {"components": [1, 1]}, "training cohort": {}}')
    figure, table = heads.section([run], tmp_path / "cohort").blocks
    assert [panel.title for panel in figure.panels] == ["Real", "flow_label (flow-1)"]
    assert [len(panel.cells[0].images) for panel in figure.panels] == [4, 4]
    assert figure.panels[1].cells[0].text == "2.3 % vessel in 1 component"
    assert table.frame.loc["components"].to_list() == ["1 to 1", "none"]
    (out / COMPARISON).write_text('{"synthetic heads": 3}')
    with pytest.raises(DataError, match=COMPARISON):
        heads.section([run], tmp_path / "cohort")


def test_another_runs_scores_are_not_the_only_runs(make_result):
    unnamed, named = make_result("synthetic", 0.8), {**make_result("synthetic", 0.8), "gan": {"run": "elsewhere"}}
    rows = table_3_rows.from_results([unnamed, named], ["dice"], {"a": "sn_mp"})["rows"]
    assert [row["variant"] for row in rows] == ["sn_mp", None]


def comparison_of(make_result) -> dict:
    results = [make_result("real", 0.9), make_result("synthetic", 0.8)]
    return table_3_rows.from_results(results, ["dice", "bavd_voxels"], {"a": "sn_mp"})


def write_maps(folder: Path, sources: list[str], subjects: list[str]) -> None:
    for source, subject in itertools.product(sources, subjects):
        path = folder / source / "phantom" / f"{subject}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 90, 3), 60, np.uint8)).save(path)


def test_figure_7_shows_one_shared_subject(tmp_path, make_result):
    write_maps(tmp_path, ["real"], ["sub-07", "sub-08", "sub-09"])
    write_maps(tmp_path, ["synthetic"], ["sub-08"])
    part = error_maps.section([comparison_of(make_result)], tmp_path)
    (figure,), files = part.blocks, part.files
    assert isinstance(figure, Figure) and len(figure.panels[0].cells) == 2 and "Subject sub-08" in figure.caption
    assert sorted(files) == ["figure-7-phantom-real.png", "figure-7-phantom-synthetic.png"]
    assert files["figure-7-phantom-real.png"] == (tmp_path / "real/phantom/sub-08.png").read_bytes()


def test_maps_of_one_seed_say_so(tmp_path, make_result):
    write_maps(tmp_path, ["real", "synthetic"], ["sub-07"])
    made = comparison_of(make_result)
    (one,) = error_maps.section([made], tmp_path).blocks
    (three,) = error_maps.section([made | {"seeds": [5, 1, 2]}], tmp_path).blocks
    assert "seeds" not in one.caption and "seed 5. Dice: mean over 3 seeds." in three.caption


def test_maps_of_named_patients_have_their_dice(tmp_path, make_result):
    write_maps(tmp_path, ["real", "synthetic"], ["sub-07"])
    made = comparison_of(make_result)
    for row in made["rows"]:  # as a study records it: scores by patient, where one has the name of another's visit
        row["patients"] = {"phantom": {"sub-07": "sub-08", "sub-17": "sub-08", "sub-08": "sub-07"}}
    (figure,) = error_maps.section([made], tmp_path).blocks
    assert isinstance(figure, Figure)
    texts = [cell.text for cell in figure.panels[0].cells]
    assert texts == [f"Dice {dice} (all vessels), Dice {dice} (intracranial)" for dice in ("0.810", "0.910")]
    assert "Subject sub-07" in figure.caption and "Dice: mean over this patient's 2 visits." in figure.caption


def test_maps_of_two_splits_stay_apart(tmp_path, make_result):
    write_maps(tmp_path, ["real", "synthetic"], ["sub-07", "sub-17"])
    validation = make_result("real", 0.9) | {"split": "validation"}
    validation["subjects"] = [entry | {"subject": "sub-17"} for entry in validation["subjects"][:2]]
    both = [comparison_of(make_result), table_3_rows.from_results([validation], ["dice"], {})]
    part = error_maps.section(both, tmp_path)
    assert [block.name for block in part.blocks] == [
        "Figure 7, error maps, phantom",
        "Figure 7, error maps, phantom, validation",
    ]
    assert len(part.files) == 3


def test_maps_are_of_the_scored_subjects(tmp_path, make_result):
    write_maps(tmp_path, ["real", "synthetic"], ["sub-99"])  # of another split
    assert error_maps.section([comparison_of(make_result)], tmp_path).files == {}


def test_missing_maps_are_told_damaged_refused(tmp_path, make_result):
    texts = [block.text for block in error_maps.section([comparison_of(make_result)], None).blocks]
    assert len(texts) == 2 and all(text.startswith("not run: error maps of ") for text in texts)
    write_maps(tmp_path, ["real", "synthetic"], ["sub-07"])
    (tmp_path / "real/phantom/sub-07.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(DataError, match="sub-07.png"):
        error_maps.section([comparison_of(make_result)], tmp_path)


def test_a_source_cannot_leave_the_maps_folder(tmp_path, make_result):
    write_maps(tmp_path, ["secret"], ["sub-07"])
    comparison = comparison_of(make_result)
    comparison["rows"] = [row | {"name": "../secret"} for row in comparison["rows"]]
    (tmp_path / "maps").mkdir()
    assert error_maps.section([comparison], tmp_path / "maps").files == {}


def test_a_damaged_architecture_is_a_data_error(road):
    (road / "runs/demo-gan/architecture.json").write_text('{"generator": {"layers": 3}}')
    with pytest.raises(DataError, match=r"architecture\.json"):
        training.section([read_run(road / "runs/demo-gan")])


def test_only_settings_unlike_the_papers_are_listed(make_run):
    own = compose.compose("train_gan", ["variant=sn", "data=phantom", "train.batch_size=16", "variant.n_critic=2"])
    run = make_run("mine", yaml.safe_load(compose.to_yaml(own)))
    assert deviations.changed_settings(run) == [("variant.n_critic", 1, 2), ("train.batch_size", 4, 16)]
    part = deviations.section([run])
    rows = list(csv.DictReader(io.StringIO(part.files["deviations.csv"])))
    assert rows[1] == {"run": "sn (mine)", "setting": "train.batch_size", "default": "4", "this run": "16"}


def test_the_papers_steps_are_the_same_everywhere(make_run):
    own = compose.compose("train_gan", ["variant=sn", "data=phantom", "train.max_steps=200"])
    part = deviations.section([make_run("mine", yaml.safe_load(compose.to_yaml(own)))])
    rows = csv.DictReader(io.StringIO(part.files["deviations.csv"]))
    # 2,350 patches are 587 whole batches of 4, a hundred times.
    (steps,) = [row["default"] for row in rows if row["setting"] == "train.max_steps"]
    assert steps == "58,700 (100 epochs)" and table_2.rows([])[0][5] == "58,700"


def test_skipped_steps_and_lines_are_explained(road):
    def caption(**settings: str) -> str:
        (road / "runs/demo-gan/config.yaml").write_text(yaml.safe_dump({"variant": {"name": "sn_mp", **settings}}))
        run = read_run(road / "runs/demo-gan")
        return next(b.caption for b in training.section([run]).blocks if b.kind == "figure" and "Losses" in b.name)

    assert "2 critic steps" not in caption() and "Faint" not in caption()  # 20 points have no running mean
    assert "overflow" in caption(precision="fp16") and "halved" in caption(precision="fp16")
    assert "not finite" in caption(precision="fp32")


def test_a_flow_does_not_differ_in_a_critic(make_run):
    own = compose.compose("train_gan", ["variant=flow", "data=phantom", "variant.width=32"])
    own.variant.learning_rate_critic = 1.0
    run = make_run("mine", yaml.safe_load(compose.to_yaml(own)))
    assert deviations.changed_settings(run) == [("variant.width", 48, 32)]
    assert "default" in deviations.section([run]).blocks[0].frame.columns


@pytest.mark.parametrize("name", ["../gp", "gp train.batch_size=3", "of_my_own", None])
def test_an_own_variant_is_compared_with_nothing(make_run, name):
    assert deviations.changed_settings(make_run("mine", {"variant": {"name": name, "width": 8}})) is None


def test_the_size_of_a_large_page_is_printed(road, monkeypatch, capsys):
    monkeypatch.setattr(page, "LARGE_PAGE", 10_000)
    page.report(compose.compose("report", [f"work_dir='{road}'", "runs=[]"]))
    assert re.search(r"warning: .*index.html has [\d.]+ KiB", capsys.readouterr().err)


def test_the_same_inputs_give_the_same_page(road, drawn_charts):
    words = [f"work_dir='{road}'", f"runs=['{road}/runs/demo-gan']"]
    made = []
    for out in ("one", "two"):
        path = page.report(compose.compose("report", [*words, f"out='{road}/{out}'"]))
        made.append(
            re.sub(r"\d\d \w+ 20\d\d, [\d:]+ UTC|20\d\d-\d\d-\d\d [\d:]+ UTC|settings\s\w{8}", "", path.read_text())
        )
    assert made[0] == made[1]
    beside = [
        {p.name: p.read_bytes() for p in (road / out).rglob("*.*") if p.suffix != ".html"} for out in ("one", "two")
    ]
    assert beside[0] == beside[1] and len(beside[0]) > 20


def test_charts_of_earlier_reports_are_removed(tmp_path):
    (tmp_path / "charts").mkdir()
    for name in ("01-old.png", "01-old.svg", "02-kept.png", "103-old.png", "mine.png"):
        (tmp_path / "charts" / name).write_bytes(b"old")
    page.write_all(tmp_path, "page", {"charts/02-kept.png": b"new", "table.csv": "a\n"})
    assert sorted(p.name for p in (tmp_path / "charts").iterdir()) == ["02-kept.png", "mine.png"]
    assert (tmp_path / "charts/02-kept.png").read_bytes() == b"new" and (tmp_path / "index.html").read_text() == "page"
