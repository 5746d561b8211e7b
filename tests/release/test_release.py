"""What a release holds, and that tools which know nothing of this package can read it."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import safe_open

from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import ShardSet
from vesselgan.models.generator import Generator
from vesselgan.synthesis.sampler import load_generator

IN_BIDS = ("dataset_description.json", "desc-synthetic_angio.json", "README.md")
VARIANTS = ("sn", "dpgan", "flow", "flow_label", "gan_label")
REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("vesselgan", "data_prep"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
"""
SAVE = """
import torch
from safetensors.torch import save_file
torch.set_num_threads(1)
def run(lines, path):
    names = {}
    sys.modules.pop("generator", None)
    exec(lines, names)
    save_file({name: names[name] for name in ("patches", "images", "labels")}, path)
"""


def test_the_cards_lines_sample_without_this_package(made_once, tmp_path):
    """Executed as they stand, in an interpreter that finds torch and safetensors, and refuses this package."""
    code = [REFUSE, f"sys.path.append({str(Path(torch.__file__).parents[1])!r})", "import os", SAVE]
    for kind in VARIANTS:
        out = made_once(kind)[1]
        lines = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1]
        assert len(lines.strip().splitlines()) == 10
        code.append(f"os.chdir({str(out)!r})\nrun({lines!r}, {str(tmp_path / kind)!r})")
    command = [sys.executable, "-I", "-S", "-c", "\n".join(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for kind in VARIANTS:
        network = load_generator(made_once(kind)[0].path / "runs" / kind, device="cpu").network
        noise = torch.randn(2, network.latent_size, generator=torch.Generator().manual_seed(1))
        given = [torch.zeros(2, 2, *network.patch_shape)] if kind.endswith("_label") else []
        torch.set_num_threads(1)
        with torch.inference_mode():
            expected = network(noise, *given)
        with safe_open(tmp_path / kind, "pt") as file:
            assert torch.equal(file.get_tensor("patches"), expected) and expected.std() > 0
            assert torch.equal(file.get_tensor("labels"), expected[:, 1] >= 0.01)
            assert 0 <= file.get_tensor("images").min() and file.get_tensor("images").max() <= 255


def test_the_card_says_whose_the_trees_are(made_once):
    cards = {kind: (made_once(kind)[1] / "README.md").read_text() for kind in ("flow", "flow_label")}
    assert "the vessel trees are nobody's" in cards["flow_label"] and "nobody's" not in cards["flow"]


def test_pairs_are_the_synthetic_ones_in_canonical_geometry(made_once):
    work, out = made_once("sn")
    shards = ShardSet(RunDir(work.path / "runs" / "sn").synthetic)
    for i in range(3):
        name = f"sub-synth{i + 1:05d}"
        files = [out / name / "anat" / f"{name}_{end}.nii.gz" for end in
                 ("desc-synthetic_angio", "label-vessel_desc-synthetic_mask")]  # fmt: skip
        image, label = (nib.load(file) for file in files)
        assert np.array_equal(image.get_fdata(), shards.image(i)) and np.array_equal(label.get_fdata(), shards.label(i))
        for volume in (image, label):
            assert nib.aff2axcodes(volume.affine) == ("R", "A", "S") and volume.header.get_zooms() == (0.5, 0.5, 0.8)
            # The centre of 32 voxels lies 15.5 voxels from the first, of 16 7.5.
            assert np.allclose(volume.affine[:3, 3], [-7.75, -3.75, -6.0])
            assert volume.header["descrip"].item() == b"synthetic" and volume.header["db_name"].item() == b""


def test_nnunets_rules_hold(made_once):
    _, out = made_once("sn")
    dataset = json.loads((out / "dataset.json").read_text())
    assert {"channel_names", "labels", "numTraining", "file_ending"} <= set(dataset)
    assert dataset["channel_names"] == {"0": "TOF-MRA"} and dataset["labels"] == {"background": 0, "vessel": 1}
    assert len(dataset["dataset"]) == dataset["numTraining"] == 3
    for case in dataset["dataset"].values():
        (image,) = (nib.load(out / name) for name in case["images"])
        label = nib.load(out / case["label"])
        assert image.shape == label.shape and np.array_equal(image.affine, label.affine)
        assert set(np.unique(label.get_fdata())) <= {0, 1} and case["label"].endswith(dataset["file_ending"])


def test_bids_rules_hold(made_once):
    _, out = made_once("sn")
    described = json.loads((out / "dataset_description.json").read_text())
    assert {"Name", "BIDSVersion"} <= set(described) and described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Name"] == "vesselgan" and described["License"] == "CC-BY-4.0"
    # Required of a derivative's image.
    assert json.loads((out / "desc-synthetic_angio.json").read_text())["SkullStripped"] is False
    ignored = (out / ".bidsignore").read_text().split()
    known = re.compile(r"sub-(\w+)/anat/sub-\1_(desc-synthetic_angio|label-vessel_desc-synthetic_mask)\.nii\.gz")
    for path in (str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()):
        is_ours = path in (*IN_BIDS, ".bidsignore") or known.fullmatch(path)
        assert is_ours or any(path.startswith(name) for name in ignored), path


def test_croissant_says_that_it_is_synthetic(made_once):
    _, out = made_once("sn")
    content = json.loads((out / "croissant.json").read_text())
    assert content["@type"] == "sc:Dataset" and content["rai:hasSyntheticData"] is True
    assert "http://mlcommons.org/croissant/1.0" in content["conformsTo"]
    assert {"name", "description", "license", "datePublished"} <= set(content)
    for item in content["distribution"]:
        assert {"@id", "name", "encodingFormat"} <= set(item)
        if item["@type"] == "cr:FileObject":
            assert hashlib.sha256((out / item["contentUrl"]).read_bytes()).hexdigest() == item["sha256"]
        else:
            assert len(list(out.glob(item["includes"]))) == 3


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_generator_alone_leaves(made_once, kind):
    _, out = made_once(kind)
    assert {path.name for path in (out / "generator").iterdir()} == {
        "generator.py", "generator.safetensors", "architecture.json",
    }  # fmt: skip
    with safe_open(out / "generator" / "generator.safetensors", "pt") as file:
        names = set(file.keys())
    if kind == "sn":
        assert names == {name for name in Generator((32, 16, 16), 16, 128).state_dict() if "num_batches" not in name}
    assert not any("moment" in name or "exp_avg" in name or "num_batches" in name for name in names)


def test_checksums_name_every_other_file(made_once):
    _, out = made_once("sn")
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=out, capture_output=True, check=False)
    listed = {line.split("  ", 1)[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert done.returncode == 0 and listed == {
        str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != "SHA256SUMS"
    }


def test_the_card_states_the_true_epsilon(made_once):
    _, out = made_once("dpgan")
    card = (out / "README.md").read_text()
    assert "epsilon 3.25 per patient at delta 1e-05" in card and "no formal guarantee" not in card
    assert "no formal guarantee" in (made_once("sn")[1] / "README.md").read_text()


def test_the_card_states_verdict_power_and_licence(made_once):
    card = (made_once("sn")[1] / "README.md").read_text()
    assert "audit: **pass**" in card and "98% of mirrored ones" in card and "probability 0.97" in card
    assert "Licence: CC-BY-4.0" in card and "Reason" not in card and "Variant `sn`" in card
