"""What can be wrong with a cohort, injected into files and met as a user meets it: message and exit code.

Rows by the names of the project's list of faults: D1 to D22 through `data_prep.check`, `data_prep.build_shards` for
what only it can see. Each row is one example; the modules' own tests hold the others.
"""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from data_prep import build_shards, check, preprocess
from vesselgan.config.schema import PreparedData
from vesselgan.formats.shards import ShardSet

MakeCohort = Callable[..., PreparedData]
Command = Callable[..., Any]
Edit = Callable[[Path], None]


def rewrite(name: str, edit: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> Edit:
    """Replace the voxels (and the affine) of one of a subject's files."""

    def change(folder: Path) -> None:
        path = folder / f"{name}.nii.gz"
        old = nib.load(path)
        array = edit(np.asarray(old.dataobj).copy())
        nib.save(nib.Nifti1Image(array, old.affine if affine is None else affine), path)

    return change


def everywhere(*edits: Edit) -> Edit:
    return lambda folder: [edit(folder) for edit in edits] and None


def cut_short(folder: Path) -> None:
    path = folder / "image.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(0.6 * len(content))])


def wrong_crc(folder: Path) -> None:
    path = folder / "image.nii.gz"
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF  # the last eight bytes: CRC32 and length
    path.write_bytes(content)


def same(array: np.ndarray) -> np.ndarray:
    return array


def shifted(offset_mm: float) -> np.ndarray:
    affine = np.diag([0.5, 0.5, 0.7, 1.0])
    affine[0, 3] += offset_mm
    return affine


def claiming(*shape: int) -> Edit:
    """An image whose header claims so many voxels and which holds none."""

    def change(folder: Path) -> None:
        header = nib.Nifti1Header()
        header.set_data_shape(shape)
        header.set_data_dtype(np.float32)
        header["vox_offset"] = 352
        (folder / "image.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))

    return change


def header_says(**fields: Any) -> Edit:
    """An image whose header was edited and nothing else."""

    def change(folder: Path) -> None:
        path = folder / "image.nii.gz"
        content = bytearray(gzip.decompress(path.read_bytes()))
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        for name, value in fields.items():
            header[name] = value
        content[:348] = header.binaryblock
        path.write_bytes(gzip.compress(bytes(content)))

    return change


COLOUR = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
SOFT = rewrite("vessel", lambda a: (a * 0.3).astype(np.float32))
CLASSES = rewrite("vessel", lambda a: a * np.arange(1, 19, dtype=np.uint8))
HOLES = rewrite("image", lambda a: np.where(a > 140, np.nan, a).astype(np.float32))

# name, what happens to sub-02, what is said of it
UNUSABLE = [
    ("D1 cut", cut_short, "image.nii.gz: damaged or cut short"),
    ("D1 crc", wrong_crc, "image.nii.gz: damaged or cut short"),
    ("D1 30000", claiming(30000, 30000, 30000), "the header claims 30000 x 30000 x 30000 voxels, more than 1073741824"),
    ("D1 1000", claiming(1000, 1000, 1000), "too small a file for 1000 x 1000 x 1000 voxels"),
    ("D1 empty", lambda folder: (folder / "image.nii.gz").write_bytes(b""), "image.nii.gz: not a NIfTI file"),
    ("D4 2D", rewrite("image", lambda a: a[:, :, 0]), "24 x 20 is not one 3D volume"),
    ("D4 4D", rewrite("image", lambda a: np.stack([a, a], 3)), "24 x 20 x 18 x 2 is not one 3D volume"),
    ("D4 RGB", rewrite("image", lambda a: np.zeros(a.shape, COLOUR)), "convert it to one number per voxel"),
    ("D5 NaN", HOLES, "voxels are NaN or infinite, the first at ("),
    ("D5 Inf", rewrite("image", lambda a: np.where(a > 140, np.inf, a).astype(np.float32)), "NaN or infinite"),
    ("D6 volume", rewrite("image", lambda a: np.full_like(a, 7)), "every voxel is 7"),
    ("D7 empty", rewrite("vessel", np.zeros_like), "the label is empty"),
    ("D8 soft", SOFT, "set where vessel begins: data.prepare.label_binarize_threshold=0.5"),
    ("D8 classes", CLASSES, "are not 0 and 1; set which mean vessel: data.prepare.label_values=["),
    ("D8 NaN", rewrite("vessel", lambda a: np.where(a > 0, np.nan, a).astype(np.float32)), "NaN or infinite"),
    ("D9 shape", rewrite("vessel", lambda a: a[:, :, :-1]), "shapes 24 x 20 x 18 and 24 x 20 x 17 differ"),
    ("D10 moved", rewrite("vessel", same, shifted(0.1)), "0.1 mm apart"),
    ("D10 flipped", rewrite("vessel", same, np.diag([-0.5, 0.5, 0.7, 1])), "RAS vs LAS"),
    (
        "D14 thin",
        everywhere(*(rewrite(name, lambda a: a[:, :, :7]) for name in ("image", "vessel", "brain_mask"))),
        "24 x 20 x 7 voxels are thinner than the patch 16 x 16 x 8",
    ),
    ("mask", rewrite("brain_mask", np.zeros_like), "the mask is empty"),
    ("half a head", header_says(dim=[3, 24, 20, 9, 1, 1, 1, 1]), "more voxels follow the 24 x 20 x 9"),
    ("no spacing", header_says(sform_code=0, qform_code=1, pixdim=[1, 0, 0.5, 0.7, 0, 0, 0, 0]), "correct pixdim"),
    ("no rotation", header_says(sform_code=0, qform_code=1, quatern_b=0.9, quatern_c=0.9), "is not a rotation"),
    ("no intercept", header_says(scl_slope=1, scl_inter=np.nan), "correct scl_inter"),
    ("subnormal", rewrite("image", lambda a: (a * 1e-42).astype(np.float32)), "cannot be scaled in single precision"),
    ("mask classes", rewrite("brain_mask", lambda a: a * 2 + (a == 0)), "a brain mask is 0 outside and one value"),
    ("D17 missing", lambda folder: (folder / "vessel.nii.gz").unlink(), "label is missing: "),
]


@pytest.mark.parametrize(("edit", "said"), [row[1:] for row in UNUSABLE], ids=[row[0] for row in UNUSABLE])
def test_an_unusable_subject_is_named_with_exit_3_and_can_be_set_aside(
    cohort: MakeCohort, command: Command, edit: Edit, said: str
) -> None:
    edit(Path(cohort(4).root) / "sub-02")
    ended = command()
    assert ended.code == 3
    (line,) = [line for line in ended.out.splitlines() if line.startswith("UNUSABLE") and said in line]
    assert line.startswith("UNUSABLE sub-02: ") and ".nii.gz" in line
    assert ended.err == (
        "error: 1 of 4 subjects are unusable: sub-02; mend what is listed above, or set them aside with "
        "data.prepare.quarantine=true\n"
    )
    ended = command("data.prepare.quarantine=true")
    assert (ended.code, ended.err) == (0, "")
    assert "4 subjects: 3 usable" in ended.out and "set aside: sub-02" in ended.out


def oblique(folder: Path) -> None:
    """All three files turned by 20 degrees about Z, stored right to left, back to front."""
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.5, -0.5, 0.7])
    for name in ("image", "vessel", "brain_mask"):
        rewrite(name, same, affine)(folder)


