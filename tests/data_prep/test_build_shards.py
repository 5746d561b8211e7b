"""Shards from a cohort: the right pairs in the right places, and what a second start finds, mends or refuses."""

import json
import os
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep import build_shards
from vesselgan.anatomy.tissue import BRAIN
from vesselgan.config.schema import PreparedData
from vesselgan.core.errors import DataError, ResourceError, UsageError
from vesselgan.formats import volumes
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.shards import ShardSet, verify

from ..conftest import edit_json
from .conftest import ROOT, build, change

NUM_GRID = 2 * 2 * 3  # ceil(24/16) x ceil(20/16) x ceil(18/8)


def shards(data: PreparedData, name: str) -> ShardSet:
    return ShardSet(Path(data.cohort_dir) / "shards" / name)


def identities(data: PreparedData) -> dict[str, tuple[int, int]]:
    """Shard -> (inode, time of change): what was not written again keeps both."""
    found = {}
    for path in Path(data.cohort_dir).rglob("*.h5"):
        found[str(path.relative_to(data.cohort_dir))] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def test_each_purpose_gets_its_splits_and_its_patches(cohort):
    data = cohort(5)
    build(data)
    splits = {name: subject.split for name, subject in Cohort.read(data.cohort_dir).subjects.items()}
    assert Counter(splits.values()) == {"train": 3, "validation": 1, "test": 1}
    gan, unet, validation = shards(data, "gan/train"), shards(data, "unet/train"), shards(data, "unet/validation")
    assert (len(gan), len(unet), len(validation)) == (3 * (NUM_GRID + 5), 3 * 9, 9)
    assert not (Path(data.cohort_dir) / "shards/gan/validation").exists()
    kinds = Counter((r.subject, r.kind) for r in gan)
    training = [name for name, split in splits.items() if split == "train"]
    assert kinds == {(name, kind): n for name in training for kind, n in (("grid", NUM_GRID), ("vessel", 5))}
    assert {unet[i].subject for i in range(len(unet))} == set(training)
    assert {validation[i].subject for i in range(9)} == {n for n, s in splits.items() if s == "validation"}
    assert gan.spacing_mm == pytest.approx((0.5, 0.5, 0.7)) and gan.patch_shape == (16, 16, 8)
    assert all(np.allclose(entry["affine"], np.diag([0.5, 0.5, 0.7, 1])) for entry in gan.subjects.values())
    assert all(verify(Path(data.cohort_dir) / "shards" / name) == [] for name in ("gan/train", "unet/train"))


def test_a_record_is_cut_from_its_own_volume(cohort):
    data = cohort(4)
    build(data, "gan")
    gan, subjects = shards(data, "gan/train"), Cohort.read(data.cohort_dir).subjects
    for i in range(len(gan)):
        record, subject = gan[i], subjects[gan[i].subject]
        assert subject.image.parent.name == record.subject
        raw = nib.load(subject.image).get_fdata()
        low, high = raw[raw != 0].min(), np.percentile(raw[raw != 0], 99.99)
        window = tuple(slice(c, c + n) for c, n in zip(record.corner, (16, 16, 8), strict=True))
        expected = np.clip((raw[window] - low) * 255 / (high - low), 0, 255)
        # half a step of uint16 and float32's rounding
        np.testing.assert_allclose(record.image_XYZ, expected, atol=0.002)
        np.testing.assert_array_equal(record.label_XYZ, np.asarray(nib.load(subject.label).dataobj)[window])
        assert record.limits == (low, pytest.approx(high)) and record.num_clipped == (raw > record.limits[1]).sum()
        assert record.kind == "grid" or record.label_XYZ.any()
        assert gan.volume_shape(i) == raw.shape


def test_a_manifest_without_shapes_is_completed(cohort):
    data = cohort(4)
    build(data, "gan")
    before, folder = identities(data), Path(data.cohort_dir) / "shards/gan/train"
    edit_json(folder / "manifest.json", lambda manifest: [s.pop("shape") for s in manifest["subjects"].values()])
    build(data, "gan")
    assert identities(data) == before and ShardSet(folder).volume_shape(0)


def test_tissue_maps_need_every_brain_mask(cohort):
    data = cohort(4)
    build(data, "gan")
    for record in shards(data, "gan/train"):
        mask_XYZ = np.asarray(nib.load(Cohort.read(data.cohort_dir).subjects[record.subject].mask).dataobj)
        window = tuple(slice(c, c + n) for c, n in zip(record.corner, (16, 16, 8), strict=True))
        assert record.tissue_XYZ is not None and ((record.tissue_XYZ == BRAIN) == mask_XYZ[window]).all()
    lacking = cohort(4)
    lacking.layout.mask, lacking.cohort_dir = None, f"{data.cohort_dir}-lacking"
    build(lacking, "gan")
    assert all(record.tissue_XYZ is None for record in shards(lacking, "gan/train"))


