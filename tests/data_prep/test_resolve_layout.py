"""nnU-Net's and BIDS's folders: files, vessel values and optional kinds, and errors that show what was seen."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep import check, layouts, resolve_layout
from data_prep.build_shards import build
from vesselgan.config.compose import compose
from vesselgan.config.schema import BuildShards, Layout
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.cohort import Cohort

from .conftest import ALONE, SMALL, write_pair


def config_of(layout: str, root: Path, *words: str) -> BuildShards:
    fixed = [f"data={layout}", f"data.root={root}", f"work_dir={root.parent / 'w'}", "purposes=[gan]"]
    return compose("build_shards", [*fixed, *SMALL, *words])


def write_nnunet(root: Path, labels: Any, values: tuple[int, ...] = (1,)) -> Path:
    for n in range(1, 4):
        write_pair(root / f"imagesTr/tof_{n:03d}_0000.nii.gz", root / f"labelsTr/tof_{n:03d}.nii.gz", values, n)
    (root / "imagesTs").mkdir()
    (root / "imagesTs/tof_009_0000.nii.gz").write_bytes(b"")
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "TOF"}}))
    return root


def write_bids(root: Path, *, with_sessions: bool) -> Path:
    for n in range(1, 4):
        for visit in ("1", "2") if with_sessions and n == 1 else ("1",):
            session = (f"ses-{visit}/", f"_ses-{visit}") if with_sessions else ("", "")
            folder, name = f"sub-{n:02d}/{session[0]}anat", f"sub-{n:02d}{session[1]}"
            image = root / folder / f"{name}_{'angio' if n > 1 else 'acq-3d_TOF'}.nii.gz"
            label = root / "derivatives/manual" / folder / f"{name}_desc-vessels_dseg.nii.gz"
            write_pair(image, label, (1,), 2 * n + int(visit))
    return root


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"background": 0, "vessel": 1}, [1]),
        ({"0": "background", "2": "Arteries"}, [2]),
        ({"background": 0, "tumour": 1, "vessels": [2, 3], "ignore": 4}, [2, 3]),
        ({"background": 0, "structure": 5}, [5]),
    ],
)
def test_dataset_json_says_which_value_is_vessel(tmp_path, labels, values):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert resolve_layout.vessel_values(tmp_path / "dataset.json") == values


def test_a_dataset_of_nnunet_becomes_shards(tmp_path):
    config = config_of("nnunet", write_nnunet(tmp_path / "raw", {"background": 0, "skull": 1, "vessel": 2}, (1, 2)))
    build(config, ALONE)
    cohort = Cohort.read(config.data.cohort_dir)
    assert sorted(cohort.subjects) == ["tof_001", "tof_002", "tof_003"]
    assert {int(s.read_label().data_XYZ.sum()) for s in cohort.subjects.values()} == {12}  # one line of two


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (None, DataError, "there is imagesTr, imagesTs, labelsTr"),
        ("{", DataError, "no labels can be read"),
        ('{"labels": {"background": 0}}', DataError, "no label but the background"),
        ('{"labels": {"background": 0, "ICA": 1, "MCA": 2}}', UsageError, "ICA [1], MCA [2]"),
        ('{"labels": 3}', DataError, "no labels can be read"),
        ('{"labels": {"vessel": 0}}', DataError, "vessel [0]"),
        ('{"labels": {"vessel": []}}', DataError, "vessel []"),
    ],
)
def test_an_unusable_dataset_json_is_named(tmp_path, content, error, text):
    root = write_nnunet(tmp_path / "raw", {})
    (root / "dataset.json").unlink()
    if content is not None:
        (root / "dataset.json").write_text(content)
    with pytest.raises(error) as caught:
        check.check(config_of("nnunet", root).data, ALONE)
    assert text in str(caught.value) and "dataset.json" in str(caught.value)


def test_ones_own_label_values_win(tmp_path):
    root = write_nnunet(tmp_path / "raw", {"background": 0, "ICA": 1, "MCA": 2}, (1, 2))
    data = config_of("nnunet", root, "data.prepare.label_values=[1,2]").data
    check.check(data, ALONE)
    assert data.prepare.label_values == [1, 2]


@pytest.mark.parametrize("with_sessions", [False, True])
def test_a_bids_folder_becomes_shards(tmp_path, with_sessions, capsys):
    config = config_of("bids", write_bids(tmp_path / "bids", with_sessions=with_sessions))
    build(config, ALONE)
    cohort = Cohort.read(config.data.cohort_dir)
    assert sorted(cohort.subjects) == ["01", "02", "03"]  # two sessions are one patient
    said = capsys.readouterr().out
    assert ("session 1 is used, not 2" in said) is with_sessions and "no mask" in said
    assert all(subject.label and subject.mask is None for subject in cohort.subjects.values())


def test_masks_of_a_bids_folder_are_found(tmp_path):
    root = write_bids(tmp_path / "bids", with_sessions=True)
    mask = root / "derivatives/bet/sub-02/ses-1/anat/sub-02_ses-1_desc-brain_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"")
    data = config_of("bids", root).data
    resolve_layout.resolve(data, ALONE)
    first, second, _ = layouts.find_subjects(root, data.layout).subjects
    assert second.mask == mask
    # What one has, all must have: the path that was looked for is named.
    assert "sub-01/ses-1/anat/sub-01_ses-1_*{brain,Brain}*_mask" in first.missing[0]


def test_an_unlabelled_bids_folder_has_no_labels(tmp_path):
    image = tmp_path / "sub-1/anat/sub-1_angio.nii"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"")
    data = config_of("bids", tmp_path).data
    resolve_layout.resolve(data, ALONE)
    (files,) = layouts.find_subjects(tmp_path, data.layout).subjects
    assert (files.subject, files.image, files.label, files.missing) == ("1", image, None, ())


def test_the_right_folder_below_is_named(tmp_path):
    write_nnunet(tmp_path / "raw/Dataset001_TOF", {"vessel": 1})
    layout = config_of("nnunet", tmp_path).data.layout
    with pytest.raises(DataError, match="it fits below data.root=.*raw/Dataset001_TOF"):
        layouts.find_subjects(tmp_path, layout)
    with pytest.raises(DataError, match="there is Dataset001_TOF; data.root=.*/Dataset001_TOF has one"):
        check.check(config_of("nnunet", tmp_path / "raw").data, ALONE)


@pytest.mark.parametrize("pattern", ["[{subject}", "{subject}]", "a/[[{subject}]b].nii"])
def test_nested_or_open_brackets_are_a_usage_error(tmp_path, pattern):
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="may be absent"):
        layouts.find_subjects(tmp_path, Layout(pattern, None, None))
