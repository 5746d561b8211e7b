"""The phantom: its bytes follow from its seed, its numbers are an angiogram's, brightness alone does not solve it."""

import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.sparse.csgraph import minimum_spanning_tree

from data_prep import make_phantom, phantom_vessels
from data_prep.phantom import FAR_MM, WARP_MM, Field, Grid, Head, Scanner, draw_tubes, generate_subject
from data_prep.phantom_vessels import TREES, Tip, Tubes, murray, spanning_tree, trunk
from vesselgan.config.compose import compose
from vesselgan.config.schema import MakePhantom
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.intensities import intensity_limits, scale_to_255

from .conftest import ALONE, python_on_ranks, run

NUM_SUBJECTS = 4
TINY = ("phantom.shape=[24,28,16]", "phantom.spacing_mm=[6,6,5]", "phantom.num_subjects=3")
NAMES = ("image", "vessel", "brain_mask")


def configured(work_dir: Path, *overrides: str) -> MakePhantom:
    return compose("make_phantom", [f"work_dir='{work_dir}'", *overrides])


def made(work_dir: Path, *overrides: str) -> Path:
    config = configured(work_dir, *overrides)
    make_phantom.make_cohort(config, ALONE)
    return Path(config.data.root)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four subjects of the demo's cohort."""
    return made(tmp_path_factory.mktemp("phantom"), f"phantom.num_subjects={NUM_SUBJECTS}")


