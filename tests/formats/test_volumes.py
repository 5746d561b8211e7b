"""NIfTI in and out: every damaged or odd file of the kinds that hospitals have, made here and read back."""

import errno
import gzip
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from vesselgan.core import memory
from vesselgan.core.errors import DataError, ResourceError
from vesselgan.formats import volumes

from .conftest import SHAPE, SPACING_MM, a_label, an_affine, an_image, save

SFORM = {"sform_code": 1, "srow_x": [0.5, 0, 0, 0], "srow_y": [0, 0.5, 0, 0], "srow_z": [0, 0, 0.7, 0]}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_an_image_comes_back_as_it_was_saved(tmp_path, name):
    image_class = nib.Nifti1Image if name.endswith(".gz") else nib.Nifti2Image
    nib.save(image_class(an_image(), an_affine()), tmp_path / name)
    volume = volumes.read_image(tmp_path / name)
    assert volume.data_XYZ.dtype == np.float32
    np.testing.assert_array_equal(volume.data_XYZ, an_image())
    np.testing.assert_allclose(volume.affine, an_affine(), atol=1e-5)  # stored as float32
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    assert (volume.header.orientation, volume.notes, volume.header.text_fields) == ("RAS", (), ())


@pytest.mark.parametrize("dtype", [np.uint8, ">i2", "<f4", ">f8", np.int32])
def test_number_types_and_byte_orders_are_read(tmp_path, dtype):
    array = an_image().clip(0, 200).astype(dtype)
    header = nib.Nifti1Header(endianness=np.dtype(dtype).byteorder.replace("|", "<").replace("=", "<"))
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(array, an_affine(), header), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volumes.read_image(tmp_path / "a.nii.gz").data_XYZ, array.astype(np.float32))


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAL", "PIR"])
def test_any_orientation_is_canonical_and_written_back(tmp_path, codes):
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(tuple(codes)))
    turned = nib.Nifti1Image(an_image(), an_affine()).as_reoriented(turn)
    nib.save(turned, tmp_path / "turned.nii.gz")
    volume = volumes.read_image(tmp_path / "turned.nii.gz")
    np.testing.assert_array_equal(volume.data_XYZ, an_image())
    np.testing.assert_allclose(volume.affine, an_affine(), atol=1e-4)
    assert (volume.header.orientation, volume.spacing_mm) == (codes, pytest.approx(SPACING_MM))
    volumes.write_like(tmp_path / "back.nii.gz", volume.data_XYZ, tmp_path / "turned.nii.gz")
    back = nib.load(tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(turned.dataobj))
    np.testing.assert_allclose(back.affine, turned.affine, atol=1e-4)


def test_an_oblique_volumes_spacing_is_its_columns(tmp_path):
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(SPACING_MM)
    volume = volumes.read_image(save(tmp_path / "a.nii.gz", an_image(), affine))
    assert volume.spacing_mm == pytest.approx(SPACING_MM, rel=1e-6)
    assert volume.affine[0, 0] == pytest.approx(0.5 * np.cos(angle), rel=1e-6)  # the diagonal would say 0.47
    volumes.write_like(tmp_path / "b.nii.gz", volume.data_XYZ, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii.gz").affine, affine, atol=1e-6)


def cut(content: bytearray) -> bytes:
    return bytes(content[: int(0.6 * len(content))])


def wrong_checksum(content: bytearray) -> bytes:
    content[-8] ^= 1  # first byte of the CRC that ends a gzip stream
    return bytes(content)


@pytest.mark.parametrize(("name", "damage"), [("a.nii.gz", cut), ("a.nii.gz", wrong_checksum), ("a.nii", cut)])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    path = save(tmp_path / name, an_image())
    path.write_bytes(damage(bytearray(path.read_bytes())))
    with pytest.raises(DataError, match=re.escape(name)):
        volumes.read_image(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b", os.urandom(5000), gzip.compress(b"hello")])
def test_what_is_no_nifti_shows_its_first_bytes(tmp_path, content):
    path = tmp_path / ("a.nii.gz" if content.startswith(b"\x1f\x8b") else "a.nii")
    path.write_bytes(content)
    shown = "hello" if content in (b"hello", gzip.compress(b"hello")) else "begins with|cut short"
    with pytest.raises(DataError, match=f"{path.name}: .*({shown})"):
        volumes.read_image(path)


@pytest.mark.parametrize(("stored", "name"), [("a.nii", "b.nii.gz"), ("a.nii.gz", "b.nii")])
def test_a_name_that_belies_its_content_is_refused(tmp_path, stored, name):
    save(tmp_path / stored, an_image()).rename(tmp_path / name)
    with pytest.raises(DataError, match="gzip"):
        volumes.read_image(tmp_path / name)
    volumes.read_image((tmp_path / name).rename(tmp_path / stored.upper()))


def test_a_links_target_is_named(tmp_path):
    (tmp_path / "a.nii").symlink_to("/nowhere/at.nii")
    with pytest.raises(DataError, match="a link to /nowhere/at.nii"):
        volumes.read_image(tmp_path / "a.nii")


def test_grids_at_45_degrees_agree_in_spite_of_rounding(tmp_path):
    cosine, cube = 2 * np.cos(np.pi / 4), an_image((6, 6, 6))
    read = []
    for name, rounding in (("a.nii", -1e-7), ("b.nii", 1e-7)):
        affine = np.eye(4)
        affine[:3, :3] = [[2, 0, 0], [0, cosine + rounding, -cosine + rounding], [0, cosine, cosine - abs(rounding)]]
        read.append(volumes.read_image(save(tmp_path / name, cube, affine)))
    assert volumes.grid_difference(read[0].header, read[1].header) is None
    np.testing.assert_array_equal(read[0].data_XYZ, read[1].data_XYZ)


def test_a_missing_file_is_a_data_error(tmp_path):
    for path in (tmp_path / "none.nii.gz", tmp_path):
        with pytest.raises(DataError):
            volumes.read_header(path)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 4, 3), (6, 5, 4, 1, 2)])
