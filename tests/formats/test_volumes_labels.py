"""Labels become 0 and 1 or are refused, and two files share a voxel grid or do not."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats import volumes

from .conftest import SHAPE, a_label, an_affine, an_image, save


@pytest.mark.parametrize(
    ("factor", "dtype", "note"),
    [
        (1, np.uint8, None),
        (1, np.float32, None),
        (255, np.uint8, "{0, 255}: 255 taken"),
        (255, np.float32, "255 taken"),
    ],
)
def test_binary_labels_are_read_as_0_and_1(tmp_path, factor, dtype, note):
    volume = volumes.read_label(save(tmp_path / "a.nii.gz", (a_label() * factor).astype(dtype)))
    assert volume.data_XYZ.dtype == np.uint8
    np.testing.assert_array_equal(volume.data_XYZ, a_label())
    assert volume.notes == () if note is None else note in volume.notes[0]
    assert volume.values == (0, factor)


@pytest.mark.parametrize(("fill", "expected"), [(0, 0), (1, 1), (255, 1)])
def test_empty_and_full_labels_are_read(tmp_path, fill, expected):
    volume = volumes.read_label(save(tmp_path / "a.nii.gz", np.full(SHAPE, fill, np.uint8)))
    assert (volume.data_XYZ == expected).all()


def test_a_soft_label_needs_a_cut(tmp_path):
    soft = a_label() * 0.7 + 0.3 * (a_label()[::-1] > 0)
    path = save(tmp_path / "a.nii.gz", soft.astype(np.float32))
    with pytest.raises(DataError, match=r"soft label.*data\.prepare\.label_binarize_threshold"):
        volumes.read_label(path)
    np.testing.assert_array_equal(volumes.read_label(path, label_binarize_threshold=0.5).data_XYZ, soft >= 0.5)


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 2), (1, 2), (0, 1, 255)])
def test_classes_need_the_values_that_mean_vessel(tmp_path, values):
    classes = np.array(values, np.int16)[np.arange(210).reshape(SHAPE) % len(values)]
    path = save(tmp_path / "a.nii.gz", classes)
    with pytest.raises(DataError, match=r"data\.prepare\.label_values="):
        volumes.read_label(path)
    chosen = volumes.read_label(path, label_values=[values[-1]])
    np.testing.assert_array_equal(chosen.data_XYZ, classes == values[-1])


def test_two_rules_for_a_label_are_refused(tmp_path):
    with pytest.raises(UsageError, match="label_values|label_binarize_threshold"):
        volumes.read_label(save(tmp_path / "a.nii.gz", a_label()), label_values=[1], label_binarize_threshold=0.5)


def test_an_image_taken_for_a_label_is_refused(tmp_path):
    noise = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    with pytest.raises(DataError, match=r"soft label"):
        volumes.read_label(save(tmp_path / "a.nii.gz", noise))


def test_undefined_label_voxels_are_refused(tmp_path):
    label = a_label().astype(np.float32)
    label[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        volumes.read_label(save(tmp_path / "a.nii.gz", label))


def difference(tmp_path: Path, affine: np.ndarray, shape: tuple[int, ...] = SHAPE) -> str | None:
    first = volumes.read_header(save(tmp_path / "a.nii.gz", an_image()))
    return volumes.grid_difference(first, volumes.read_header(save(tmp_path / "b.nii.gz", an_image(shape), affine)))


def test_affines_may_differ_by_rounding_alone(tmp_path):
    moved = an_affine()
    moved[0, 3] += 1e-6
    assert difference(tmp_path, moved) is None
    moved[0, 3] += 0.1
    assert "0.1 mm apart" in difference(tmp_path, moved)


def test_a_scale_error_counts_at_the_far_corner(tmp_path):
    stretched = an_affine()
    stretched[0, 0] += 0.01  # six voxel steps of 10 um: 0.06 mm
    assert "0.06 mm apart" in difference(tmp_path, stretched)


def test_a_flipped_axis_is_named_by_orientation_codes(tmp_path):
    assert difference(tmp_path, an_affine() @ np.diag([-1, -1, 1, 1])) == "orientations differ: RAS vs LPS"


def test_both_shapes_are_shown(tmp_path):
    assert difference(tmp_path, an_affine(), (7, 6, 6)) == "shapes 7 x 6 x 5 and 7 x 6 x 6 differ"


def three_classes(tmp_path: Path, dtype: type) -> tuple[np.ndarray, Path]:
    """Float classes 0 to 3 as scripts save them with an angiogram's header, which scales them to its integers."""
    classes = np.arange(210).reshape(SHAPE) % 4
    image = nib.Nifti1Image(classes.astype(float), an_affine())
    image.header.set_data_dtype(dtype)
    nib.save(image, tmp_path / "classes.nii.gz")
    return classes, tmp_path / "classes.nii.gz"


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_scaled_classes_are_read_as_integers(tmp_path, dtype):
    classes, path = three_classes(tmp_path, dtype)
    volume = volumes.read_label(path, label_values=[1, 2])
    np.testing.assert_array_equal(volume.data_XYZ, np.isin(classes, [1, 2]))
    assert volume.values == (0, 1, 2, 3)
    with pytest.raises(DataError, match=r"label_values=\[1,2,3\]"):
        volumes.read_label(path)


def test_a_soft_label_holds_no_classes(tmp_path):
    with pytest.raises(DataError, match="label_binarize_threshold"):
        volumes.read_label(save(tmp_path / "a.nii.gz", (a_label() * 0.7).astype(np.float32)), label_values=[1])


def test_tiny_voxels_are_compared_by_their_size(tmp_path):
    tiny = np.diag([5e-4, 5e-4, 7e-4, 1])
    first, moved = volumes.read_header(save(tmp_path / "a.nii.gz", an_image(), tiny)), tiny.copy()
    moved[0, 3] = 5e-4
    assert volumes.grid_difference(first, volumes.read_header(save(tmp_path / "b.nii.gz", an_image(), moved)))
