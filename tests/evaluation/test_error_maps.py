import nibabel as nib
import numpy as np

from vesselgan.evaluation import error_maps
from vesselgan.evaluation.error_maps import error_map


def test_values_by_hand():
    found = error_map(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert found.tolist() == [0, 2, 3, 1] and found.dtype == np.uint8


def test_the_map_lies_on_the_labels_grid(tmp_path):
    truth, predicted = np.zeros((20, 14, 10), np.uint8), np.zeros((20, 14, 10), np.uint8)
    truth[2:18, 3:6, 4:6] = predicted[10:18, 3:6, 4:6] = predicted[2:18, 9:12, 4:6] = 1
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


def test_an_empty_pair_has_a_picture():
    nothing = np.zeros((8, 8, 8), np.uint8)
    assert not error_map(nothing, nothing).any()
    assert error_maps.render(nothing, (1.0, 1.0, 1.0)).shape[2] == 3
