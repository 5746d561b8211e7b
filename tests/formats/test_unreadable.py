"""What the system cannot read now is exit 6 for every artifact; what is not there or wrong stays that."""

import errno
import io
import os
from pathlib import Path

import pytest

from vesselgan.core.errors import ResourceError, check_readable
from vesselgan.formats.checkpoint_folder import read_state
from vesselgan.formats.cohort import Cohort
from vesselgan.formats.manifest import read_manifest
from vesselgan.formats.predictions import Predictions
from vesselgan.formats.results import read_result
from vesselgan.formats.run_dir import RunDir

READERS = {
    "manifest.json": read_manifest,
    "cohort.json": Cohort.read,
    "result.json": lambda folder: read_result(folder / "result.json"),
    "finished.json": lambda folder: RunDir(folder).finished(),
    "state.json": read_state,
    "segmentation.json": lambda folder: Predictions(folder).settings(),
}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE, errno.EACCES, errno.EIO, errno.ENOMEM])
@pytest.mark.parametrize("file", READERS)
def test_an_unreadable_record_is_not_damaged(tmp_path, monkeypatch, file, number):
    opened = io.open
    (tmp_path / file).touch()

    def refuse(name: object, *arguments: object, **options: object) -> object:
        if str(name).startswith(str(tmp_path)):
            raise OSError(number, os.strerror(number), str(name))
        return opened(name, *arguments, **options)

    monkeypatch.setattr(io, "open", refuse)
    with pytest.raises(ResourceError, match=os.strerror(number)):
        READERS[file](tmp_path)


@pytest.mark.parametrize(
    "error", [OSError("checksum"), FileNotFoundError(errno.ENOENT, ""), IsADirectoryError(errno.EISDIR, ""), KeyError()]
)
def test_wrong_contents_are_no_resource(error):
    check_readable(Path("file"), error)
