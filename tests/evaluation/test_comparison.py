"""A study's rows: made of hand-made results, two seeds, six patients."""

import json
from pathlib import Path

import pytest

from vesselgan.config.compose import parse
from vesselgan.core.errors import DataError, UsageError
from vesselgan.evaluation.run import evaluate
from vesselgan.formats.results import write_result
from vesselgan.metrics.scores import MASKED, UNITS

from ..conftest import edit_json

PATIENTS = [f"sub-{number}" for number in range(6)]
LEVELS = {"real": 0.9, "sn": 0.8, "gp": 0.7}


def result(name: str, seed: int, *, patients: list[str] = PATIENTS) -> dict:
    """Dice = level + patient / 100 + seed / 1000; every other score is its tenfold."""
    entries = []
    for number, patient in enumerate(patients):
        value = LEVELS[name] + number / 100 + seed / 1000
        values = {metric: 10 * value for metric in UNITS if metric not in MASKED} | {"dice": value}
        entries.append({"subject": patient, "region": "all", **values})
    summary = {"all": {metric: {} for metric in UNITS if metric not in MASKED}}
    return {"name": name, "subjects": entries, "summary": summary, "empty": {"all": {"truth": 0, "predicted": 0}}}


def write_study(folder: Path, *, seeds: tuple[int, ...] = (1, 3)) -> Path:
    rows = []
    for name in LEVELS:
        files = {}
        for seed in seeds:
            path = folder / "scores" / f"{name}-{seed}.json"
            path.parent.mkdir(exist_ok=True)
            write_result(path, result(name, seed))
            files[str(seed)] = f"scores/{name}-{seed}.json"
        rows.append({"name": name, "title": name, "kind": "synthetic", "variant": name, "results": {"bars": files}})
    write_result(folder / "sources.json", {"cohorts": ["bars"], "seeds": list(seeds), "rows": rows})
    return folder / "sources.json"


def run(folder: Path, *words: str) -> dict:
    out = folder / "comparison.json"
    evaluate(parse("evaluate", None, ["evaluate=comparison", "name=study", f"out={out}", *words]).config)
    return json.loads(out.read_text())


def test_means_and_differences_to_real(tmp_path):
    found = run(tmp_path, f"sources={write_study(tmp_path)}")
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == list(LEVELS) and rows["sn"]["variant"] == "sn"
    dice = rows["sn"]["scores"]["bars"]["all"]["dice"]
    # 0.8 + (0 .. 5) / 100 + 0.002 on average over the seeds 1 and 3.
    assert [dice["mean"], dice["median"]] == pytest.approx([0.827, 0.827])
    assert (dice["n"], dice["num_seeds"]) == (6, 2)
    assert dice["sd"] == pytest.approx((17.5 / 5) ** 0.5 / 100)
    assert dice["sd_seeds"] == pytest.approx(0.002 / 2**0.5)
    assert dice["values"]["sub-4"] == pytest.approx(0.842)
    assert dice["interval"][0] < 0.827 < dice["interval"][1]
    difference = dice["difference"]
    assert difference["mean"] == pytest.approx(-0.1)
    # Six patients of one sign: 2 / 2^6, twice for the two sources compared with real.
    assert (difference["p"], difference["p_holm"]) == (pytest.approx(2 / 64), pytest.approx(4 / 64))
    assert rows["real"]["scores"]["bars"]["all"]["dice"]["difference"] is None
    assert found["units"] == UNITS and len(found["inputs"]) == 1 + 3 * 2


def test_controls_cost_no_source_its_p(tmp_path):
    path = write_study(tmp_path)
    for name in ("shuffled", "threshold"):
        edit_json(path, lambda s, name=name: s["rows"].append(s["rows"][2] | {"name": name, "kind": name}))
    found = run(tmp_path, f"sources={path}")
    dice = {row["name"]: row["scores"]["bars"]["all"]["dice"]["difference"] for row in found["rows"]}
    assert dice["sn"]["p_holm"] == pytest.approx(4 / 64)  # of two sources, not of four
    assert dice["shuffled"]["p_holm"] is None and dice["threshold"]["p_holm"] is None
    assert dice["shuffled"]["mean"] == pytest.approx(dice["gp"]["mean"])


@pytest.mark.parametrize("key", ["inputs", "patients"])
def test_rows_of_one_table_have_one_truth(tmp_path, key):
    path = write_study(tmp_path)
    changed = {"inputs": {"sub-0 label": "b" * 64}, "patients": {"sub-0": "sub-1"}}[key]
    for seed in (1, 3):
        edit_json(tmp_path / f"scores/sn-{seed}.json", lambda result: result.update({key: changed}))
    with pytest.raises(DataError, match="bars"):
        run(tmp_path, f"sources={path}")


def test_two_visits_count_as_one_patient(tmp_path):
    path = write_study(tmp_path)
    patients = {subject: f"patient-{place // 2}" for place, subject in enumerate(PATIENTS)}
    for file in (tmp_path / "scores").iterdir():
        edit_json(file, lambda result: result.update(patients=patients))
    rows = {row["name"]: row for row in run(tmp_path, f"sources={path}")["rows"]}
    dice = rows["sn"]["scores"]["bars"]["all"]["dice"]
    # Three patients: too few for an interval or a test. The last one's visits are 0.8 + 0.04 and 0.8 + 0.05, + 0.002.
    assert (dice["n"], dice["interval"], dice["difference"]["p"]) == (3, None, None)
    assert dice["values"]["patient-2"] == pytest.approx(0.847)
    assert rows["sn"]["patients"] == {"bars": patients}


def test_rows_of_one_table_have_one_n(tmp_path):
    path = write_study(tmp_path)
    write_result(tmp_path / "scores/sn-3.json", result("sn", 3, patients=PATIENTS[:5]))
    with pytest.raises(DataError, match="sn"):
        run(tmp_path, f"sources={path}")
    for seed in (1, 3):
        write_result(tmp_path / f"scores/sn-{seed}.json", result("sn", seed, patients=PATIENTS[:5]))
    with pytest.raises(DataError, match="the results of real"):
        run(tmp_path, f"sources={path}")
    (tmp_path / "scores/sn-1.json").unlink()
    with pytest.raises(DataError, match="sn-1.json"):
        run(tmp_path, f"sources={path}")
    with pytest.raises(UsageError, match="sources="):
        run(tmp_path)
    assert not (tmp_path / "comparison.json").exists()
