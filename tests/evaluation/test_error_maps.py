import nibabel as nib
import numpy as np

from vesselgan.evaluation import error_maps
from vesselgan.evaluation.error_maps import COLOURS, error_map


def masks() -> tuple[np.ndarray, np.ndarray]:
    """Truth: a tube along x; prediction: its right half and a tube beside it."""
    truth, predicted = np.zeros((20, 14, 10), np.uint8), np.zeros((20, 14, 10), np.uint8)
    truth[2:18, 3:6, 4:6] = 1
    predicted[10:18, 3:6, 4:6] = 1
    predicted[2:18, 9:12, 4:6] = 1
    return truth, predicted


def test_values_by_hand():
    found = error_map(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert found.tolist() == [0, 2, 3, 1] and found.dtype == np.uint8


def test_the_map_lies_on_the_labels_grid_and_the_picture_has_all_three_colours(tmp_path):
    truth, predicted = masks()
    # Stored as LPS and oblique: the map must come back on just that grid.
    turn = np.array([[-0.98, 0.17, 0, 5], [-0.17, -0.98, 0, 7], [0, 0, 1.5, -3], [0, 0, 0, 1]], float)
    nib.save(nib.Nifti1Image(truth[::-1, ::-1], turn), tmp_path / "label.nii.gz")
    errors = error_map(truth, predicted)
    error_maps.write(tmp_path / "errors", "sub-1", errors, tmp_path / "label.nii.gz", (1.0, 1.0, 1.5))
    stored = nib.load(tmp_path / "errors" / "sub-1.nii.gz")
    assert stored.get_data_dtype() == np.uint8
    np.testing.assert_allclose(stored.affine, turn, atol=1e-6)  # float32 in the header
    assert np.array_equal(np.asarray(stored.dataobj), errors[::-1, ::-1])
    assert (tmp_path / "errors" / "sub-1.png").read_bytes().startswith(b"\x89PNG")
    picture = error_maps.render(errors, (1.0, 1.0, 1.5))
    rendered = picture[:, -error_maps.SIDE :].astype(int)
    flat = {tuple(colour) for colour in picture[:, : -error_maps.SIDE].reshape(-1, 3).tolist()}
    assert set(COLOURS) <= flat
    for colour in COLOURS:
        # In 3D the light shades them: the hue is what is left, so compare directions.
        direction = np.array(colour) / np.linalg.norm(colour)
        length = np.linalg.norm(rendered, axis=2)
        alike = (rendered @ direction) / np.maximum(length, 1)
        assert ((alike > 0.995) & (length > 120)).sum() > 50, colour


def test_an_empty_pair_has_an_empty_map_and_a_picture():
    nothing = np.zeros((8, 8, 8), np.uint8)
    assert not error_map(nothing, nothing).any()
    assert error_maps.render(nothing, (1.0, 1.0, 1.0)).shape[2] == 3


def test_a_projection_shows_what_there_is_most_of_along_the_ray():
    errors = np.zeros((4, 4, 8), np.uint8)
    errors[0, 0, :3], errors[0, 0, 3:5] = 1, 3  # three right, two missed
    errors[3, 3, :2], errors[3, 3, 4:6] = 1, 2  # as many right as made up: the error is shown
    axial = error_maps.render(errors, (1.0, 1.0, 1.0))[6 : 6 + error_maps.SIDE, 6 : 6 + error_maps.SIDE]
    assert tuple(axial[-2, 1]) == COLOURS[0]  # x and y of 0 lie at the left and at the bottom
    assert tuple(axial[1, -2]) == COLOURS[1]
    assert tuple(axial[-2, -2]) == (0, 0, 0)