@pytest.fixture(scope="session")
def phantom_subjects(phantom_root: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Image, vessel and brain mask of each."""
    return [
        tuple(np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj) for name in NAMES)
        for folder in sorted(phantom_root.glob("sub-*"))
    ]


def test_a_subject_is_the_same_in_any_cohort(phantom_root, tmp_path):
    alone = made(tmp_path, "phantom.num_subjects=1")
    for name in NAMES:
        file = f"sub-01/{name}.nii.gz"
        assert (alone / file).read_bytes() == (phantom_root / file).read_bytes()


def test_subjects_and_seeds_differ(phantom_root, tmp_path):
    other = made(tmp_path, "phantom.num_subjects=1", "phantom.seed=1")
    images = [path.read_bytes() for path in (*phantom_root.glob("*/vessel.nii.gz"), other / "sub-01/vessel.nii.gz")]
    assert len(set(images)) == NUM_SUBJECTS + 1


def test_files_share_a_grid_and_hold_no_text(phantom_root):
    phantom = configured(phantom_root).phantom
    for folder in phantom_root.glob("sub-*"):
        files = [nib.load(folder / f"{name}.nii.gz") for name in NAMES]
        assert [file.get_data_dtype() for file in files] == [np.int16, np.uint8, np.uint8]
        for file in files:
            assert file.shape == tuple(phantom.shape)
            assert nib.aff2axcodes(file.affine) == ("R", "A", "S")
            np.testing.assert_allclose(file.header.get_zooms(), phantom.spacing_mm, rtol=1e-6)
            np.testing.assert_array_equal(file.affine, files[0].affine)
            assert file.header["descrip"].item() == b"" and not file.header.extensions
        assert set(np.unique(files[1].dataobj)) == set(np.unique(files[2].dataobj)) == {0, 1}


def test_intensities_and_vessel_share_are_calibrated(phantom_subjects):
    for image, vessel, mask in phantom_subjects:
        brain = np.median(image[mask == 1])
        assert 0.004 <= (vessel & mask).sum() / mask.sum() <= 0.015
        # Trunks about four times brain, and up to five with noise and bias; the faint half of the voxels below three.
        assert 3.3 <= np.percentile(image[vessel == 1], 95) / brain <= 5.3
        assert np.median(image[vessel == 1]) / brain <= 3.0
        # Scalp: the brightest of the first ten voxels of each sideways ray in the upper half, 1.5 to 2 times brain; the
        # maximum over noisy voxels and the bias field widen that by 15 % each way.
        upper = image[:, 30:80, 24:].astype(float)
        starts = (gaussian_filter(upper, 0.7) > 0.4 * brain).argmax(axis=0)
        rays = starts[None] + np.arange(10)[:, None, None]
        rim = np.take_along_axis(upper, np.minimum(rays, len(upper) - 1), axis=0).max(axis=0)
        assert 1.5 * 0.85 <= np.median(rim) / brain <= 2.0 * 1.15


def test_the_upper_limit_clips_few_vessel_voxels(phantom_subjects):
    prepare = compose("build_shards", []).data.prepare
    for image, vessel, _ in phantom_subjects:
        _, high = intensity_limits(image.astype(np.float32), prepare.percentiles)
        assert (image[vessel == 1] > high).mean() <= prepare.max_clipped_vessel_share


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [-1, 1])
def test_label_lies_on_the_vessels_to_the_voxel(phantom_subjects, axis, shift):
    for image, vessel, _ in phantom_subjects:
        there = image[vessel == 1].mean()
        assert image[np.roll(vessel, shift, axis) == 1].mean() < 0.9 * there


def test_neck_arteries_are_labelled_below_the_brain(phantom_subjects):
    for _, vessel, mask in phantom_subjects:
        outside = vessel & (1 - mask)
        assert 0.15 <= outside.sum() / vessel.sum() <= 0.45
        height = np.argwhere(outside)[:, 2] / vessel.shape[2]
        assert np.percentile(height, 95) < 0.45  # the skull base, where the carotids enter
        assert outside[:, :, 0].any()


def test_scalp_arteries_are_bright_and_not_labelled(phantom_subjects):
    for image, vessel, mask in phantom_subjects:
        from_vessels = gaussian_filter(vessel.astype(np.float32), 1.5) > 1e-3
        elsewhere = image[(mask == 0) & ~from_vessels]
        assert (elsewhere > np.median(image[vessel == 1])).sum() > 0.04 * vessel.sum()


def dice_above(levels: np.ndarray, image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice of `image > level` for each level, by counting in the sorted voxels."""
    found = image.size - np.searchsorted(np.sort(image), levels, side="right")
    hits = truth.sum() - np.searchsorted(np.sort(image[truth]), levels, side="right")
    return 2 * hits / (found + truth.sum())


@pytest.mark.parametrize("is_scaled", [True, False])
def test_one_global_threshold_does_not_solve_it(phantom_subjects, is_scaled):
    """Fitted on two subjects, scored on the other two, both ways round; on the scaled images and on plain counts."""
    percentiles = compose("build_shards", []).data.prepare.percentiles
    levels = np.linspace(0, 255, 256) if is_scaled else np.linspace(0, 1500, 301)
    whole, intracranial = [], []
    for image, vessel, mask in phantom_subjects:
        image = image.astype(np.float32)
        if is_scaled:
            image = scale_to_255(image, intensity_limits(image, percentiles))
        whole.append(dice_above(levels, image.ravel(), vessel.ravel() == 1))
        intracranial.append(dice_above(levels, image[mask == 1], vessel[mask == 1] == 1))
    for dice, bound in ((np.array(whole), 0.7), (np.array(intracranial), 0.8)):
        for fitted, scored in (([0, 1], [2, 3]), ([2, 3], [0, 1])):
            reached = dice[scored, dice[fitted].mean(axis=0).argmax()].mean()
            assert 0.3 < reached <= bound


def test_a_stopped_start_ends_in_the_same_bytes(tmp_path):
    root = made(tmp_path, *TINY)
    before, kept = contents(root), (root / "sub-01/image.nii.gz").stat().st_mtime_ns
    shutil.rmtree(root / "sub-02")
    (root / ".sub-02.partial").mkdir()
    (root / ".sub-02.partial/image.nii.gz.partial").write_bytes(b"half")
    made(tmp_path, *TINY)
    assert contents(root) == before
    assert (root / "sub-01/image.nii.gz").stat().st_mtime_ns == kept


def test_a_cohort_grows_and_keeps_what_it_has(tmp_path):
    root = made(tmp_path, *TINY)
    before = contents(root)
    made(tmp_path, *TINY, "phantom.num_subjects=4")
    after = contents(root)
    assert set(after) - set(before) == {f"sub-04/{name}.nii.gz" for name in NAMES}
    assert all(after[name] == content for name, content in before.items() if name != "phantom.json")


def test_a_cohort_of_other_settings_is_refused(tmp_path):
    root = made(tmp_path, *TINY)
    before = contents(root)
    for key, value in (("seed", "1"), ("spacing_mm", "[6,6,4]"), ("num_subjects", "2")):
        with pytest.raises(UsageError, match=key):
            made(tmp_path, *TINY, f"phantom.{key}={value}")
    assert contents(root) == before


def test_a_foreign_folder_stays_as_it_is(tmp_path):
    config = configured(tmp_path, *TINY)
    patient = Path(config.data.root) / "sub-01/image.nii.gz"
    patient.parent.mkdir(parents=True)
    patient.write_bytes(b"a patient")
    with pytest.raises(DataError):
        make_phantom.make_cohort(config, ALONE)
    assert contents(tmp_path) == {str(patient.relative_to(tmp_path)): b"a patient"}


def test_what_does_not_belong_is_named(tmp_path, repository):
    config = configured(tmp_path, *TINY)
    make_phantom.make_cohort(config, ALONE)
    root = Path(config.data.root)
    (root / "sub-02/vessel.nii.gz").unlink()
    with pytest.raises(DataError, match="vessel.nii.gz"):
        make_phantom.make_cohort(config, ALONE)
    shutil.rmtree(root / "sub-02")
    (root / "notes").mkdir()
    with pytest.raises(DataError, match="notes"):
        make_phantom.make_cohort(config, ALONE)
    (root / "notes").rmdir()
    (root / "phantom.json").write_text("[]")
    with pytest.raises(DataError, match="phantom.json"):
        make_phantom.make_cohort(config, ALONE)
    with pytest.raises(UsageError, match="data=phantom"):
        made(tmp_path, *TINY, "data=pairs", f"data.root='{tmp_path}'")
    with pytest.raises(UsageError, match="tests/phantom"):
        made(tmp_path, *TINY, f"data.root='{repository / 'tests/phantom'}'")
    assert not (repository / "tests/phantom").exists()


def test_two_ranks_write_the_bytes_of_one(tmp_path):
    done = run([*python_on_ranks(2), "-m", "data_prep.make_phantom", f"work_dir='{tmp_path / 'two'}'", *TINY])
    assert done.returncode == 0, done.stderr
    assert "3 phantom subjects" in done.stdout
    assert contents(tmp_path / "two/phantom/nifti") == contents(made(tmp_path / "one", *TINY))


def test_murrays_law_holds_at_every_branch():
    parent = np.array([2.0, 1.0, 0.5])
    first, second = murray(np.random.default_rng(0), parent)
    np.testing.assert_allclose(first**2.7 + second**2.7, parent**2.7)
    assert (first >= second).all() and (second > 0).all()


@pytest.mark.parametrize("balance", [0.0, 0.4])
def test_wires_without_balance_are_a_minimum_spanning_tree(balance, monkeypatch):
    monkeypatch.setattr(phantom_vessels, "BALANCE", balance)
    nodes = np.random.default_rng(0).uniform(0, 10, (60, 3))
    parents, order = spanning_tree(nodes, num_roots=1)
    assert (parents == -1).sum() == 1 and sorted(order) == list(range(60))
    assert all(list(order).index(parents[node]) < i for i, node in enumerate(order) if i)
    wire = sum(np.linalg.norm(nodes[node] - nodes[parents[node]]) for node in range(1, 60))
    least = minimum_spanning_tree(np.linalg.norm(nodes[:, None] - nodes, axis=2)).sum()
    assert wire == pytest.approx(least) if balance == 0 else wire > 1.001 * least


@pytest.mark.parametrize("trees", TREES)
def test_trees_hang_on_their_tips_and_thin_out(trees):
    tips = [Tip(np.array([0.0, y, 20.0]), np.array([1.0, 0, 0]), 1.0, 50.0) for y in (-20.0, 20.0)]

    def depth(points: np.ndarray) -> np.ndarray:
        return 40.0 - np.linalg.norm(points - [0, 0, 40], axis=1)

    settings = {"target_depth_mm": 2.0, "min_radius": 0.3, "branch_every_mm": 15.0, "top_mm": 90.0}
    tubes = TREES[trees](np.random.default_rng(0), tips, depth, **settings)
    assert 0.3 <= tubes.radius_S.min() and tubes.radius_S.max() <= 1.0
    ends = np.concatenate([tubes.end_S3, [tip.position for tip in tips]])
    begins_on_one = np.linalg.norm(tubes.start_S3[:, None] - ends[None], axis=2).min(1) < 1e-9
    assert begins_on_one.all()


def test_trees_of_another_kind_are_calibrated_too():
    _, vessel, mask, _ = generate_subject(1, (96, 112, 48), (1.0, 1.05, 1.2), trees="spanning")
    assert 0.004 <= (vessel & mask).sum() / mask.sum() <= 0.015
    steered = generate_subject(1, (96, 112, 48), (1.0, 1.05, 1.2))
    assert (steered[2] == mask).all() and (steered[1] != vessel).any()


def test_a_trunk_runs_from_first_to_last_node():
    nodes = [(0, 0, 0), (5, 3, 8), (4, 8, 20), (0, 10, 30)]
    tubes, tip = trunk(np.random.default_rng(0), nodes, (2.0, 1.0), path_mm=10.0, jitter_mm=0.5)
    np.testing.assert_allclose(tubes.start_S3[0], nodes[0], atol=1e-9)
    np.testing.assert_allclose(tubes.end_S3[-1], nodes[-1], atol=1e-9)
    np.testing.assert_array_equal(tubes.end_S3[:-1], tubes.start_S3[1:])
    length = np.linalg.norm(tubes.end_S3 - tubes.start_S3, axis=1).sum()
    assert tip.path_mm == pytest.approx(10.0 + length)
    assert (tubes.radius_S[0], tubes.radius_S[-1]) == (2.0, 1.0)


def test_distance_to_a_tube_is_the_closed_form():
    # A head as large as the template: template mm are volume mm. Voxel centres lie at whole millimetres.
    grid = Grid((156, 192, 89), (1.0, 1.0, 88.9 / 89))
    start, end = np.array([[-0.5, -50.5, 40.0]]), np.array([[-0.5, 20.5, 40.0]])
    z = np.abs((np.arange(89) + 0.5) * grid.spacing_mm[2] - 40.0)
    distance, signal = draw_tubes(Tubes(start, end, np.array([3.0]), np.array([0.7])), grid, margin_mm=2.0)
    index_x, index_y = 77, 60
    near = z < 4.0
    np.testing.assert_allclose(distance[index_x, index_y, near], z[near] - 3.0, atol=1e-4)
    offset = np.hypot(2.0, z[near])
    np.testing.assert_allclose(distance[index_x + 2, index_y, near], offset - 3.0, atol=1e-4)
    assert (distance[:, :, z > 7.0] == FAR_MM).all()
    assert (signal[distance < 0] == np.float32(0.7)).all()


def test_a_drawn_tube_has_its_cylinders_volume():
    grid = Grid((156, 192, 89), (1.0, 1.0, 88.9 / 89))
    start, end = np.array([[0.13, -50.5, 40.37]]), np.array([[0.13, 20.5, 40.37]])
    distance, _ = draw_tubes(Tubes(start, end, np.array([6.3]), np.array([1.0])), grid, margin_mm=1.0)
    # The staircase of unit voxels is good to two per cent at this radius.
    assert (distance < 0).sum() == pytest.approx(np.pi * 6.3**2 * (71 + 4 / 3 * 6.3), rel=0.02)


def test_a_field_is_the_same_on_any_points():
    field = Field(np.random.default_rng(0), 20.0)
    axes = [np.linspace(-70, 70, 5), np.linspace(-90, 90, 6), np.linspace(1, 88, 4)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    np.testing.assert_allclose(field.on_grid(axes).ravel(), field.at(points), atol=1e-4)


def test_vessels_and_tissue_are_warped_alike():
    head = Head(np.random.default_rng(0))
    template = np.array([[10.0, 20.0, 30.0], [-40.0, -50.0, 60.0], [0.0, 70.0, 80.0]])
    volume = head.from_template(template)
    shift = np.stack([WARP_MM * field.at(volume) for field in head.warp], axis=1)
    # Four iterations of a contraction by about a tenth each, from a first miss of some millimetres.
    np.testing.assert_allclose(volume / head.size + shift, template, atol=0.01)


@pytest.mark.soak
def test_a_subject_of_the_papers_size_takes_seconds():
    started = time.process_time()
    image, vessel, mask, affine = generate_subject(990, (312, 384, 127), (0.5, 0.5, 0.7))
    assert time.process_time() - started <= 30.0
    assert image.shape == vessel.shape == mask.shape == (312, 384, 127)
    np.testing.assert_allclose(np.diag(affine), [0.5, 0.5, 0.7, 1.0])
    assert 0.003 <= (vessel & mask).sum() / mask.sum() <= 0.006
    assert 3.5 <= np.percentile(image[vessel == 1], 95) / np.median(image[mask == 1]) <= 5.3


def test_another_scanner_changes_the_image_alone():
    grid = (7, (32, 36, 20), (4.0, 4.0, 4.0))
    first = generate_subject(*grid)
    for change in ({"slab_mm": 42.0}, {"bias": 0.3}, {"noise": (0.2, 0.3)}, {"point_spread_voxels": 1.0}):
        other = generate_subject(*grid, Scanner(**change))
        assert not np.array_equal(other[0], first[0]), change
        assert all(np.array_equal(a, b) for a, b in zip(other[1:], first[1:], strict=True)), change
    assert np.array_equal(generate_subject(*grid, Scanner())[0], first[0])