def patients_name(folder: Path) -> None:
    path = folder / "image.nii.gz"
    image = nib.load(path)
    image.header["aux_file"] = b"DOE^JANE"
    nib.save(image, path)


def patients_comment(folder: Path) -> None:
    path = folder / "vessel.nii.gz"
    label = nib.load(path)
    label.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    nib.save(label, path)


# name, what happens to sub-02, more words, what is said (a warning or a row of the table)
USABLE = [
    ("D4 one time point", rewrite("image", lambda a: a[..., None]), (), "24 x 20 x 18 x 1 read as 3D"),
    ("D5 told", HOLES, ("data.prepare.nan_value=0", "data.prepare.max_clipped_vessel_share=1"), ": read as 0"),
    ("D7 full", rewrite("vessel", np.ones_like), (), "100.0% of all voxels are vessel"),
    ("D8 255", rewrite("vessel", lambda a: a * 255), (), "255 taken as vessel"),
    ("D8 float", rewrite("vessel", lambda a: a.astype(np.float32)), (), "sub-02   24x20x18  0.5x0.5x0.7  RAS   0,1"),
    ("D8 cut", SOFT, ("data.prepare.label_binarize_threshold=0.2",), "vessel from 0.2 on"),
    ("D8 values", CLASSES, ("data.prepare.label_values=[1,7,8,9,10,11]",), "taken as vessel"),
    ("D10 rounding", rewrite("vessel", same, shifted(1e-6)), (), "4 usable, 0 of them"),
    ("D11 oblique", oblique, (), "sub-02   24x20x18  0.5x0.5x0.7  LPS   0,1"),
    (
        "D14 padded",
        rewrite("image", same),
        ("data.prepare.patch_shape=[16,16,24]", "data.prepare.reflect_pad=true"),
        "thinner than the patch 16 x 16 x 24: reflected at the far edge (data.prepare.reflect_pad)",
    ),
    ("D15 few", rewrite("image", same), ("data.prepare.num_vessel_patches_unet=100",), "drawn with replacement"),
    ("mask", rewrite("brain_mask", np.ones_like), (), "every voxel is inside"),
    ("mask of twos", rewrite("brain_mask", lambda a: a * 2), (), "mask values {0, 2}: 2 taken as inside"),
    ("D20 extension", patients_comment, (), "text in extensions (never copied to shards or reports)"),
    ("D20 text", patients_name, (), "text in aux_file (never copied to shards or reports)"),
]