def test_what_is_not_one_volume_is_refused(tmp_path, shape):
    with pytest.raises(DataError, match=f"{' x '.join(map(str, shape))} is not one 3D volume"):
        volumes.read_image(save(tmp_path / "a.nii.gz", an_image(shape)))


def test_a_single_time_point_is_written_back_4d(tmp_path):
    volume = volumes.read_image(save(tmp_path / "a.nii.gz", an_image((*SHAPE, 1))))
    assert volume.data_XYZ.shape == SHAPE and volume.notes == ("7 x 6 x 5 x 1 read as 3D",)
    volumes.write_like(tmp_path / "b.nii.gz", volume.data_XYZ, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "b.nii.gz").shape == (*SHAPE, 1)


def test_colour_and_complex_voxels_are_refused(tmp_path):
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for array, name in ((colour, "RGB"), (an_image().astype(np.complex64), "complex64")):
        with pytest.raises(DataError, match=f"{name} voxels"):
            volumes.read_image(save(tmp_path / "a.nii.gz", array))


def test_undefined_voxels_are_refused_or_replaced(tmp_path):
    array = an_image().astype(np.float32)
    array[2, 3, 1], array[4, 0, 0] = np.nan, np.inf
    path = save(tmp_path / "a.nii.gz", array)
    with pytest.raises(DataError, match=r"2 of 210 voxels .*data\.prepare\.nan_value"):
        volumes.read_image(path)
    volume = volumes.read_image(path, nan_value=0.0)
    assert volume.data_XYZ[2, 3, 1] == volume.data_XYZ[4, 0, 0] == 0
    assert np.isfinite(volume.data_XYZ).all() and "read as 0" in volume.notes[0]


