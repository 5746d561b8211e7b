"""The page for the eyes: what stands out comes first, and nothing on it is fetched or trusted."""

import re
from pathlib import Path

import numpy as np
import pytest

from data_prep import check, qc
from vesselgan.config.schema import PreparedData
from vesselgan.core.errors import DataError
from vesselgan.formats.cohort import PHANTOM_SETTINGS

from .conftest import ALONE, change


def page_of(data: PreparedData) -> str:
    try:
        check.check(data, ALONE, with_page=True)
    except DataError:
        pass
    return (Path(data.cohort_dir) / "qc.html").read_text()


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>([^<]*)</h2>", page)


def test_what_is_broken_or_unusual_comes_first(cohort):
    data = cohort(8)
    root = Path(data.root)
    change(root / "sub-07" / "vessel.nii.gz", lambda a: np.roll(a, 9, axis=1))  # no longer on the vessel
    change(root / "sub-05" / "vessel.nii.gz", lambda a: a | (np.indices(a.shape)[1] == 10).astype(np.uint8))
    (root / "sub-03" / "image.nii.gz").write_bytes(b"broken")
    page = page_of(data)
    order = headings(page)
    assert order[0] == "sub-03" and set(order[1:3]) == {"sub-05", "sub-07"}
    assert order[3:] == ["sub-01", "sub-02", "sub-04", "sub-06", "sub-08"]
    parts = dict(zip(order, page.split("<article>")[1:], strict=True))
    assert "<img" not in parts["sub-03"] and "vessel share" in parts["sub-05"]


def test_the_page_fetches_nothing(cohort):
    page = page_of(cohort(3))
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 9 and all(value.startswith("data:image/png;base64,") for value in sources)
    assert not re.search(r"https?:|<script|@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_patients_are_announced_and_phantoms_are_not(cohort):
    data = cohort(2)
    assert "This page shows patient data" in page_of(data)
    (Path(data.root) / PHANTOM_SETTINGS).write_text("{}")
    assert "patient data" not in page_of(data)


def test_names_are_escaped_and_paths_left_out(cohort):
    data = cohort(2)
    evil = "sub-<img src=x onerror=alert(1)>&'"
    (Path(data.root) / "sub-02").rename(Path(data.root) / evil)
    (Path(data.root) / "sub-01" / "vessel.nii.gz").unlink()
    page = page_of(data)
    assert "<img src=x" not in page and "sub-&lt;img src=x onerror=alert(1)&gt;&amp;" in page
    assert str(data.root) not in page and "label is missing" in page


@pytest.mark.parametrize("spelling", ["{}/./nifti", "{}//nifti", "{}/nifti/"])
def test_a_pseudonymous_page_holds_no_path(cohort, tmp_path, capsys, spelling):
    data = cohort(4)
    root = Path(data.root)
    (tmp_path / "key").write_text("a secret of some length")
    data.prepare.pseudonymise, data.prepare.key_file = True, str(tmp_path / "key")
    (root / "sub-01" / "vessel.nii.gz").unlink()
    (root / "sub-02" / "image.nii.gz").write_bytes(b"broken")
    change(root / "sub-03" / "vessel.nii.gz", lambda a: a * 255)
    data.root = spelling.format(tmp_path)
    for text in (page_of(data), capsys.readouterr().out.partition("\n")[2]):
        assert "label is missing" in text and "255 taken as vessel" in text
        assert "sub-0" not in text and str(root) not in text


def test_contrast_and_histograms_are_those_by_hand():
    image, label = np.full((20, 20, 20), 100, np.float32), np.zeros((20, 20, 20), np.uint8)
    label[8:12, 8:12, 8:12] = 1
    image[label == 1] = 300
    seen = qc.make_preview(image, label, None, spacing_mm=(1.0, 1.0, 1.0), limits=(0.0, 400.0))
    assert seen.contrast == 3.0 and seen.brightness == 0.25
    assert seen.histogram[16] == pytest.approx(1 - 64 / 8000) and seen.histogram[48] == pytest.approx(64 / 8000)
    assert seen.vessel_histogram[48] == 1.0


def test_outliers_are_found_in_large_cohorts_alone():
    numbers = [{"share": value} for value in (1.0, 1.1, 0.9, 1.05, 0.95, 3.0)]
    found = qc.find_outliers(numbers)
    # median 1.025, deviations .025 .075 .125 .025 .075 1.975: their median .075, so 1.975 / (1.4826 * .075) = 17.8
    assert found[:5] == [[]] * 5
    assert found[5][0][0] == pytest.approx(17.8, abs=0.05)
    assert qc.find_outliers(numbers[2:]) == [[]] * 4
