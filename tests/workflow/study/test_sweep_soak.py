"""A sweep by its command on a tiny phantom: named checkpoints and trained rates, ranked; done again, nothing is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vesselgan.config.compose import from_yaml

TINY = ["phantom.shape=[48,48,24]", "phantom.spacing_mm=[2.5,3,3.2]", "phantom.num_subjects=4"]
COHORT = ["data.prepare.split.validation=1", "data.prepare.split.test=2", "data.prepare.num_vessel_patches_gan=20"]
COHORT += ["data.prepare.num_vessel_patches_unet=20", "data.prepare.max_clipped_vessel_share=1"]
COHORT += ["data.prepare.patch_shape=[32,32,16]"]
GAN = ["variant=sn", "variant.width=8", "train.batch_size=4", "train.max_steps=4", "train.num_workers=0"]
UNET = ["unet=residual", "unet.filters=[4,8]", "unet.max_steps=8", "unet.validate_every=4", "unet.batch_size=4"]
UNET += ["unet.num_workers=0", "seeds=[1,2]"]
# An untrained GAN's scores lie around 0: only the lowest cuts find vessels.
LABELS = ["num_patches=24", "labels.thresholds=[0.01,0.05]", "labels.num_narrowed=1", "labels.max_patches=10"]


def run(repository: Path, *overrides: str) -> str:
    done = subprocess.run(
        [sys.executable, *overrides],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.soak
def test_a_sweep_reads_no_test_volume(repository: Path, tmp_path: Path) -> None:
    work, gan = f"work_dir={tmp_path}", tmp_path / "runs/gan"
    run(repository, "-m", "data_prep.make_phantom", work, *TINY)
    run(repository, "-m", "data_prep.build_shards", work, *COHORT)
    run(repository, "launch/train_gan.py", "--run_dir", str(gan), work, *GAN, "train.checkpoint_every=2")
    cohort = json.loads((tmp_path / "phantom/cohort.json").read_text())["subjects"]
    for name in (name for name, subject in cohort.items() if subject["split"] == "test"):
        for path in (tmp_path / "phantom/nifti" / name).iterdir():
            path.unlink()  # whoever reads one stops the sweep
    overrides = ["launch/study.py", "study=sweep", "name=both", work, f"runs=[{gan}]", *UNET, *LABELS]
    overrides += ["sweep.checkpoints=[step_00000002,step_00000004]", "sweep.learning_rates=[1e-4,4e-4]"]
    overrides += ["sweep.variant=sn", f"sweep.overrides={json.dumps(GAN[1:])}"]
    output = run(repository, *overrides)

    home = tmp_path / "studies/both"
    result = json.loads((home / "ranking.json").read_text())
    ranking = {record["gan"]: record for record in result["ranking"]}
    rates = {1e-4: "sn-rate-0.0001-batch-4", 4e-4: "sn-rate-0.0004-batch-4"}
    assert set(ranking) == {"sn-gan-step_00000002", "sn-gan-step_00000004", *rates.values()}
    scores = [record["validation_dice"] for record in result["ranking"]]
    assert scores == sorted(scores, reverse=True)
    for name, record in ranking.items():
        each = {}
        for seed in ("1", "2"):
            unet = home / "unets" / f"{name}-at-0.01-seed-{seed}"
            assert from_yaml("train_unet", unet / "config.yaml").unet.network == "residual"
            each[seed] = json.loads((unet / "finished.json").read_text())["validation_dice"]
        assert record["validation_dice_by_seed"] == each
        assert record["validation_dice"] == pytest.approx((each["1"] + each["2"]) / 2, rel=1e-12)
    for rate, name in rates.items():
        trained = from_yaml("train_gan", Path(ranking[name]["run"]) / "config.yaml")
        ratio = trained.variant.learning_rate_generator / trained.variant.learning_rate_critic
        assert (trained.variant.learning_rate_critic, ratio) == (rate, pytest.approx(0.5))
    weights = {
        name: json.loads((home / f"gans/{name}/synthetic/manifest.json").read_text())["shards"] for name in ranking
    }
    assert len({json.dumps(shards) for shards in weights.values()}) == 4  # four GANs, four sets of patches
    places = [line.split() for line in output.splitlines() if "label threshold 0.01," in line]
    assert [words[0] for words in places] == ["1", "2", "3", "4"]

    before = (home / "ranking.json").read_bytes()
    again = run(repository, *overrides)
    assert again.count("done already") == 2 + 4 * (2 + 2)
    assert (home / "ranking.json").read_bytes() == before