def test_labels_of_other_names_leave_nothing_behind(cohort):
    data = cohort(4)
    data.layout.label, named = "?labels/{subject}.nii.gz", data.layout.label
    with pytest.raises(DataError, match="no label was found.*left out"):
        build(data, "gan")
    data.layout.label = named
    build(data, "gan")
    assert len(shards(data, "gan/train"))


def test_few_vessel_patches_are_named(cohort, caplog):
    data = cohort(4)
    data.prepare.num_vessel_patches_gan = 1
    build(data, "gan")
    assert "num_vessel_patches_gan=12" in caplog.text


def test_a_changed_mask_is_refused(cohort):
    data = cohort(4)
    build(data, "gan")
    path = next(Path(data.root).rglob("*mask*"))
    change(path, lambda mask: np.where(np.arange(len(mask))[:, None, None] == 2, 1 - mask, mask))
    with pytest.raises(DataError, match="the mask of"):
        build(data, "gan")


def test_a_second_start_keeps_everything(cohort):
    data = cohort(4)
    build(data)
    before = identities(data)
    build(data)
    assert identities(data) == before


def test_patients_named_later_reach_cohort_and_manifest(cohort, tmp_path):
    data = cohort(4)
    build(data, "gan")
    assert all(entry["patient"] == name for name, entry in shards(data, "gan/train").subjects.items())
    subjects = Cohort.read(data.cohort_dir).subjects
    assert all(subject.patient == name for name, subject in subjects.items())
    splits = {name: subject.split for name, subject in Cohort.read(data.cohort_dir).subjects.items()}
    rows = "".join(f"{name},{split},{split}\n" for name, split in splits.items())
    (tmp_path / "split.csv").write_text(f"subject,split,patient\n{rows}")
    data.prepare.split.csv = str(tmp_path / "split.csv")
    build(data, "gan")
    assert {entry["patient"] for entry in shards(data, "gan/train").subjects.values()} == {"train"}
    assert {subject.patient for subject in Cohort.read(data.cohort_dir).subjects.values()} == {
        "train",
        "validation",
        "test",
    }


def test_patients_named_later_may_not_leak(cohort, tmp_path):
    data = cohort(4)
    build(data, "gan")
    splits = {name: subject.split for name, subject in Cohort.read(data.cohort_dir).subjects.items()}
    rows = "".join(f"{name},{split},one\n" for name, split in splits.items())
    (tmp_path / "split.csv").write_text(f"subject,split,patient\n{rows}")
    data.prepare.split.csv = str(tmp_path / "split.csv")
    with pytest.raises(DataError, match="one stands in"):
        build(data, "gan")


def test_only_what_is_missing_is_built(cohort, hashes):
    data = cohort(4)
    build(data)
    bytes_before, before = hashes(data), identities(data)
    folder = Path(data.cohort_dir) / "shards"
    (folder / "gan/train/shard-00002.h5").unlink()
    (folder / "unet/train/manifest.json").unlink()
    (folder / "unet/train/shard-00000.h5.partial").write_bytes(b"left by a killed job")
    (folder / ".build/unet-train-shard-00000.h5.json").unlink()
    build(data)
    assert hashes(data) == bytes_before
    changed = {name for name, identity in identities(data).items() if identity != before[name]}
    assert changed == {"shards/gan/train/shard-00002.h5", "shards/unet/train/shard-00000.h5"}


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_repair_rebuilds_a_damaged_shard_alone(cohort, hashes, damage):
    data = cohort(4)
    build(data)
    bytes_before, before = hashes(data), identities(data)
    name = "shards/gan/train/shard-00001.h5"
    path = Path(data.cohort_dir) / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes({"flip": bytes(flipped), "cut": content[:-50], "other": os.urandom(9000)}[damage])
    with pytest.raises(DataError, match=f"{name}.*data.prepare.repair=true"):
        build(data)
    data.prepare.repair = True
    build(data)
    assert hashes(data) == bytes_before
    assert {n for n, identity in identities(data).items() if identity != before[n]} == {name}


