"""The page for the eyes: what stands out comes first, and nothing on it is fetched or trusted."""

import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from data_prep import check, qc
from data_prep.mpi import MpiWorld
from vesselgan.config.schema import PreparedData
from vesselgan.core.errors import DataError

ALONE = MpiWorld(0, 1, None)
MakeCohort = Callable[..., PreparedData]


class Outline(HTMLParser):
    """Tags with their attributes, in order; and that every one is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.attributes = [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img", "rect", "line", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(data: PreparedData) -> str:
    try:
        check.check(data, ALONE, with_page=True)
    except DataError:
        pass
    return (Path(data.cohort_dir) / "qc.html").read_text()


def replace_voxels(path: Path, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    old = nib.load(path)
    nib.save(nib.Nifti1Image(edit(np.asarray(old.dataobj).copy()), old.affine), path)


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>([^<]*)</h2>", page)


def test_what_is_broken_or_unlike_the_others_comes_first_with_its_reason(cohort: MakeCohort) -> None:
    data = cohort(8)
    root = Path(data.root)
    replace_voxels(root / "sub-07" / "vessel.nii.gz", lambda a: np.roll(a, 9, axis=1))  # no longer on the vessel
    replace_voxels(root / "sub-05" / "vessel.nii.gz", lambda a: a | (np.indices(a.shape)[1] == 10).astype(np.uint8))
    (root / "sub-03" / "image.nii.gz").write_bytes(b"broken")
    page = page_of(data)
    order = headings(page)
    assert order[0] == "sub-03" and set(order[1:3]) == {"sub-05", "sub-07"}
    assert order[3:] == ["sub-01", "sub-02", "sub-04", "sub-06", "sub-08"]
    parts = dict(zip(order, page.split("<article>")[1:], strict=True))
    assert "image: not a NIfTI file" in parts["sub-03"] and "<img" not in parts["sub-03"]
    assert "hardly brighter than what is around them" in parts["sub-07"]
    assert "vessel share" in parts["sub-05"] and "far above the cohort" in parts["sub-05"]
    assert 'class="why"' not in parts["sub-01"]


def test_the_page_is_whole_html_that_fetches_nothing(cohort: MakeCohort) -> None:
    page = page_of(cohort(3))
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    sources = [value for tag, name, value in outline.attributes if name in ("src", "href")]
    assert len(sources) == 9 and all(value.startswith("data:image/png;base64,") for value in sources)
    assert not re.search(r"https?:|<script|@import|url\(", page)
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page


def test_names_are_escaped_and_paths_stand_nowhere(cohort: MakeCohort) -> None:
    data = cohort(2)
    evil = "sub-<img src=x onerror=alert(1)>&'"
    (Path(data.root) / "sub-02").rename(Path(data.root) / evil)
    (Path(data.root) / "sub-01" / "vessel.nii.gz").unlink()
    page = page_of(data)
    assert "<img src=x" not in page and "sub-&lt;img src=x onerror=alert(1)&gt;&amp;" in page
    assert str(data.root) not in page and "label is missing" in page


@pytest.mark.parametrize("spelling", ["{}/./nifti", "{}//nifti", "{}/nifti/"])
def test_no_path_stands_on_a_pseudonymous_page_or_in_the_table(
    cohort: MakeCohort, tmp_path: Path, capsys: pytest.CaptureFixture, spelling: str
) -> None:
    data = cohort(4)
    root = Path(data.root)
    (tmp_path / "key").write_text("a secret of some length")
    data.prepare.pseudonymise, data.prepare.key_file = True, str(tmp_path / "key")
    (root / "sub-01" / "vessel.nii.gz").unlink()
    (root / "sub-02" / "image.nii.gz").write_bytes(b"broken")
    replace_voxels(root / "sub-03" / "vessel.nii.gz", lambda a: a * 255)
    data.root = spelling.format(tmp_path)
    for text in (page_of(data), capsys.readouterr().out.partition("\n")[2]):
        assert "label is missing; supply it" in text and "image: not a NIfTI file" in text
        assert "255 taken as vessel" in text and "a check without data.prepare.pseudonymise names them" in text
        assert "sub-0" not in text and str(root) not in text


def test_pseudonyms_stand_on_the_page(cohort: MakeCohort, tmp_path: Path) -> None:
    data = cohort(3)
    (tmp_path / "key").write_text("a secret of some length")
    data.prepare.pseudonymise, data.prepare.key_file = True, str(tmp_path / "key")
    (Path(data.root) / "sub-01" / "vessel.nii.gz").unlink()
    page = page_of(data)
    assert "sub-0" not in page and all(name.startswith("anon-") for name in headings(page))


def test_the_page_is_written_although_the_cohort_is_unusable_and_only_when_asked(cohort: MakeCohort) -> None:
    data = cohort(1)
    (Path(data.root) / "sub-01" / "image.nii.gz").write_bytes(b"broken")
    with pytest.raises(DataError):
        check.check(data, ALONE)
    assert not Path(data.cohort_dir).exists()
    with pytest.raises(DataError):
        check.check(data, ALONE, with_page=True)
    assert (Path(data.cohort_dir) / "qc.html").is_file()


def test_projections_show_the_volume_upright_in_its_true_proportions() -> None:
    image = np.zeros((20, 40, 10), np.float32)
    image[10, 30, 5] = 100
    image[2, 5, 1] = 20
    mask = np.ones_like(image, np.uint8)
    seen = qc.make_preview(image, None, mask, spacing_mm=(1.0, 1.0, 4.0), limits=(20.0, 100.0))
    pictures = [np.asarray(Image.open(io.BytesIO(png)).convert("L"), int) for png in seen.pngs]
    # Y x Z = 40 x 40 mm, X x Z = 20 x 40 mm, X x Y = 20 x 40 mm, each 180 pixels high
    assert [p.shape for p in pictures] == [(180, 180), (180, 90), (180, 90)]
    inner = pictures[2][10:-10, 10:-10]
    row, column = np.unravel_index(inner.argmax(), inner.shape)
    # the voxel (10, 30): a quarter from the front edge, which is at the top, and half way across
    assert abs(row + 10 - 180 * (40 - 30.5) / 40) < 4 and abs(column + 10 - 90 * 10.5 / 20) < 4


def test_the_outline_leaves_every_voxel_of_a_thin_vessel_to_be_seen() -> None:
    image, label = np.zeros((30, 30, 30), np.float32), np.zeros((30, 30, 30), np.uint8)
    image[15, 15, 5:25] = 100
    label[15, 15, 5:25] = 1
    seen = qc.make_preview(image, label, None, spacing_mm=(1.0, 1.0, 1.0), limits=(0.0, 100.0))
    side = np.asarray(Image.open(io.BytesIO(seen.pngs[0])).convert("RGB"), int)
    is_red = (side[..., 0] > 200) & (side[..., 1] < 150)
    columns = np.flatnonzero(is_red[90])  # across the vessel, 6 pixels wide at 6 pixels a voxel
    assert len(columns) == 2 and columns[1] - columns[0] == 7  # one to the left of it, one to the right
    assert side[90, columns.sum() // 2].min() > 200  # white between them


def test_the_numbers_of_a_look_are_what_they_say() -> None:
    image, label = np.full((20, 20, 20), 100, np.float32), np.zeros((20, 20, 20), np.uint8)
    label[8:12, 8:12, 8:12] = 1
    image[label == 1] = 300
    seen = qc.make_preview(image, label, None, spacing_mm=(1.0, 1.0, 1.0), limits=(0.0, 400.0))
    assert seen.contrast == 3.0 and seen.brightness == 0.25
    assert seen.histogram[16] == pytest.approx(1 - 64 / 8000) and seen.histogram[48] == pytest.approx(64 / 8000)
    assert seen.vessel_histogram[48] == 1.0


def test_a_subject_far_from_the_others_is_told_and_small_cohorts_are_not_compared() -> None:
    numbers = [{"share": value} for value in (1.0, 1.1, 0.9, 1.05, 0.95, 3.0)]
    found = qc.find_outliers(numbers)
    # median 1.025, deviations .025 .075 .125 .025 .075 1.975: their median .075, so 1.975 / (1.4826 * .075) = 17.8
    assert found[:5] == [[]] * 5
    assert found[5][0][0] == pytest.approx(17.8, abs=0.05)
    assert found[5][0][1] == "share 3 is far above the cohort's 1.02"
    assert qc.find_outliers(numbers[2:]) == [[]] * 4
