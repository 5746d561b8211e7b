"""What left, what it spent, and what was made from somebody."""

import json

import pytest

from vesselgan.core.errors import DataError
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import content_hash
from vesselgan.privacy.accountant import Mechanism
from vesselgan.release.ledger import Account, spent

ACCOUNT = {"epsilon": 3.25, "delta": 1e-5, "unit": "patient", "is_key_secret": True}


def test_every_release_is_a_line(work):
    run = work.run("sn")
    audit = work.audit(run)
    ledger = work.path / "release" / "ledger.jsonl"
    work.release("name=a", f"run={run}", f"audit={audit}")
    first = ledger.read_text()
    work.release("name=b", f"run={run}", f"audit={audit}", "license=MIT")
    assert ledger.read_text().startswith(first)
    a, b = (json.loads(line) for line in ledger.read_text().splitlines())
    assert (a["name"], b["name"], b["request"]["license"]) == ("a", "b", "MIT")
    assert a["accounts"][0]["epsilon"] is None and len(a["accounts"][0]["weights_sha256"]) == 64
    assert set(a["subjects"].values()) == {"MUE1967", "KOW1971"}


def test_epsilon_adds_up_over_releases_of_a_patient(work):
    for name, seed in (("one", 1), ("two", 2)):
        run = work.run("dpgan", name, ACCOUNT, seed)
        out = work.release(f"name={name}", f"run={run}", f"audit={work.audit(run)}")
    card = (out / "README.md").read_text()
    assert "differential privacy: epsilon 3.25 per patient" in card
    assert "with all 2 releases that share a patient: epsilon 6.5 per patient at delta 2e-05" in card


def test_sums_by_paper_and_pencil():
    one, two = Account("a", 1.0, 1e-5, "patient"), Account("b", 2.5, 2e-5, "patient")
    (total,) = spent([one, two, one])  # the same weights again spend nothing
    assert (total.epsilon, total.unit) == (3.5, "patient") and total.delta == pytest.approx(3e-5)
    assert spent([one, Account("c", None)]) is None


def test_patches_count_in_the_sum_per_patient():
    patient, patch = Account("a", 1.0, 1e-5, "patient"), Account("b", 0.5, 1e-5, "patch", epsilon_patient=7.0)
    assert [(total.epsilon, total.unit) for total in spent([patient, patch])] == [(8.0, "patient")]
    assert [(total.epsilon, total.unit) for total in spent([patch])] == [(0.5, "patch"), (7.0, "patient")]
    unknown = Account("c", 0.25, 1e-5, "patch")
    assert spent([patient, unknown]) is None
    assert [(total.epsilon, total.unit) for total in spent([patch, unknown])] == [(0.75, "patch")]


def test_the_card_counts_patches_per_patient(work):
    mechanism = Mechanism("patch", 2350, 4, 50, noise_multiplier=1.0, clip_norm=1.0, delta=1e-5)
    privacy = mechanism.to_json(200) | {"is_key_secret": True}
    per_patch, per_patient = (mechanism.epsilon(unit, 200) for unit in ("patch", "patient"))
    for name, account in (("one", ACCOUNT), ("two", privacy)):
        run = work.run("dpgan", name, account, seed=1 + len(account))
        out = work.release(f"name={name}", f"run={run}", f"audit={work.audit(run)}")
    own, in_all = [line for line in (out / "README.md").read_text().splitlines() if "epsilon" in line]
    assert f"epsilon {per_patch:.4g} per patch" in own and f"epsilon {per_patient:.4g} per patient" in own
    assert f"epsilon {3.25 + per_patient:.4g} per patient" in in_all and "per patch" not in in_all


def test_a_known_noise_seed_is_no_guarantee(work):
    run = work.run("dpgan", privacy=ACCOUNT | {"is_key_secret": False})
    out = work.release("name=a", f"run={run}", f"audit={work.audit(run)}")
    card = (out / "README.md").read_text()
    assert "no formal guarantee, as the noise was drawn from a known seed" in card and "epsilon 3.25" not in card


def test_a_withdrawal_names_what_must_go(work, capsys):
    run = work.run("sn")
    work.release("name=a", f"run={run}", f"audit={work.audit(run)}")
    for subject in ("sub-MUE1967", "MUE1967"):
        capsys.readouterr()
        assert work.release(f"withdraw={subject}") is None
        said = capsys.readouterr().out
        assert str(work.path / "release" / "a") in said and str(run) in said and str(work.training) in said
        assert "cannot be recalled" in said
    work.release("withdraw=sub-nobody")
    assert str(run) not in capsys.readouterr().out


def record(run, **inputs):
    """A run directory that says what it learned from."""
    run.mkdir(parents=True)
    (run / "provenance.json").write_text(json.dumps(inputs))
    return run


def test_a_withdrawal_follows_every_descendant(work, capsys):
    run, learned = work.run("sn"), content_hash(work.training)
    moved = work.path / "elsewhere" / "patches"
    moved.parent.mkdir()
    RunDir(run).synthetic.rename(moved)
    made = [
        moved,
        record(work.path / "studies/s/unets/real", inputs={"unet/real 0": learned}),
        record(work.path / "studies/s/unets/both", inputs={"unet/synthetic 0": content_hash(moved)}),
        record(work.path / "runs/tuned", inputs={"gan/train": "c" * 64}, learned_from=["c" * 64, learned]),
    ]
    (work.path / "linked").mkdir()
    made.append(record(work.path.parent / "unet", inputs={"unet/real 0": learned}))
    (work.path / "linked" / "unet").symlink_to(made.pop())
    made.append(work.path / "linked" / "unet")
    others = record(work.path / "runs/others", inputs={"gan/train": "d" * 64})
    unsure = record(work.path / "runs/unsure", inputs={"gan/train": "d" * 64}, learned_from=["unknown"])
    work.release("withdraw=MUE1967")
    listed, *rest = capsys.readouterr().out.split("unknown")
    assert all(f"{path}" in listed for path in [run, *made, unsure]) and rest and str(others) not in listed


@pytest.mark.parametrize("typed", ["sub-Müller", "SUB-MÜLLER", "sub-Mu\u0308ller"])
def test_a_withdrawal_knows_an_id_that_looks_alike(work, write_set, typed, capsys):
    folder = write_set(work.path / "mine" / "shards" / "unet" / "train", {"sub-Mu\u0308ller": "x1"})
    work.release(f'withdraw="{typed}"')
    assert f"shards   {folder}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["7\n", "{}\n", "{\n", '{"format_version": 9}\n'])
def test_a_damaged_ledger_stops_a_release(work, text):
    run = work.run("sn")
    (work.path / "release").mkdir()
    (work.path / "release" / "ledger.jsonl").write_text(text)
    with pytest.raises(DataError, match="line 1 is damaged"):
        work.release("name=a", f"run={run}", f"audit={work.audit(run)}")
