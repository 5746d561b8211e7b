"""A folder of predictions resumes with its own settings, from every rank's record, and with no others."""

import pytest

from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.predictions import Predictions

SETTINGS = {"run": "unet", "threshold": 0.5}


def test_an_entry_holds_for_its_very_files(tmp_path):
    out, image = Predictions(tmp_path), tmp_path / "image"
    image.write_text("image"), out.label("a").write_text("label")
    entry = {"image_sha256": sha256_of(image), "output_sha256": sha256_of(out.label("a"))}
    assert out.is_up_to_date("a", entry, image, probability=False)
    assert not out.is_up_to_date("a", entry, image, probability=True)
    assert not out.is_up_to_date("a", None, image, probability=False)
    image.write_text("another")
    assert not out.is_up_to_date("a", entry, image, probability=False)


def test_a_foreign_folder_is_refused(tmp_path):
    Predictions(tmp_path / "own").open(SETTINGS)
    with pytest.raises(UsageError, match="threshold: 0.5 -> 0.6"):
        Predictions(tmp_path / "own").open(SETTINGS | {"threshold": 0.6})
    with pytest.raises(UsageError, match="not made by segment"):
        Predictions(tmp_path).open(SETTINGS)
    Predictions(tmp_path / "own").record.write_text("{")
    with pytest.raises(DataError, match="segmentation.json"):
        Predictions(tmp_path / "own").settings()


def test_a_record_of_an_older_form_is_refused(tmp_path):
    out = Predictions(tmp_path)
    out.record.write_text('{"format_version": 1, "settings": {}, "volumes": {}}')
    for read in (out.settings, lambda: out.open({})):
        with pytest.raises(DataError, match="segmentation.json: format version 1"):
            read()


@pytest.mark.parametrize("hostile", ["../../up", "/tmp/up", "two\nlines"])
def test_predictions_stay_in_their_folder(tmp_path, hostile):
    out = Predictions(tmp_path / "out")
    for path_of in (out.label, out.probability):
        with pytest.raises(DataError):
            path_of(hostile)
    out.open(SETTINGS)
    out.write(SETTINGS, {hostile: {}})
    with pytest.raises(DataError):
        out.open(SETTINGS)