def test_a_second_job_in_the_folder_is_refused(cohort, hold_lock):
    data = cohort(4)
    Path(data.cohort_dir).mkdir(parents=True)
    holder = hold_lock(Path(data.cohort_dir) / ".build_shards.lock")
    with pytest.raises(ResourceError, match=f"process {holder.pid}"):
        build(data)
    assert not (Path(data.cohort_dir) / "shards").exists()


def test_other_settings_are_refused_with_the_difference(cohort):
    data = cohort(4)
    build(data)
    before = identities(data)
    data.prepare.num_vessel_patches_gan, data.prepare.split.seed = 6, 1
    with pytest.raises(UsageError, match="num_vessel_patches_gan: 5 -> 6; data.prepare.split.seed: 990 -> 1"):
        build(data)
    data.prepare.num_vessel_patches_gan, data.prepare.split.seed = 5, 990
    data.prepare.quarantine = data.prepare.repair = True  # these change no byte
    build(data)
    assert identities(data) == before


@pytest.mark.parametrize("damage", [Path.exists, Path.unlink, lambda path: path.write_text("{")])
def test_changed_inputs_are_refused_by_name(cohort, damage):
    data = cohort(4)
    build(data)
    before = identities(data)
    path = Path(data.root) / "sub-02" / "vessel.nii.gz"
    change(path, lambda label: np.roll(label, 1, axis=1))
    damage(Path(data.cohort_dir) / "cohort.json")
    with pytest.raises(DataError, match="label of sub-02"):
        build(data)
    assert identities(data) == before


def test_an_edited_cohort_json_is_made_again(cohort, hashes):
    data = cohort(4)
    build(data)
    before = hashes(data)
    edit_json(Path(data.cohort_dir) / "cohort.json", lambda c: c["subjects"]["sub-01"].update(split="test"))
    build(data)
    assert hashes(data) == before


def test_a_manifest_that_was_edited_is_rewritten(cohort, hashes):
    data = cohort(4)
    build(data)
    before, path = hashes(data), Path(data.cohort_dir) / "shards/gan/train/manifest.json"
    others = {"patch_shape": [8, 8, 8], "spacing_mm": [1, 1, 1], "subjects": {}, "extra": {}, "percentiles": (0.0, 99)}
    for key, other in others.items():
        edit_json(path, lambda content, key=key, other=other: content.update({key: other}))
        build(data)
        assert hashes(data) == before, key


@pytest.mark.parametrize("name", ["cohort.json", "shards/gan/train/manifest.json"])
def test_newer_files_are_refused_and_not_overwritten(cohort, hashes, name):
    data = cohort(4)
    build(data)
    newer = {"format_version": 4, "made_by": "vesselgan 9.0"}
    edit_json(Path(data.cohort_dir) / name, lambda content: content.update(newer))
    (Path(data.cohort_dir) / "shards/gan/train/shard-00000.h5").unlink()
    before = hashes(data)
    with pytest.raises(DataError, match="vesselgan 9.0"):
        build(data)
    assert hashes(data) == before


def test_a_damaged_state_file_is_a_data_error(cohort):
    data = cohort(4)
    build(data)
    path = Path(data.cohort_dir) / "shards/.build/state.json"
    whole = json.loads(path.read_text())
    broken = [whole | {key: None} for key in ("settings", "inputs", "contents", "set_aside")]
    for content in (*broken, [], {}, {"name": "tiny"}):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"state\.json"):
            build(data)


def test_moved_or_repacked_inputs_are_the_same_cohort(cohort):
    data = cohort(4)
    build(data)
    before = identities(data)
    moved = Path(data.root).rename(Path(data.root).with_name("elsewhere"))
    data.root = str(moved)
    path = moved / "sub-01" / "image.nii.gz"
    volumes.write_volume(path, np.asarray(nib.load(path).dataobj), nib.load(path).affine)
    build(data)
    assert identities(data) == before
    assert Cohort.read(data.cohort_dir).subjects["sub-01"].image == path


def test_a_change_between_check_and_cutting_is_noticed(cohort, monkeypatch):
    data = cohort(4)
    resolve = build_shards.resolve_cohort

    def resolve_then_change(*arguments: object) -> object:
        resolved = resolve(*arguments)
        for path in Path(data.root).rglob("vessel.nii.gz"):
            change(path, lambda label: 1 - label)
        return resolved

    monkeypatch.setattr(build_shards, "resolve_cohort", resolve_then_change)
    with pytest.raises(DataError, match=r"sub-0\d/vessel\.nii\.gz: its voxels"):
        build(data)
    assert not list(Path(data.cohort_dir).rglob("*.h5"))