@pytest.mark.parametrize(("edit", "words", "said"), [row[1:] for row in USABLE], ids=[row[0] for row in USABLE])
def test_what_can_be_used_is_used_and_said(
    cohort: MakeCohort, command: Command, edit: Edit, words: tuple[str, ...], said: str
) -> None:
    edit(Path(cohort(4).root) / "sub-02")
    ended = command(*words)
    assert (ended.code, ended.err) == (0, "")
    assert said in ended.out
    assert "DOE" not in ended.out


def test_d15_too_few_vessel_voxels_give_the_patches_asked_for_with_a_warning(
    cohort: MakeCohort, command: Command, tmp_path: Path
) -> None:
    cohort(4)  # 72 vessel voxels each
    ended = command("data.prepare.num_vessel_patches_unet=100", module=build_shards)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("72 vessel voxels for 100 patches: drawn with replacement") == 4
    shards = ShardSet(tmp_path / "work/phantom/shards/unet/train")
    places = [(r.subject, r.corner) for r in map(shards.record, range(len(shards))) if r.kind == "vessel"]
    assert len(places) == 2 * 100 and len(set(places)) <= 2 * 72


def test_d20_no_text_of_a_file_reaches_what_is_made_of_it(cohort: MakeCohort, command: Command, tmp_path: Path) -> None:
    root = Path(cohort(4).root)
    for folder in sorted(root.iterdir()):
        patients_name(folder), patients_comment(folder)
    plain = ("preprocess.denoise=false", "preprocess.bias=false")
    for module, words in ((check, ()), (build_shards, ()), (preprocess, plain)):
        ended = command(*words, module=module)
        assert (ended.code, ended.err) == (0, "") and "DOE" not in ended.out
    made = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert {path.suffix for path in made} >= {".h5", ".json", ".html", ".gz"}
    for path in made:
        content = path.read_bytes()
        assert b"DOE" not in (gzip.decompress(content) if path.suffix == ".gz" else content), path


