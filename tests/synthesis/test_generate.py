"""From a run directory to synthetic shards: seeds, thresholds, geometry, what is refused, what is continued."""

import functools
import hashlib
import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vesselgan.anatomy.head import synthetic_head
from vesselgan.config import compose
from vesselgan.config.schema import Generate, Runtime
from vesselgan.core.errors import CheckpointError, DataError, NumericError, UsageError
from vesselgan.formats.checkpoint_folder import FORMAT_VERSION
from vesselgan.formats.shards import ShardSet, content_hash, read_manifest, verify
from vesselgan.models.blocks import init_weights
from vesselgan.models.flow import FlowGenerator, init_flow_weights
from vesselgan.models.generator import Generator, latents, sample_seed
from vesselgan.runtime import generator_weights
from vesselgan.synthesis import generate as synthesis
from vesselgan.synthesis import sampler
from vesselgan.synthesis.generate import generate
from vesselgan.synthesis.labels import PATCHES_PER_HEAD, LabelPatches
from vesselgan.synthesis.sampler import load_generator, make_record

from ..conftest import edit_json, write_shards

PATCH = (32, 16, 16)
WIDTH, LATENT = 8, 6
AFFINE = [[0.5, 0.0, 0.0, -7.75], [0.0, 0.5, 0.0, -3.75], [0.0, 0.0, 0.7, -5.25], [0.0, 0.0, 0.0, 1.0]]
"""Spacing 0.5 x 0.5 x 0.7 mm, the origin between the middle voxels of 32 x 16 x 16."""


pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def configuration() -> str:
    words = [f"variant.width={WIDTH}", f"variant.latent_size={LATENT}"]
    return compose.to_yaml(compose.compose("train_gan", words))


def write_run(run_dir: Path, seed: int = 1) -> Generator:
    """A run directory as training leaves it."""
    generator = Generator(PATCH, WIDTH, LATENT)
    init_weights(generator, seed)
    with torch.no_grad():
        # Scores on both sides of the thresholds.
        generator.norms[-1].weight.fill_(1)
        generator.last.weight.mul_(20)
    generator(latents(0, range(8), LATENT))
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(configuration())
    write_checkpoint(run_dir, generator, step=100)
    return generator.eval()


def write_checkpoint(run_dir: Path, generator: Generator, step: int) -> None:
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    save_file(generator.state_dict(), folder / "generator.safetensors")
    manifest = {"patch_shape": list(PATCH), "spacing_mm": [0.5, 0.5, 0.7], "percentiles": (0.0, 99.99)}
    report = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "engines": {},
        "is_kept": False,
        "state": {"step": step, "manifest": manifest},
    }
    (folder / "state.json").write_text(json.dumps(report))
    entries = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in folder.iterdir()
    }
    (folder / "manifest.json").write_text(json.dumps(entries))


