"""What a run's own network says of real patches: the critic's scores, and a flow's errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vesselgan.config import compose
from vesselgan.core.errors import CheckpointError, DataError, NumericError
from vesselgan.data.patches import ShardDataset
from vesselgan.evaluation.audit import audit
from vesselgan.evaluation.network_scores import AttackedNetwork
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import ShardSet
from vesselgan.models.variants import build_networks, init_networks
from vesselgan.synthesis.sampler import load_generator

from ..conftest import edit_json, write_set

PATCH = (16, 16, 16)
CPU = torch.device("cpu")
WORDS = {"sn": ["variant=sn", "variant.width=16"], "flow": ["variant=flow", "variant.width=8"]}
WORDS |= {name: [f"variant={name}", "variant.width=8"] for name in ("flow_label", "gan_label")}
WORDS["placeless"] = [*WORDS["flow"], "variant.flow.position=false"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def write_run(write_checkpoint: Callable[..., None]) -> Callable[..., Any]:
    """Writes a run directory with one checkpoint of networks that never learned, and returns them."""

    def write(run_dir: Path, variant: str, scale: float = 1.0, number: int = 1) -> dict[str, torch.nn.Module]:
        config = compose.compose("train_gan", WORDS[variant])
        networks = build_networks(config.variant, PATCH)
        init_networks(networks, number)
        files = {
            name: {key: value * scale for key, value in network.state_dict().items()}
            for name, network in networks.items()
        }
        files |= dict.fromkeys(("generator_standing", "generator_ema"), files["generator"])
        manifest = {"patch_shape": list(PATCH), "spacing_mm": [0.5, 0.5, 0.8], "percentiles": (0.0, 99.99)}
        write_checkpoint(run_dir, config, files, manifest, number=number)
        return networks

    return write


@pytest.fixture
def real(tmp_path: Path) -> ShardSet:
    return ShardSet(write_set(tmp_path / "train", range(12), ["sub-1", "sub-2"]))


def attacked(tmp_path: Path, real: ShardSet) -> AttackedNetwork:
    return AttackedNetwork(str(tmp_path / "run"), real, CPU, checkpoint=None, weights=None)


def test_scores_are_the_critics_own(tmp_path, real, write_run):
    critic = write_run(tmp_path / "run", "sn")["critic"].eval()
    network = attacked(tmp_path, real)
    with torch.inference_mode():
        expected = critic(ShardDataset(real)[:]).numpy()
    rows = [5, *range(11)]
    assert network.kind == "critic"
    np.testing.assert_allclose(network.scores(real, rows, seed=0), expected[rows], rtol=1e-4, atol=1e-5)  # float32


def test_a_critic_that_classifies_is_judged_by_its_error(tmp_path, real, write_run):
    """Of each patch by itself, every class of it with the same weight."""
    critic = write_run(tmp_path / "run", "gan_label")["critic"].eval()
    network = attacked(tmp_path, real)
    patch = ShardDataset(real, with_tissue=True)[:]
    classes = torch.where(patch[:, 1] > 0, 3, (2 * patch[:, 2]).round().long())
    with torch.inference_mode():
        errors = torch.nn.functional.cross_entropy(critic(patch), classes, reduction="none")
    expected = [
        -torch.stack([error[kind == k].mean() for k in kind.unique()]).mean().item()
        for error, kind in zip(errors, classes, strict=True)
    ]
    assert network.kind == "critic"
    np.testing.assert_allclose(network.scores(real, list(range(12)), seed=0), expected, rtol=1e-4)


@pytest.mark.parametrize(("variant", "label_error"), [("flow", [1]), ("flow_label", [])])
def test_a_flow_is_judged_by_its_error(tmp_path, real, variant, label_error, write_run):
    write_run(tmp_path / "run", variant)
    network = attacked(tmp_path, real)
    scores = network.scores(real, list(range(12)), seed=0)
    # A flow that never learned predicts 0, so its error is the patch's mean square, the label being -1 or 1.
    patch = ShardDataset(real)[:].numpy()
    expected = -((patch[:, 0] ** 2).mean((1, 2, 3)) + sum(label_error)) / (1 + len(label_error))
    assert network.kind == "flow"
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_a_flow_without_place_needs_no_volumes(tmp_path, real, write_run):
    edit_json(real.folder / "manifest.json", lambda manifest: [s.pop("shape") for s in manifest["subjects"].values()])
    without = ShardSet(real.folder)
    write_run(tmp_path / "run", "flow")
    with pytest.raises(DataError, match="shape"):
        attacked(tmp_path, without).scores(without, [0], seed=0)
    write_run(tmp_path / "placeless/run", "placeless")
    assert len(attacked(tmp_path / "placeless", without).scores(without, [0, 3], seed=0)) == 2


def test_networks_that_cannot_be_attacked_are_refused(tmp_path, real, write_run):
    write_run(tmp_path / "run", "sn", scale=float("inf"))
    network = attacked(tmp_path, real)
    with pytest.raises(NumericError, match="not finite"):
        network.scores(real, [0], seed=0)
    config = compose.to_yaml(compose.compose("train_gan", ["variant=sn", "variant.width=32"]))
    (tmp_path / "run/config.yaml").write_text(config)
    with pytest.raises(CheckpointError, match="disagree"):
        attacked(tmp_path, real)
    (tmp_path / "run/provenance.json").write_text(json.dumps({"inputs": {"gan/train": "ab" * 32}}))
    with pytest.raises(DataError, match="other shards"):
        attacked(tmp_path, real)


def test_the_attacked_network_made_the_patches(image_road, write_run):
    """Not the newest checkpoint."""
    run = image_road / "run"
    for number in (1, 2):
        write_run(run, "flow", number=number)
    made_by = {"run": "run", "checkpoint": "step_00000001", "weights": "running"}
    edit_json(run / "synthetic" / "manifest.json", lambda manifest: manifest["extra"].update(made_by))
    words = [f"work_dir={image_road}", f"run={run}", f"out={image_road}/a.json", "record_only=true"]
    network = audit(compose.compose("audit", [*words, "image.extractor=null", "runtime.device=cpu"]))["network"]
    made = load_generator(run, "running", checkpoint="step_00000001", device="cpu")
    assert (network["checkpoint"], network["weights_sha256"]) == (made.checkpoint, made.weights_sha256)


def test_an_audit_of_a_run_attacks_its_network(image_road, capsys, write_run):
    write_run(image_road / "run", "sn")
    words = [f"work_dir={image_road}", f"run={image_road / 'run'}", f"out={image_road}/a.json", "record_only=true"]
    result = audit(compose.compose("audit", [*words, "runtime.device=cpu"]))
    assert (result["network"]["kind"], result["network"]["run"]) == ("critic", RunDir(image_road / "run").name)
    assert result["verdict"] == "cannot conclude" and 0 <= result["network"]["sample"]["auc"]["value"] <= 1
    said = capsys.readouterr().out
    assert "critic itself, if it left" in said and result["network"]["sentence"] in said