def test_d16_one_patient_under_two_names_or_in_two_splits_is_exit_3(
    cohort: MakeCohort, command: Command, tmp_path: Path
) -> None:
    root = Path(cohort(4).root)
    lines = ["subject,split", *(f"sub-{n:02d},train" for n in (1, 2, 3)), "sub-04,test", "sub-01,test"]
    (tmp_path / "split.csv").write_text("\n".join(lines))
    ended = command(f"data.prepare.split.csv={tmp_path / 'split.csv'}")
    assert ended.code == 3 and "sub-01 stands in test and train" in ended.err
    image = nib.load(root / "sub-01" / "image.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), image.affine), root / "sub-04/image.nii.gz")
    ended = command()
    assert ended.code == 3
    assert (
        "UNUSABLE sub-04: " in ended.out
        and "the very voxels of subject sub-01: one patient under two names" in ended.out
    )


def test_d17_what_is_missing_and_what_is_left_over_is_listed_by_whole_names(
    cohort: MakeCohort, command: Command
) -> None:
    root = Path(cohort(12).root)
    (root / "sub-01").rename(root / "sub-1")
    (root / "sub-1" / "vessel.nii.gz").rename(root / "kept.nii.gz")
    (root / "sub-12" / "image.nii.gz").unlink()
    ended = command()
    assert ended.code == 3
    assert f"UNUSABLE sub-1: label is missing: {root}/sub-1/vessel.nii.gz; supply it" in ended.out
    assert "UNUSABLE sub-10" not in ended.out and "UNUSABLE sub-11" not in ended.out
    assert "warning: label without an image: sub-12" in ended.out


def test_d20_an_id_that_looks_like_a_name_or_a_birth_date_is_a_warning_with_the_way_out(
    cohort: MakeCohort, command: Command, tmp_path: Path
) -> None:
    root = Path(cohort(4).root)
    (root / "sub-02").rename(root / "DOE^JANE")
    (root / "sub-03").rename(root / "pat_19570312")
    ended = command()
    assert ended.code == 0
    told = [line for line in ended.out.splitlines() if "looks like" in line]
    assert [line.split(":")[0] for line in told] == ["warning DOE^JANE", "warning pat_19570312"]
    assert all("data.prepare.pseudonymise=true" in line for line in told)
    (tmp_path / "key").write_text("a secret of the tests")
    pseudonymous = ["data.prepare.pseudonymise=true", f"data.prepare.key_file={tmp_path / 'key'}"]
    assert "looks like" not in command(*pseudonymous).out
    assert command(*pseudonymous, module=build_shards).code == 0
    for path in (tmp_path / "work").rglob("*"):
        if path.is_file() and path.name != "paths.private.json":
            assert b"JANE" not in path.read_bytes() and b"19570312" not in path.read_bytes(), path


def test_d22_one_patient_none_or_an_unreadable_folder_ends_with_a_clear_minimum(
    cohort: MakeCohort, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(cohort(1).root)
    ended = command()
    assert ended.code == 3 and "1 subject cannot give split.test=1 and split.validation=1" in ended.err
    assert "at least 3 are needed; what works for 1 subject: " in ended.err
    advice = ended.err.partition("what works for 1 subject: ")[2].partition(", all for training")[0]
    assert command(*advice.split()).code == 0
    advice = ended.err.partition("for a cohort that only tests, ")[2]
    assert command(*advice.split()).code == 0
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", denied)
        ended = command()
        assert (ended.code, ended.out) == (3, "")
        assert ended.err == f"error: {root}: cannot be listed (Permission denied); check its permissions\n"
    for path in list(root.rglob("*.nii.gz")):
        path.unlink()
    ended = command()
    assert ended.code == 3 and f"error: {root}: no file fits data.layout.image=" in ended.err
    ended = command(f"data.root={tmp_path / 'nowhere'}")
    assert ended.code == 3 and "no such folder; give the folder that holds the cohort" in ended.err


def test_a_work_dir_that_is_a_file_is_exit_6(cohort: MakeCohort, command: Command, tmp_path: Path) -> None:
    cohort(3)
    (tmp_path / "file").touch()
    for module, words in ((build_shards, ()), (preprocess, ("preprocess.bias=false",)), (check, ())):
        ended = command(f"work_dir={tmp_path / 'file'}", *words, module=module)
        assert (ended.code, ended.err.count("\n")) == (6, 1) and "cannot be written (Not a directory)" in ended.err


def denied(path: object) -> None:
    raise PermissionError(13, "Permission denied", str(path))


def test_wrong_settings_end_with_exit_2_before_any_file_is_made(command: Command, tmp_path: Path) -> None:
    for words, said in [
        (("data.prepare.quarantin=true",), "did you mean `data.prepare.quarantine`?"),
        (("data.prepare.label_values=[1]", "data.prepare.label_binarize_threshold=0.5"), "exclude each other"),
        (("data.prepare.upper_percentile=10",), "must lie above 50"),
        (("data.prepare.split.seed=-1",), "must be 0 or more"),
        (("data.name=../../escape",), "must be a plain name of one folder"),
        (("data.name=''",), "must be a plain name of one folder"),
        (("data.prepare.nan_value=nan",), "must be a finite number"),
        (("data.prepare.num_vessel_patches_gan=1000000000000",), "must lie between 0 and 1000000"),
        (("data.prepare.num_vessel_patches_unet=1000000000000",), "must lie between 1 and 1000000"),
        (("data=phantm",), "did you mean data=phantom?"),
    ]:
        for module in (check, build_shards):
            ended = command(*words, module=module)
            assert (ended.code, ended.out) == (2, "") and said in ended.err and ended.err.startswith("error: ")
    assert not (tmp_path / "work").exists()
