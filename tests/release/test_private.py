"""A private generator from its plan to its release: one epsilon all the way, which an attack does not refute."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from vesselgan.config.compose import compose, parse
from vesselgan.evaluation.audit import audit
from vesselgan.formats.shards import ShardSet
from vesselgan.privacy.opacus_parts import epsilon_of, renyi
from vesselgan.synthesis.generate import generate
from vesselgan.tools.plan import plan
from vesselgan.training.run import train_gan

TRAINED = {f"sub-train{i:02d}": f"person{i:02d}" for i in range(12)}
HELD_OUT = {f"sub-held{i:02d}": f"other{i:02d}" for i in range(12)}
NOISE, STEPS = 2.0, 2
PRIVATE_STEPS = 5 * STEPS
"""The critic's."""
SETTINGS = ["variant=dpgan", "variant.width=16", "variant.dp.unit=patient", f"variant.dp.noise_multiplier={NOISE}"]
SETTINGS += ["variant.dp.delta=1e-5", "train.batch_size=2", f"train.max_steps={STEPS}"]


@pytest.mark.soak
def test_epsilon_is_one_from_plan_to_card(work, write_set, afresh, monkeypatch, capsys):
    cohort, run = work.path / "private", work.path / "runs" / "private"
    write_set(cohort / "shards" / "gan" / "train", TRAINED)
    write_set(cohort / "shards" / "unet" / "validation", HELD_OUT, seed=1)
    at = [f"work_dir={work.path}", "data.name=private", f"data.cohort_dir={cohort}"]
    num_patches = len(ShardSet(cohort / "shards" / "gan" / "train"))
    sizes = ["patch_shape=[32,16,16]", f"num_pairs={num_patches}", "num_patients=12", "device=cpu", "--json"]
    plan(parse("plan", None, [*SETTINGS, *sizes]))
    planned = json.loads(capsys.readouterr().out)["epsilon_patient"]
    monkeypatch.setattr("vesselgan.training.sample_images.SIDE", 16)
    afresh()
    few = ["train.num_workers=0", "train.image_every=1000", "runtime.device=cpu", "--run_dir", str(run)]
    train_gan(parse("train_gan", None, [*SETTINGS, *at, *few]))
    generate(compose("generate", [f"run={run}", "num_patches=6", "runtime.device=cpu"]))
    result = work.path / "results" / "audit.json"
    audit(compose("audit", [*at, f"run={run}", f"out={result}", "record_only=true", "runtime.device=cpu"]))
    out = work.release(*at, "name=private", f"run={run}", f"audit={result}", 'reason="phantoms"')
    stated = re.search(
        r"differential privacy: epsilon (\S+) per patient at delta 1e-05", (out / "README.md").read_text()
    )
    assert stated is not None and float(stated[1]) == pytest.approx(planned, rel=1e-3)  # of four digits
    account = json.loads((run / "finished.json").read_text())["privacy"]
    assert (account["steps"], account["sample_rate"]) == (PRIVATE_STEPS, 2 / len(TRAINED))
    line = json.loads((work.path / "release" / "ledger.jsonl").read_text())
    assert line["accounts"][0]["epsilon"] == pytest.approx(planned) and set(line["subjects"]) == set(TRAINED)


@pytest.mark.soak
def test_canaries_do_not_refute_that_epsilon(repository, monkeypatch):
    """The same mechanism: what 200 canaries prove lies below the claim, and above it with the noise off."""
    attack, rate = canaries(repository), 2 / len(TRAINED)
    monkeypatch.setattr(attack, "RATE", rate)
    monkeypatch.setattr(attack, "STEPS", PRIVATE_STEPS)
    claimed = epsilon_of(PRIVATE_STEPS * renyi(noise_multiplier=NOISE, sample_rate=rate), delta=1e-5)
    proven = attack.audit(noise=NOISE, trials=200, monkeypatch=monkeypatch)
    assert proven is None or proven < claimed
    without = attack.audit(noise=1e-9, trials=200, monkeypatch=monkeypatch)
    assert without is not None and without > claimed


def canaries(repository: Path):
    """The attack of tests/privacy/test_audit.py on the private step, with a canary in half of its trials."""
    spec = importlib.util.spec_from_file_location("canaries", repository / "tests" / "privacy" / "test_audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
