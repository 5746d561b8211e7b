"""A study's road: which commands, in which order, what decides, and what is refused before anything is started."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vesselgan.config import compose
from vesselgan.config.checks import unread
from vesselgan.config.overrides import groups
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.shards import content_hash
from vesselgan.workflow.stage import Stage
from vesselgan.workflow.study import run as study_run
from vesselgan.workflow.study import steps, sweep
from vesselgan.workflow.study.sources import run_sources
from vesselgan.workflow.study.sweep import run_sweep

from ...conftest import edit_json
from .conftest import write_made_up_cohort, write_made_up_shards, write_step


def home_of(config: object) -> Path:
    return Path(config.work_dir) / "studies" / config.name


def words_of(stage: Stage) -> list[tuple[str, list[str]]]:
    """(command, its words) of a stage."""
    found = []
    for command in stage.commands:
        start = command.index("vesselgan") + 1
        found.append((command[start].replace("-", "_"), list(command[start + 1 :])))
    return found


def parsed(stage: Stage) -> list[tuple[str, Any]]:
    """(command, configuration); a setting that the command does not know is an error."""
    return [(name, compose.parse(name, None, words).config) for name, words in words_of(stage)]


def typed(stage: Stage) -> list[tuple[str, dict[str, Any]]]:
    """(command, key -> value), as they are written."""
    pairs = [(name, [word.split("=", 1) for word in words if "=" in word]) for name, words in words_of(stage)]
    return [(name, {key: json.loads(value) for key, value in settings}) for name, settings in pairs]


def all_of(walked: list[Stage], command: str) -> dict[str, dict[str, Any]]:
    """Stage -> what is written of this command."""
    return {stage.name: settings for stage in walked for name, settings in typed(stage) if name == command}


def test_every_command_is_accepted_by_its_script(study, walked):
    config = study("seeds=[1,2]")
    run_sources(config, home_of(config))
    checked = set()
    for stage in walked:  # one of each kind: what differs within a kind are names and numbers
        for name, settings in typed(stage):
            if (kind := (name, settings.get("evaluate"), settings.get("data.source"))) not in checked:
                parsed(stage)
                checked.add(kind)
    assert len(checked) == 10
    count = Counter(settings.get("evaluate", name) for stage in walked for name, settings in typed(stage))
    # Per GAN two thresholds are tried with the first seed. Then six sources (real, 2, 2 with real, shuffled) with two
    # seeds each, of which the two winners were trained already: 4 + 12 - 2. Each of the 12 segments two cohorts.
    assert count == {"generate": 2, "train_unet": 14, "segment": 24, "report": 1} | {
        "label_threshold": 2, "segmentation": 24, "threshold": 2, "comparison": 1
    }  # fmt: skip
    assert len({stage.name for stage in walked}) == len(walked)


def test_a_smaller_study_keeps_no_other_results(study, ran, tmp_path):
    drawn = "image.extractor=random"
    home = home_of(study())
    run_sources(study("seeds=[1,2]", drawn), home)
    assert {"image-gp", "image-sn_mp", "comparison", "report"} < set(ran)
    for overrides, again in (
        (["seeds=[1,2]", drawn], []),  # nothing is done twice
        (["seeds=[1]", drawn], ["comparison"]),
        (["seeds=[1]", drawn, steps.override("runs", [str(tmp_path / "runs/gp")])], ["comparison", "report"]),
        (["seeds=[1]", steps.override("runs", [str(tmp_path / "runs/gp")])], ["report"]),
    ):
        ran.clear()
        run_sources(study(*overrides), home)
        assert [name for name in ran if name != "report"] == [name for name in again if name != "report"], overrides
        assert ("report" in ran) == bool(again), overrides
    assert list(json.loads((home / "sources.json").read_text())["rows"][0]["runs"]) == ["1"]
    assert [path.name for path in (home / "results").iterdir()] == ["comparison.json"]


AFTER_GP = {"generate-gp", "narrow-gp", "image-gp", "unet-gp-", "unet-real+gp", "unet-shuffled", "segment-gp"}
AFTER_GP |= {"segment-real+gp", "segment-shuffled", "score-gp", "score-real+gp", "score-shuffled"}
ALL_RESULTS = {"comparison", "report"}
CHANGES = {
    "the GAN was trained on": AFTER_GP | ALL_RESULTS,
    "the GAN was trained again": AFTER_GP | ALL_RESULTS,
    "patches were generated otherwise": AFTER_GP - {"generate-gp"} | ALL_RESULTS,
    "training patches were cut again": {"unet-real", "segment-real", "score-real"} | ALL_RESULTS,
    "the other cohort was prepared again": {"segment-", "score-"} | ALL_RESULTS,
    "the other cohort's label was edited": {"score-"} | ALL_RESULTS,
    "the own validation label was edited": {"score-threshold"} | ALL_RESULTS,
    "nothing was": set(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_outside_is_made_again(study, ran, tmp_path, change):
    config = study("seeds=[1]", "image.extractor=random")
    run_sources(config, home_of(config))
    ran.clear()
    run, synthetic = tmp_path / "runs/gp", home_of(config) / "gans/gp/synthetic"
    if change == "the GAN was trained on":
        write_step(run, 20)
    elif change == "the GAN was trained again":
        write_step(run, 10, weights="other")
    elif change == "patches were generated otherwise":
        edit_json(synthetic / "manifest.json", lambda manifest: manifest["shards"][0].update(sha256="1" * 64))
    elif change == "training patches were cut again":
        write_made_up_shards(tmp_path / "own/shards/unet/train", 11)
    elif change == "the other cohort was prepared again":
        write_made_up_cohort(tmp_path / "other", "other", {"x": "test", "y": "test"}, seed=60)
    elif "label was edited" in change:
        path = "other/x-label.nii.gz" if "other" in change else "own/b-label.nii.gz"
        (tmp_path / path).write_text("edited")
    else:
        write_step(run, 10)
        for name in ("log.txt", "provenance.json", "synthetic/manifest.json", "tensorboard/events"):
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_text((run / name).read_text() if (run / name).exists() else "new")
    run_sources(config, home_of(config))
    assert {start for start in CHANGES[change] if not any(name.startswith(start) for name in ran)} == set()
    assert [name for name in ran if not name.startswith(tuple(CHANGES[change]))] == []
    if "the other cohort" in change:
        assert all(name.endswith("-other") for name in ran if name not in ALL_RESULTS)
    ran.clear()
    run_sources(config, home_of(config))
    assert ran == []


def test_a_stopped_study_forgets_no_change(study, ran, tmp_path):
    """What a change makes stale is made again by the next start too, where the one before was stopped half way."""
    config = study("seeds=[1]")
    run_sources(config, home_of(config))
    write_step(tmp_path / "runs/gp", 20)
    runner, (gan, _) = steps.StageRunner(home_of(config)), steps.gans_of(config, [])
    steps.choose_threshold(config, home_of(config), gan, runner)
    ran.clear()
    run_sources(config, home_of(config))
    assert {"unet-real+gp-at-0.5-seed-1", "score-gp-seed-1-own", "comparison", "report"} <= set(ran)


def test_a_sweep_scores_the_gan_it_has(study, ran, tmp_path):
    grid = ["study=sweep", "runs=[]", "sweep.learning_rates=[4e-4]", "sweep.variant=sn_mp"]
    for steps_of_gan in (20, 40):
        ran.clear()
        config = study(*grid, f'sweep.overrides=["train.max_steps={steps_of_gan}"]')
        run_sweep(config, home_of(config))
        name = "sn_mp-rate-0.0004-batch-4"
        assert ran[:3] == [f"gan-{name}", f"generate-{name}", f"narrow-{name}"] and len(ran) == 5
    ran.clear()
    run_sweep(config, home_of(config))
    assert ran == []


def test_the_report_gets_the_studys_patches(study, walked):
    config = study()
    home = home_of(config)
    run_sources(config, home)
    (page,) = all_of(walked, "report").values()
    assert page["synthetic"] == [str(home / f"gans/{gan}/synthetic") for gan in ("gp", "sn_mp")]
    rows = {row["name"]: row["gan"] for row in json.loads((home / "sources.json").read_text())["rows"]}
    assert rows["real+gp"] == rows["gp"] == {"run": "gp", "weights_sha256": "ab" * 32} and rows["real"] is None


def test_image_scores_need_a_named_network(study, walked, tmp_path):
    config = study(steps.override("image.weights", tmp_path / "resnet.pth"))
    with pytest.raises(DataError, match="resnet.pth: no such file"):
        run_sources(config, home_of(config))
    assert walked == []  # not after hours
    (tmp_path / "resnet.pth").touch()
    run_sources(config, home_of(config))
    stages = {stage.name: stage for stage in walked if stage.name.startswith("image-")}
    assert list(stages) == ["image-gp", "image-sn_mp"]
    ((_, evaluated),) = parsed(stages["image-gp"])
    assert (evaluated.image.extractor, evaluated.image.weights) == ("medicalnet", str(tmp_path / "resnet.pth"))
    assert evaluated.data.label_threshold == 0.5  # the one that validation chose
    assert evaluated.image.synthetic.endswith("gans/gp/synthetic") and evaluated.data.cohort_dir.endswith("own")
    names = [stage.name for stage in walked]
    assert names.index("image-gp") < names.index("comparison")
    walked.clear()
    config = study()
    run_sources(config, home_of(config))
    assert not any(stage.name.startswith("image-") for stage in walked)


def test_every_source_gets_the_same_steps(study, walked):
    config = study("unet.max_steps=20", "unet.validate_every=10")
    run_sources(config, home_of(config))
    unets = all_of(walked, "train_unet")
    for name, unet in unets.items():
        assert unet["unet.max_steps"] == 20, name
        assert unet["unet.patience"] > 20 / 10, name  # more validations than there are
        assert unet["unet.filters"] == config.unet.filters
    sources = {name.split("-seed")[0]: (c["data.source"], c["data.shuffle_labels"]) for name, c in unets.items()}
    assert sources["unet-real"] == ("real", False)
    assert sources["unet-shuffled-at-0.5"] == ("synthetic", True)
    assert sources["unet-real+sn_mp-at-0.3"] == ("both", False)


def test_the_label_threshold_is_what_validation_says(study, walked):
    config = study()
    run_sources(config, home_of(config))
    for gan, threshold in (("gp", 0.5), ("sn_mp", 0.3)):
        record = json.loads((home_of(config) / f"gans/{gan}/label_threshold.json").read_text())
        assert (record["label_threshold"], record["validation_dice"]) == (threshold, 0.9)
        assert [entry["label_threshold"] for entry in record["candidates"]] == [0.3, 0.5]
    trained = all_of(walked, "train_unet")
    assert trained["unet-real+gp-at-0.5-seed-990"]["data.label_threshold"] == 0.5
    rows = {row["name"]: row for row in json.loads((home_of(config) / "sources.json").read_text())["rows"]}
    assert list(rows) == ["real", "gp", "sn_mp", "real+gp", "real+sn_mp", "shuffled", "threshold"]
    assert rows["gp"]["label_threshold"] == 0.5 and rows["real"]["label_threshold"] is None
    assert rows["sn_mp"]["results"]["other"] == {"990": "scores/sn_mp-seed-990-other.json"}
    assert rows["real"]["runs"]["990"]["steps"] == 20


def test_nothing_chosen_depends_on_test_subjects(study, walked):
    config = study()
    run_sources(config, home_of(config))
    names = [stage.name for stage in walked]
    first = next(place for place, name in enumerate(names) if name.startswith("segment-"))
    chosen = [name for name in names[:first] if name.startswith("unet-") and "-at-" in name]
    assert len(chosen) == 4  # both GANs' choices were made before the first volume was segmented
    for stage in walked:
        for command_name, settings in typed(stage):
            if command_name in ("generate", "train_unet") or settings.get("evaluate") == "label_threshold":
                assert "split" not in settings and config.test_cohorts[0] not in json.dumps(settings)
            if settings.get("evaluate") == "threshold":
                assert settings["fit_cohort"] == config.data.cohort_dir


def test_a_test_image_from_training_is_refused(study, walked, write_cohort_like):
    copied = write_cohort_like("copied", {"p": "test"}, seed=10)  # the hash of the own cohort's training subject
    with pytest.raises(DataError, match="test subject p"):
        config = study(steps.override("test_cohorts", [str(copied)]))
        run_sources(config, home_of(config))
    same = write_cohort_like("own", {"p": "test"}, seed=70)
    with pytest.raises(UsageError, match="own"):
        config = study(steps.override("test_cohorts", [str(same)]))
        run_sources(config, home_of(config))
    assert walked == []


@pytest.mark.parametrize("study_kind", ["data_sources", "sweep"])
def test_a_gan_of_other_patients_is_refused(study, walked, write_cohort_like, tmp_path, study_kind):
    """Its config.yaml may name any folder: what counts is the content that it learned from."""
    foreign = write_cohort_like("other", {"x": "train", "y": "test"}, seed=50)
    provenance = tmp_path / "runs/gp/provenance.json"
    for inputs in ({"gan/train": content_hash(foreign / "shards/gan/train")}, {}):
        provenance.write_text(json.dumps({"inputs": inputs}))
        config = study(f"study={study_kind}")
        with pytest.raises(DataError, match="gp .*data="):
            {"data_sources": run_sources, "sweep": run_sweep}[study_kind](config, home_of(config))
    assert walked == []


def test_runs_that_cannot_be_studied_are_refused(study, walked, tmp_path):
    with pytest.raises(UsageError, match="runs|two GANs"):
        config = study(steps.override("runs", [str(tmp_path / "runs/gp")] * 2))
        run_sources(config, home_of(config))
    for overrides, message in (
        (["runs=[]"], "runs"),
        (["seeds=[]"], "seeds"),
        (["seeds=[3,3]"], "seeds"),
        (["study=sweep", "runs=[]"], "sweep"),
        (["name=a/b"], "name"),
        (["study=sweep", "sweep.learning_rates=[1e-4,0.0001]"], "learning_rates"),
        (["study=sweep", "sweep.checkpoints=[step_00000011]"], "step_00000011"),
    ):
        with pytest.raises(UsageError, match=message):
            study_run.run(study(*overrides))
    shutil.copytree(tmp_path / "runs/gp", tmp_path / "again/sn_mp")  # its variant is gp
    with pytest.raises(UsageError, match="runs: .*runs/sn_mp and .*again/sn_mp"):
        config = study(steps.override("runs", [str(tmp_path / name) for name in ("runs/sn_mp", "again/sn_mp")]))
        run_sources(config, home_of(config))
    (tmp_path / "runs/gp/finished.json").unlink()
    with pytest.raises(UsageError, match="not finished"):
        run_sources(study(), home_of(study()))
    assert walked == []


def test_no_gan_takes_another_rows_name(study, tmp_path):
    path = tmp_path / "runs/gp/config.yaml"
    path.write_text(path.read_text().replace("name: gp\n", "name: real\n"))
    assert [gan.name for gan in steps.gans_of(study(), [])] == ["real-gp", "sn_mp"]


def test_a_unet_of_other_steps_is_refused(study, walked):
    config = study("unet.max_steps=30")  # what is there says 20
    with pytest.raises(DataError, match="20 .* 30"):
        run_sources(config, home_of(config))


def test_a_sweep_ranks_by_validation_alone(study, walked, tmp_path):
    config = study(
        "study=sweep", steps.override("runs", [str(tmp_path / "runs/gp")]), "sweep.checkpoints=[step_00000010]",
        "sweep.variant=sn_mp", "sweep.learning_rates=[1e-4,2e-4]", "sweep.batch_sizes=[4]",
    )  # fmt: skip
    out = run_sweep(config, home_of(config))
    ranking = json.loads(out.read_text())["ranking"]
    assert [record["gan"] for record in ranking][0] in ("gp-step_00000010", "sn_mp-rate-0.0001-batch-4")
    assert len(ranking) == 3
    assert [r["validation_dice"] for r in ranking] == sorted((r["validation_dice"] for r in ranking), reverse=True)
    for stage in walked[:4]:  # the first GAN is trained, patches are made, thresholds narrowed: their verbs know it all
        parsed(stage)
    verbs = {name for stage in walked for name, _ in words_of(stage)}
    assert verbs == {"train_gan", "generate", "evaluate", "train_unet"} and "segment" not in verbs
    gans = all_of(walked, "train_gan").values()
    variant = sweep.swept_gan(config).variant
    ratio = variant.learning_rate_generator / variant.learning_rate_critic
    for gan, rate in zip(gans, (1e-4, 2e-4), strict=True):
        assert (gan["variant.learning_rate_critic"], gan["train.batch_size"]) == (rate, 4)
        assert gan["variant.learning_rate_generator"] == pytest.approx(rate * ratio)
    generated = all_of(walked, "generate").values()
    assert [settings["checkpoint"] for settings in generated] == ["step_00000010", None, None]


RATES = ("variant.learning_rate_critic", "variant.learning_rate_generator", "variant.muon_learning_rate")


def read_by_train_gan(config: Any) -> dict[str, Any]:
    """Every setting of networks, training and data that counts."""
    kept = {key: value for key, value in compose.flat(config).items() if unread(config, key) is None}
    return {key: value for key, value in kept.items() if key.startswith(("variant.", "train.", "data."))}


@pytest.mark.parametrize("grid", [{"batches": [12]}, {"rates": 2, "batches": [12]}], ids=str)
@pytest.mark.parametrize("variant", groups()["variant"])
def test_every_variant_can_be_swept(study, variant, grid):
    """All rates that are read keep their ratio; nothing else differs from the variant itself."""
    own = ["train.max_steps=5", "train.num_workers=3", "variant.width=24"]
    plain = compose.compose("train_gan", [f"variant={variant}", *own])
    before = read_by_train_gan(plain)
    rates = [key for key in RATES if before.get(key) is not None]
    words = [f"sweep.variant={variant}", steps.override("sweep.overrides", own)]
    if "rates" in grid:
        words.append(steps.override("sweep.learning_rates", [grid["rates"] * before[rates[0]]]))
    if "batches" in grid:
        words.append(steps.override("sweep.batch_sizes", grid["batches"]))
    config = study("study=sweep", "runs=[]", *words)
    ((gan, stage),) = sweep.grid_of(config, home_of(config))
    ((_, composed),) = parsed(stage)
    assert (gan.variant, Path(composed.run_dir)) == (variant, gan.run)
    expected = before | {key: grid.get("rates", 1) * before[key] for key in rates}
    expected |= {"train.batch_size": grid.get("batches", [before["train.batch_size"]])[0]}
    assert read_by_train_gan(composed) == expected | {"data.cohort_dir": config.data.cohort_dir}


def test_a_sweep_keeps_a_group_that_is_taken_away(study):
    config = study("study=sweep", "runs=[]", "sweep.variant=dpgan", "sweep.batch_sizes=[4]",
                   'sweep.overrides=["variant.dp=null"]')  # fmt: skip
    ((_, stage),) = sweep.grid_of(config, home_of(config))
    ((_, composed),) = parsed(stage)
    assert composed.variant.dp is None


def test_a_sweep_ranks_by_the_mean_over_seeds(study, walked, monkeypatch):
    by_seed = {"gp": {"1": 0.9, "2": 0.5, "3": 0.5}, "sn_mp": {"1": 0.8, "2": 0.8, "3": 0.8}}
    honest = steps.unet_facts

    def facts(home: Path, source: steps.TrainingSource, seed: int) -> dict[str, object]:
        return honest(home, source, seed) | {"validation_dice": by_seed[source.gan.name][str(seed)]}

    monkeypatch.setattr(steps, "unet_facts", facts)
    config = study("study=sweep", "seeds=[1,2,3]")
    best, last = json.loads(run_sweep(config, home_of(config)).read_text())["ranking"]
    assert (best["gan"], last["gan"]) == ("sn_mp", "gp")
    assert last["validation_dice"] == pytest.approx(1.9 / 3) and last["validation_dice_by_seed"] == by_seed["gp"]
    assert best["run"] == config.runs[1]
    # Two thresholds with the first seed, then the winner with the other two: for each GAN.
    assert sum(stage.name.startswith("unet-") for stage in walked) == 2 * (2 + 2)