def claiming(path: Path, *, packed: bool, **fields: object) -> Path:
    """A small NIfTI whose header says something else than is there."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(SHAPE)
    header["vox_offset"] = 352
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + b"\0" * 4 + an_image().tobytes("F")
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def test_stored_slope_and_intercept_are_applied(tmp_path):
    path = claiming(tmp_path / "a.nii.gz", packed=True, scl_slope=0.5, scl_inter=-3)
    np.testing.assert_array_equal(volumes.read_image(path).data_XYZ[::-1], an_image() * 0.5 - 3)  # stored as LAS


@pytest.mark.parametrize("packed", [True, False])
def test_surplus_voxels_are_refused_and_padding_is_not(tmp_path, packed):
    path, whole = tmp_path / ("a.nii.gz" if packed else "a.nii"), claiming(tmp_path / "whole.nii", packed=False)
    claiming(path, packed=packed, dim=[3, 7, 6, 4, 1, 1, 1, 1])  # one slice less than there is
    with pytest.raises(DataError, match="dim"):
        volumes.read_image(path)
    whole = whole.read_bytes()
    for surplus, is_fine in ((bytes(512), True), (bytes(2**14), False), (b"\0\1", False)):
        path.write_bytes(gzip.compress(whole + surplus) if packed else whole + surplus)
        if is_fine:
            assert volumes.read_image(path).data_XYZ.shape == SHAPE
        else:
            with pytest.raises(DataError, match="dim"):
                volumes.read_image(path)


def test_voxels_beyond_memory_are_refused_unread(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", an_image())
    monkeypatch.setattr(memory, "available_bytes", lambda: 210 * 10.0 - 1)  # int16, and float32 twice
    with pytest.raises(ResourceError, match=r"a\.nii\.gz.*memory"):
        volumes.read_image(path)
    monkeypatch.setattr(memory, "available_bytes", lambda: 210 * 10.0)
    assert volumes.read_image(path).data_XYZ.shape == SHAPE


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": [3, 900, 900, 900, 1, 1, 1, 1]},
        {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]},
        {"vox_offset": 1e9},
        {"vox_offset": -5},
        {"datatype": 9999},
        {"dim": [3, -4, 5, 6, 1, 1, 1, 1]},
        {"dim": [0, 1, 1, 1, 1, 1, 1, 1]},
        {"pixdim": [1, 0, 0, 0, 0, 0, 0, 0], "sform_code": 1},
        {"sform_code": 1, "srow_x": [np.nan, 0, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0]},
        {"sform_code": 1, "srow_x": [1, 0, 0, 0], "srow_y": [2, 0, 0, 0], "srow_z": [0, 0, 1, 0]},
        {"qform_code": 1, "pixdim": [1, 0, 0.5, 0.7, 0, 0, 0, 0]},
        {"qform_code": 1, "pixdim": [1, 0.5, -0.5, 0.7, 0, 0, 0, 0]},
        {"qform_code": 1, "pixdim": [1, 0.5, np.nan, 0.7, 0, 0, 0, 0]},
        {"pixdim": [1, 0.5, 0.5, 0, 0, 0, 0, 0]},
        *({**SFORM, "pixdim": [1, size, 0.5, 0.7, 0, 0, 0, 0]} for size in (np.nan, np.inf, 0, -0.5)),
        {"qform_code": 1, "quatern_b": 0.9, "quatern_c": 0.9},
        {"qform_code": 1, "quatern_b": np.nan},
        {**SFORM, "srow_x": [0.5, 1200, 0, 0]},
        {**SFORM, "srow_x": [np.inf, 0, 0, 0], "srow_y": [0, 0, 0, 0]},
        {"scl_slope": 2, "scl_inter": np.nan},
        {"scl_slope": 2, "scl_inter": np.inf},
    ],
)
def test_a_nonsensical_header_is_a_data_error(tmp_path, fields):
    with pytest.raises(DataError, match=r"a\.nii"):
        volumes.read_image(claiming(tmp_path / "a.nii", packed=False, **fields))


def test_a_sform_is_used_beside_an_invalid_qform(tmp_path):
    odd = {"qform_code": 1, "quatern_b": 0.9, "quatern_c": 0.9}
    volume = volumes.read_image(claiming(tmp_path / "a.nii", packed=False, **SFORM, **odd))
    assert volume.spacing_mm == pytest.approx((0.5, 0.5, 0.7))
    assert volume.notes == ("the qform is not a rotation: the sform is used",)


@pytest.mark.parametrize("mask", [(0, 1), (0, 2), (0, 255), (0, 0.5)])
def test_a_mask_is_zero_and_one_other_value(tmp_path, mask):
    inside = an_image() > 500
    volume = volumes.read_mask(save(tmp_path / "a.nii.gz", np.where(inside, mask[1], 0).astype(np.float32)))
    np.testing.assert_array_equal(volume.data_XYZ, inside)
    assert volume.notes == (() if mask[1] == 1 else (f"mask values {{0, {mask[1]:g}}}: {mask[1]:g} taken as inside",))


@pytest.mark.parametrize("values", [(0, 1, 2), (0, -1)])
def test_a_mask_of_several_values_is_refused(tmp_path, values):
    array = np.resize(np.array(values, np.float32), SHAPE)
    with pytest.raises(DataError, match="brain mask"):
        volumes.read_mask(save(tmp_path / "a.nii.gz", array))


def test_undefined_mask_voxels_are_counted(tmp_path):
    array = np.resize(np.float32([0, 1, np.nan]), SHAPE)
    with pytest.raises(DataError, match="70 of 210 mask voxels"):
        volumes.read_mask(save(tmp_path / "a.nii.gz", array))


def test_values_are_shown_with_enough_digits(tmp_path):
    array = np.resize(np.float32([0, 1, np.nextafter(np.float32(1), np.float32(0))]), SHAPE)
    for read in (volumes.read_mask, volumes.read_label):
        with pytest.raises(DataError, match=r"\{0, 0\.99999994, 1\}"):
            read(save(tmp_path / "a.nii.gz", array))


def test_missing_orientation_is_noted(tmp_path):
    (note,) = volumes.read_image(claiming(tmp_path / "a.nii", packed=False)).notes
    assert "left and right" in note


def test_a_header_image_pair_is_refused(tmp_path):
    nib.save(nib.Nifti1Pair(an_image(), an_affine()), tmp_path / "a.img")
    with pytest.raises(DataError):
        volumes.read_image(tmp_path / "a.hdr")


def test_text_fields_are_named_and_never_copied(tmp_path):
    image = nib.Nifti1Image(an_image(), an_affine())
    image.header["descrip"], image.header["aux_file"] = b"DOE^JANE", b"19600101"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE 19600101"))
    nib.save(image, tmp_path / "a.nii.gz")
    volume = volumes.read_image(tmp_path / "a.nii.gz")
    assert volume.header.text_fields == ("descrip", "aux_file", "extensions")
    assert "DOE" not in repr(volume) and "1960" not in repr(volume)
    volumes.write_like(tmp_path / "b.nii.gz", volume.data_XYZ, tmp_path / "a.nii.gz")
    content = gzip.decompress((tmp_path / "b.nii.gz").read_bytes())
    assert b"DOE" not in content and b"1960" not in content
    assert volumes.read_header(tmp_path / "b.nii.gz").text_fields == ()


def test_texts_outside_the_header_are_named(tmp_path):
    content = claiming(tmp_path / "a.nii", packed=False, data_type=b"DOE^JANE").read_bytes()
    path = tmp_path / "sub-1.nii.gz"
    for name, said in (("DOE_JANE.nii", ("gzip name",)), ("sub-1.nii", ()), ("", ())):
        with open(path, "wb") as file, gzip.GzipFile(name, "wb", fileobj=file) as packed:
            packed.write(content)
        assert volumes.read_header(path).text_fields == ("data_type", *said)
    plain = gzip.compress(content)
    path.write_bytes(plain[:3] + bytes([4 | 16]) + plain[4:10] + b"\3\0abc" + b"JANE\0" + plain[10:])
    assert volumes.read_header(path).text_fields == ("data_type", "gzip comment")


def test_an_image_of_one_value_is_refused(tmp_path):
    with pytest.raises(DataError, match="every voxel is 7"):
        volumes.read_image(save(tmp_path / "a.nii.gz", np.full(SHAPE, 7, np.int16)))


def test_a_volumes_bytes_do_not_depend_on_names(tmp_path):
    for name in ("a", "b"):
        volumes.write_volume(tmp_path / f"{name}.nii.gz", an_image(), an_affine())
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize(
    ("given", "stored"), [("bool", "u1"), ("u1", "u1"), ("f2", "f4"), ("f4", "f4"), ("i8", "i4"), ("i2", "i2")]
)
def test_arrays_are_stored_in_types_that_nifti_has(tmp_path, given, stored):
    volumes.write_volume(tmp_path / "a.nii", a_label().astype(given), an_affine())
    loaded = nib.load(tmp_path / "a.nii")
    assert loaded.get_data_dtype() == np.dtype(stored)
    np.testing.assert_array_equal(loaded.get_fdata(), a_label())
    np.testing.assert_allclose(loaded.affine, an_affine(), atol=1e-5)
    assert loaded.header.get_xyzt_units()[0] == "mm" and loaded.header.get_zooms() == pytest.approx(SPACING_MM)


def test_an_array_off_the_grid_is_refused(tmp_path):
    like = save(tmp_path / "a.nii.gz", an_image())
    with pytest.raises(DataError, match=r"7 x 6 x 4 .*a\.nii\.gz \(7 x 6 x 5\)"):
        volumes.write_like(tmp_path / "b.nii.gz", an_image()[..., :4], like)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        volumes.write_volume(tmp_path / "a.nii.gz", an_image(), an_affine())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("units", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_lengths_are_read_in_their_units(tmp_path, units, mm):
    rows = {f"srow_{axis}": np.array(SFORM[f"srow_{axis}"]) / mm for axis in "xyz"}
    volume = volumes.read_image(claiming(tmp_path / "a.nii", packed=False, **SFORM | rows, xyzt_units=units))
    assert volume.spacing_mm == pytest.approx((0.5, 0.5, 0.7))


def test_a_read_error_is_no_damage(tmp_path, monkeypatch):
    path, opened = save(tmp_path / "a.nii.gz", an_image()), open

    def refuse(name: object, *arguments: object, **options: object) -> object:
        if name == path:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(name))
        return opened(name, *arguments, **options)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ResourceError, match=r"a\.nii\.gz"):
        volumes.read_image(path)


def test_a_label_of_64_bits_is_written(tmp_path):
    volumes.write_volume(tmp_path / "a.nii.gz", a_label().astype(np.uint64), an_affine())
    np.testing.assert_array_equal(volumes.read_label(tmp_path / "a.nii.gz").data_XYZ, a_label())