@pytest.mark.parametrize(("name", "what"), [("shards/notes.txt", "shards"), ("cohort.json", "cohort.json")])
def test_a_foreign_folder_is_never_written_into(cohort, name, what):
    data = cohort(4)
    path = Path(data.cohort_dir) / name
    path.parent.mkdir(parents=True)
    path.write_text('{"name": "theirs"}')
    with pytest.raises(UsageError, match=what):
        build(data)
    assert [p for p in Path(data.cohort_dir).rglob("*") if p.is_file()] == [path]
    assert path.read_text() == '{"name": "theirs"}'


def test_another_cohorts_shards_are_refused(cohort):
    data = cohort(4)
    build(data)
    data.name = "other"
    with pytest.raises(UsageError, match="tiny, not other"):
        build(data)


def test_an_output_among_inputs_or_program_is_refused(cohort):
    data = cohort(4)
    data.cohort_dir = data.root
    with pytest.raises(UsageError, match="data.root"):
        build(data)
    data.cohort_dir = str(ROOT / "vesselgan" / "tiny")
    with pytest.raises(UsageError, match="vesselgan"):
        build(data)
    data.cohort_dir, data.root = str(Path(data.root).parent / "out"), "/nowhere"
    with pytest.raises(DataError, match="/nowhere"):
        build(data)
    assert not Path(data.cohort_dir).exists()


def test_unusable_subjects_stop_the_build_or_are_quarantined(cohort, capsys):
    data = cohort(5)
    (Path(data.root) / "sub-03" / "image.nii.gz").write_bytes(b"broken")
    with pytest.raises(DataError, match="sub-03"):
        build(data)
    assert not (Path(data.cohort_dir) / "shards").exists()
    data.prepare.quarantine = True
    for _ in range(2):
        build(data)
        assert "set aside: sub-03" in capsys.readouterr().out
    assert sorted(Cohort.read(data.cohort_dir).subjects) == ["sub-01", "sub-02", "sub-04", "sub-05"]
    data.prepare.quarantine = False
    with pytest.raises(DataError, match="sub-03"):
        build(data)


def test_broken_links_are_unusable_subjects(cohort):
    data = cohort(6)
    for number, target in ((1, "nowhere.nii.gz"), (2, "image.nii.gz")):
        path = Path(data.root) / f"sub-{number:02d}" / "image.nii.gz"
        path.unlink()
        path.symlink_to(target)
    with pytest.raises(DataError, match="sub-01, sub-02"):
        build(data)
    data.prepare.quarantine = True
    build(data)
    assert sorted(Cohort.read(data.cohort_dir).subjects) == ["sub-03", "sub-04", "sub-05", "sub-06"]


def test_thin_volumes_are_reflected_when_asked(cohort):
    data = cohort(3)
    data.prepare.patch_shape, data.prepare.reflect_pad = [24, 16, 32], True
    build(data, "gan")
    gan, subjects = shards(data, "gan/train"), Cohort.read(data.cohort_dir).subjects
    assert len(gan) == 2 + 5  # 24 / 24, 20 / 16, 18 padded to 32
    record = gan[0]
    raw = np.asarray(nib.load(subjects[record.subject].label).dataobj)
    np.testing.assert_array_equal(record.label_XYZ[:, :, :18], raw[:, :16])
    np.testing.assert_array_equal(record.label_XYZ[:, :, 18:], raw[:, :16, 16:2:-1])
    np.testing.assert_array_equal(record.image_XYZ[:, :, 18:], record.image_XYZ[:, :, 16:2:-1])


def test_too_small_a_disk_is_refused_first(cohort, monkeypatch):
    data = cohort(3)
    usage = build_shards.shutil.disk_usage("/")
    monkeypatch.setattr(build_shards.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(ResourceError, match="need 350 KiB, 100 bytes are free"):
        build(data)
    assert not list(Path(data.cohort_dir).rglob("*.h5"))


def test_each_volume_is_read_once_to_be_cut(cohort, monkeypatch):
    data = cohort(5)
    build(data)
    for path in Path(data.cohort_dir).rglob("*.h5"):
        path.unlink()
    read, counts = volumes.read_image, Counter()

    def counted(path: Path, *, nan_value: float | None) -> volumes.Volume:
        counts[Path(path).parent.name] += 1
        return read(path, nan_value=nan_value)

    monkeypatch.setattr(volumes, "read_image", counted)
    build(data, "gan")
    assert len(counts) == 3 and set(counts.values()) == {1}