def add_to_checkpoint(run_dir: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    folder = run_dir / "checkpoints" / "step_00000100"
    save_file(tensors, folder / name)
    entries = json.loads((folder / "manifest.json").read_text())
    content = (folder / name).read_bytes()
    entries[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(entries))


def settings(run_dir: Path, **changes: object) -> Generate:
    values = {"run": str(run_dir), "checkpoint": None, "num_patches": 5, "seed": 7, "weights": "running"}
    values |= {"label_threshold": 0.3, "batch_size": 2, "nifti": False, "out": None, "runtime": Runtime(device="cpu")}
    values |= {"volumes": None, "shape": [96, 112, 48], "spacing_mm": None, "noise": [0.0, 0.0]}
    return Generate(**(values | changes))


def test_shards_hold_what_the_generator_makes(tmp_path: Path) -> None:
    generator = write_run(tmp_path / "run")
    generate(settings(tmp_path / "run"))
    out = tmp_path / "run" / "synthetic"
    assert verify(out) == []
    shards = ShardSet(out)
    assert len(shards) == 5 and shards.patch_shape == PATCH and shards.spacing_mm == (0.5, 0.5, 0.7)
    for i in range(5):
        with torch.no_grad():
            expected = generator(latents(7, [i], LATENT))[0].numpy()
        record = shards[i]
        assert record.subject == f"synthetic-{sample_seed(7, i)}"
        assert (record.kind, record.corner, record.limits, record.num_clipped) == ("synthetic", (0, 0, 0), (0, 255), 0)
        # Half a step of the stored uint16, and float32 rounding of another batch size's kernels.
        np.testing.assert_allclose(record.image_XYZ, (expected[0] + 1) * 127.5, rtol=0, atol=0.003)
        np.testing.assert_allclose(record.score_XYZ, expected[1].clip(0, 1), rtol=0, atol=2**-11)
        assert np.array_equal(record.label_XYZ, record.score_XYZ.astype(np.float32) >= 0.3)
        assert 0 < record.label_XYZ.mean() < 1
        assert shards.subjects[record.subject] == {"spacing_mm": [0.5, 0.5, 0.7], "affine": AFFINE}
    assert len({record.subject for record in shards}) == 5
    # the generator learned this scaling: who mixes its patches with real ones must be able to tell
    assert shards.manifest.percentiles == (0.0, 99.99)


def test_the_manifest_says_where_the_samples_come_from(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / "provenance.json").write_text(json.dumps({"inputs": {"gan/train": "ab" * 32}}))
    generate(settings(tmp_path / "run"))
    manifest = read_manifest(tmp_path / "run" / "synthetic")
    assert manifest.origin == "synthetic"
    wanted = {"run": "run", "checkpoint": "step_00000100", "seed": 7, "threshold": 0.3, "num_patches": 5}
    wanted["trained_on"] = "ab" * 32
    assert {key: manifest.extra[key] for key in wanted} == wanted
    assert str(tmp_path) not in (tmp_path / "run" / "synthetic" / "manifest.json").read_text()


def test_a_sample_depends_on_its_seed_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    generate(settings(tmp_path / "run", num_patches=1, batch_size=4, out=str(tmp_path / "few")))
    for name, seed in (("many", 7), ("again", 7), ("other", 8)):
        generate(settings(tmp_path / "run", num_patches=6, batch_size=4, seed=seed, out=str(tmp_path / name)))
    # Batches are padded to their full size, so to the bit.
    one, six = ShardSet(tmp_path / "few")[0], ShardSet(tmp_path / "many")[0]
    assert np.array_equal(one.image_XYZ, six.image_XYZ) and np.array_equal(one.score_XYZ, six.score_XYZ)
    many, again, other = ((tmp_path / name / "synthetic_00000.h5").read_bytes() for name in ("many", "again", "other"))
    assert many == again != other


@pytest.mark.parametrize("kind", [str, Path])
def test_samples_are_what_generate_writes(tmp_path: Path, kind: type) -> None:
    write_run(tmp_path / "run")
    shards = generate(settings(tmp_path / "run"))
    trained = load_generator(kind(tmp_path / "run"), "running", device="cpu")
    records = trained.sample(5, seed=7, batch_size=2)
    batches = list(trained.sample_batches(5, seed=7, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    for written, *sampled in zip(shards, records, [r for batch in batches for r in batch], strict=True):
        for record in sampled:
            assert record.subject == written.subject
            for name in ("image_XYZ", "label_XYZ", "score_XYZ"):
                np.testing.assert_array_equal(getattr(record, name), getattr(written, name))
                assert getattr(record, name).dtype == getattr(written, name).dtype
    assert "running" in repr(trained) and "step_00000100" in repr(trained)
    assert shards.label_threshold == 0.3


def test_threads_change_no_byte(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    network = sampler.load_generator(tmp_path / "run", "running", device="cpu").network
    before = torch.get_num_threads()
    samples = {}
    for threads in (1, 3):
        torch.set_num_threads(threads)
        samples[threads] = list(sampler.sample_patches(network, 5, range(7), 2))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for (i, one), (j, three) in zip(samples[1], samples[3], strict=True):
        assert i == j and np.array_equal(one, three)


@pytest.mark.parametrize("has_position", [True, False])
def test_labels_that_are_given_come_back_with_images(has_position: bool) -> None:
    """Cut from a tree, at the place that the network receives; the same in another batch."""
    settings = {"has_position": has_position, "time_shift": 2.0, "num_steps": 2, "guidance": 0.5, "num_given": 1}
    network = FlowGenerator((16, 16, 16), 8, **settings).eval()
    init_flow_weights(network, 1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # the first weights' output knows neither label nor place
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    shape = (96, 112, 48)
    network.patch_extent.copy_(torch.tensor([16, 16, 16]) / torch.tensor(shape))
    labels = LabelPatches(network, (1.0, 1.05, 1.2), 5)
    assert labels.shape == shape
    count = PATCHES_PER_HEAD + 2
    label_N1XYZ, position_N3 = labels.batch(range(count))
    sampled = dict(sampler.sample_patches(network, 5, [count - 1, 0], 2, labels))
    for i, patch_CXYZ in sampled.items():
        np.testing.assert_array_equal(patch_CXYZ[1], label_N1XYZ[i, 0])
        place = None if position_N3 is None else position_N3[i : i + 1]
        z_NL = latents(5, [i], network.latent_size)
        with torch.no_grad():
            expected, elsewhere = (network(z_NL, label_N1XYZ[i : i + 1], at)[0] for at in (place, None))
        np.testing.assert_allclose(patch_CXYZ, expected, atol=1e-5)
        assert torch.equal(expected, elsewhere) != has_position
    assert (position_N3 is not None) == has_position
    assert set(label_N1XYZ.unique().tolist()) == {0, 1}
    assert label_N1XYZ[::2].flatten(1).any(1).all()  # centred on vessels
    # Two heads, two trees.
    trees = [synthetic_head(sample_seed(5, k), shape, (1.0, 1.05, 1.2)).label_XYZ for k in (0, 1)]
    for i in (0, 1, count - 1) if position_N3 is not None else ():
        corner = ((position_N3[i].numpy() + 1) / 2 * shape - 8).round().astype(int)
        x, y, z = (slice(c, c + 16) for c in corner)
        np.testing.assert_array_equal(label_N1XYZ[i, 0], trees[i // PATCHES_PER_HEAD][x, y, z])


def test_labels_need_training_volumes_of_heads() -> None:
    network = FlowGenerator((16, 16, 16), 8, has_position=True, time_shift=2.0, num_steps=2, guidance=0.0, num_given=1)
    with pytest.raises(UsageError, match="no head"):
        LabelPatches(network, (1.0, 1.0, 1.0), 5)


def test_sampling_has_the_commands_defaults() -> None:
    config = compose.compose("generate", ["run=x"])
    assert (config.batch_size, config.label_threshold, config.weights) == (sampler.BATCH_SIZE, None, None)
    assert inspect.signature(load_generator).parameters["weights"].default is None


def test_senseless_samples_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    with pytest.raises(UsageError, match="last"):
        load_generator(tmp_path / "run", "last")
    with pytest.raises(CheckpointError, match="generator_standing"):  # never the running statistics instead
        load_generator(tmp_path / "run")
    trained = load_generator(tmp_path / "run", "running", device="cpu")
    for n, seed, changes in ((0, 1, {}), (1, -1, {}), (1, 1, {"batch_size": 0}), (1, 1, {"label_threshold": 0})):
        with pytest.raises(UsageError):
            trained.sample_batches(n, seed, **changes)
    with pytest.raises(UsageError):
        list(sampler.sample_patches(trained.network.train(), 1, [0], 1))


def test_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    generate(settings(tmp_path / "run"))
    out = tmp_path / "run" / "synthetic"
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    generate(settings(tmp_path / "run", batch_size=3))
    for changes, named in (
        ({"seed": 8}, "seed: 7 -> 8"),
        ({"num_patches": 6}, "5 -> 6"),
        ({"label_threshold": 0.4}, "0.4"),
    ):
        with pytest.raises(UsageError, match=named):
            generate(settings(tmp_path / "run", **changes))
    write_run(tmp_path / "new" / "run", seed=2)
    with pytest.raises(UsageError, match="weights_sha256"):  # samples of a retrained run do not pass for the old ones
        generate(settings(tmp_path / "new" / "run", out=str(out)))
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "synthetic_00000.h5").unlink()
    with pytest.raises(DataError, match="synthetic_00000.h5"):
        generate(settings(tmp_path / "run"))


def set_training_labels(run_dir: Path, threshold: float) -> None:
    """A training set whose labels are those that the threshold makes of the run's first samples."""
    samples = load_generator(run_dir, "running", device="cpu").sample(5, 7, label_threshold=threshold)
    records = [replace(record, kind="grid", score_XYZ=None) for record in samples]
    write_shards(run_dir.parent / "cohort/shards/gan/train", records)
    words = (f"variant.width={WIDTH}", f"variant.latent_size={LATENT}", f"data.cohort_dir={run_dir.parent}/cohort")
    (run_dir / "config.yaml").write_text(compose.to_yaml(compose.compose("train_gan", words)))
    digest = content_hash(run_dir.parent / "cohort/shards/gan/train")
    (run_dir / "provenance.json").write_text(json.dumps({"inputs": {"gan/train": digest}}))


def chosen(tmp_path: Path, name: str = "chosen") -> float | None:
    return generate(settings(tmp_path / "run", label_threshold=None, out=str(tmp_path / name))).label_threshold


def test_labels_are_cut_where_they_are_most_like_real_ones(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert chosen(tmp_path, "without a training set") == 0.3
    set_training_labels(tmp_path / "run", 0.65)
    assert chosen(tmp_path) == chosen(tmp_path) == 0.65
    set_training_labels(tmp_path / "run", 0.55)
    with pytest.raises(UsageError, match="trained_on"):  # begun from other training patches
        chosen(tmp_path)
    assert chosen(tmp_path, "anew") == 0.55
    (tmp_path / "cohort/shards/gan/train/shard-0.h5").unlink()
    assert chosen(tmp_path, "without its shard") == 0.3


def test_a_lost_training_set_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path / "run")
    set_training_labels(tmp_path / "run", 0.65)
    (tmp_path / "cohort/shards/gan/train/shard-0.h5").unlink()
    assert len(generate(settings(tmp_path / "run"))) == 5
    assert "not compared with the training set" in capsys.readouterr().out


def test_a_private_run_reads_no_training_label(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    set_training_labels(tmp_path / "run", 0.65)
    folder = tmp_path / "run/checkpoints/step_00000100"
    edit_json(folder / "state.json", lambda report: report["state"].update(privacy={"epsilon": 1.0}))
    entries = json.loads((folder / "manifest.json").read_text())
    content = (folder / "state.json").read_bytes()
    entries["state.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(entries))
    assert chosen(tmp_path) == 0.3


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="foreign"):
        generate(settings(tmp_path / "run", out=str(foreign)))
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_an_interrupted_folder_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run")
    monkeypatch.setattr(synthesis, "PAIRS_PER_SHARD", 2)
    generate(settings(tmp_path / "run", out=str(tmp_path / "straight")))
    out = tmp_path / "out"

    def stop_at_the_second_shard(patch_CXYZ: np.ndarray, *, seed: int, threshold: float) -> object:
        if seed == sample_seed(7, 3):
            raise KeyboardInterrupt
        return make_record(patch_CXYZ, seed=seed, threshold=threshold)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sampler, "make_record", stop_at_the_second_shard)
        generate(settings(tmp_path / "run", out=str(out)))
    assert sorted(path.name for path in out.iterdir()) == ["generation.json", "synthetic_00000.h5"]
    first = out / "synthetic_00000.h5"
    written = first.stat().st_mtime_ns
    generate(settings(tmp_path / "run", out=str(out)))
    assert first.stat().st_mtime_ns == written
    assert (out / "manifest.json").read_bytes() == (tmp_path / "straight" / "manifest.json").read_bytes()
    assert verify(out) == []


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    generate(settings(tmp_path / "run"))
    out = tmp_path / "run" / "synthetic"
    whole = (out / "synthetic_00000.h5").read_bytes()
    (out / "manifest.json").unlink()
    (out / "synthetic_00000.h5").write_bytes(whole[: len(whole) // 2])
    generate(settings(tmp_path / "run"))
    assert (out / "synthetic_00000.h5").read_bytes() == whole


def test_a_shard_with_a_flipped_byte_is_made_again(tmp_path: Path) -> None:
    """One that was finished before the run was interrupted."""
    write_run(tmp_path / "run")
    generate(settings(tmp_path / "run"))
    out = tmp_path / "run" / "synthetic"
    manifest, whole = (out / "manifest.json").read_bytes(), (out / "synthetic_00000.h5").read_bytes()
    image = ShardSet(out).stored_image(3).tobytes()
    damaged = bytearray(whole)
    damaged[whole.index(image) + 100] ^= 1
    (out / "manifest.json").unlink()
    (out / "synthetic_00000.h5").write_bytes(damaged)
    generate(settings(tmp_path / "run"))
    assert (out / "synthetic_00000.h5").read_bytes() == whole
    assert (out / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize("threshold", [0.3, None])
def test_a_folder_below_a_file_is_refused_before_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float | None
) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(sampler, "make_record", None)
    for out in ("file", "file/patches", "file/deep/patches"):
        with pytest.raises(UsageError, match="out="):
            generate(settings(tmp_path / "run", label_threshold=threshold, out=str(tmp_path / out)))


def test_a_start_that_was_killed_at_once_is_begun_again(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run/synthetic").mkdir()
    (tmp_path / "run/synthetic/generation.json.partial").write_text("{")
    assert len(generate(settings(tmp_path / "run"))) == 5


def test_damaged_nifti_files_are_written_again(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    generate(settings(tmp_path / "run", num_patches=2, nifti=True))
    files = sorted((tmp_path / "run/synthetic/nifti").rglob("*.nii.gz"))
    whole = [file.read_bytes() for file in files]
    assert len(files) == 4
    flipped = bytearray(whole[2])
    flipped[len(flipped) // 2] ^= 1
    for file, content in zip(files, (b"", whole[1][: len(whole[1]) // 2], flipped), strict=False):
        file.write_bytes(content)
    kept = files[3].stat().st_mtime_ns
    generate(settings(tmp_path / "run", num_patches=2, nifti=True))
    assert [file.read_bytes() for file in files] == whole
    assert files[3].stat().st_mtime_ns == kept


def test_nifti_pairs_carry_affine_and_voxels(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    generate(settings(tmp_path / "run", num_patches=2))
    # Asked for later: made from the finished shards.
    generate(settings(tmp_path / "run", num_patches=2, nifti=True))
    shards = ShardSet(tmp_path / "run" / "synthetic")
    for i in range(2):
        record = shards[i]
        folder = tmp_path / "run" / "synthetic" / "nifti" / record.subject
        image, vessel = nib.load(folder / "image.nii.gz"), nib.load(folder / "vessel.nii.gz")
        # The header's sform is float32.
        np.testing.assert_allclose(image.affine, AFFINE, rtol=1e-6)
        np.testing.assert_allclose(vessel.affine, AFFINE, rtol=1e-6)
        assert np.array_equal(np.asarray(image.dataobj), record.image_XYZ)
        assert np.array_equal(np.asarray(vessel.dataobj), record.label_XYZ)


def test_a_named_checkpoint_is_used(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    newer = Generator(PATCH, WIDTH, LATENT)
    init_weights(newer, 9)
    write_checkpoint(tmp_path / "run", newer, step=200)
    for name, checkpoint in (("old", "step_00000100"), ("new", None)):
        generate(settings(tmp_path / "run", checkpoint=checkpoint, out=str(tmp_path / name)))
    extras = [read_manifest(tmp_path / name).extra for name in ("old", "new")]
    assert [extra["checkpoint"] for extra in extras] == ["step_00000100", "step_00000200"]
    images = [ShardSet(tmp_path / name).image(0) for name in ("old", "new")]
    assert not np.array_equal(*images)
    with pytest.raises(CheckpointError, match="step_00000100"):
        generate(settings(tmp_path / "run", checkpoint="step_3"))


def test_all_parts_are_of_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = write_run(tmp_path / "run")
    add_to_checkpoint(tmp_path / "run", "generator_standing.safetensors", generator.state_dict())
    read_weights = generator_weights.read_weights

    def read_while_a_run_goes_on(run: Path, name: str, checkpoint: str | None) -> tuple:
        found = read_weights(run, name, checkpoint)
        if name == "generator":
            write_checkpoint(tmp_path / "run", generator, step=200)
        return found

    monkeypatch.setattr(generator_weights, "read_weights", read_while_a_run_goes_on)
    assert load_generator(tmp_path / "run", device="cpu").checkpoint == "step_00000100"


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(f"width: {WIDTH}", "width: 16"))
    with pytest.raises(CheckpointError, match="disagree"):
        generate(settings(tmp_path / "run"))


@pytest.mark.parametrize(
    "changes", [{"num_patches": 0}, {"num_patches": -3}, {"batch_size": 0}, {"seed": -1}, {"label_threshold": 0.0}]
)
def test_senseless_numbers_are_refused_before_anything_is_written(tmp_path: Path, changes: dict) -> None:
    write_run(tmp_path / "run")
    with pytest.raises(UsageError, match=next(iter(changes))):
        generate(settings(tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "synthetic").exists()


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="config.yaml"):
        generate(settings(tmp_path / "nowhere"))


def test_a_record_scales_and_clips() -> None:
    patch = np.array([[-1.0, 0.0, 1.0], [-0.5, 0.3, 1.5]], dtype=np.float32).reshape(2, 3, 1, 1)
    record = make_record(patch, seed=5, threshold=0.3)
    assert record.image_XYZ.ravel().tolist() == [0.0, 127.5, 255.0]
    assert record.score_XYZ.ravel().tolist() == [0.0, np.float16(0.3), 1.0]
    # 0.3 in half is 0.30005, so it counts as vessel at 0.3.
    assert record.label_XYZ.ravel().tolist() == [0, 1, 1]
    assert record.subject == "synthetic-5"


def test_a_diverged_generator_is_a_numeric_error() -> None:
    patch = np.zeros((2, 2, 2, 2), dtype=np.float32)
    patch[1, 0, 0, 0] = np.nan
    with pytest.raises(NumericError):
        make_record(patch, seed=1, threshold=0.3)


def test_named_weights_are_sampled(tmp_path: Path) -> None:
    generator = write_run(tmp_path / "run")
    buffers = {name: buffer + 1 for name, buffer in generator.named_buffers()}
    average = {name: value * 0.5 for name, value in generator.state_dict().items() if value.is_floating_point()}
    average |= {name: value for name, value in generator.state_dict().items() if not value.is_floating_point()}
    add_to_checkpoint(tmp_path / "run", "generator_standing.safetensors", buffers)
    with pytest.raises(UsageError, match="ema_decay"):
        generate(settings(tmp_path / "run", weights="ema", out=str(tmp_path / "none")))
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("ema_decay: null", "ema_decay: 0.9"))
    with pytest.raises(CheckpointError, match="generator_ema"):
        generate(settings(tmp_path / "run", weights="ema", out=str(tmp_path / "none")))
    add_to_checkpoint(tmp_path / "run", "generator_ema.safetensors", average)
    expected = {"standing": generator.state_dict() | buffers, "ema": average}
    for name, weights in expected.items():
        generate(settings(tmp_path / "run", weights=name, out=str(tmp_path / name)))
        generator.load_state_dict(weights)
        with torch.no_grad():
            image = (generator.eval()(latents(7, [0], LATENT))[0, 0].numpy() + 1) * 127.5
        # Half a step of the stored uint16, and float32 kernels of another batch size.
        np.testing.assert_allclose(ShardSet(tmp_path / name).image(0), image, atol=0.01)


@pytest.mark.filterwarnings("ignore:.*samples of:RuntimeWarning")
def test_the_notebook_of_the_readme_runs(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture) -> None:
    generator = write_run(tmp_path / "run")
    add_to_checkpoint(tmp_path / "run", "generator_standing.safetensors", dict(generator.named_buffers()))
    shards = generate(settings(tmp_path / "run"))
    cells = re.findall(r"```python\n(.*?)```", (repository / "vesselgan/README.md").read_text(), re.DOTALL)
    places = {"work/runs/NAME": str(tmp_path / "run"), "work/phantom/shards/gan/train": str(shards.folder)}
    names: dict[str, object] = {}
    for cell in cells:
        exec(re.sub("|".join(places), lambda place: places[place[0]], cell), names)
    said = capsys.readouterr().out
    assert "standing" in said and "5 synthetic patches" in said and "not comparable" in said
    assert sum(len([line for line in cell.splitlines() if line]) for cell in cells) <= 20
