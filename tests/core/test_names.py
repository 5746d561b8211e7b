"""A name from data becomes a file inside its folder, or is refused."""

from pathlib import Path

import pytest

from vesselgan.core.errors import DataError
from vesselgan.core.names import is_id, on_one_line, path_in

HOSTILE = ("", ".", "..", "../up", "/etc/x", "a/b", ".hidden", "two\nlines", "\x1b[2J", "a\0b", "a\u202eb", "\udcfc")


@pytest.mark.parametrize("name", [*HOSTILE, "a" * 201, "é" * 101, None, 7])
def test_what_is_no_component_is_no_file(name):
    assert not is_id(name)
    with pytest.raises(DataError) as caught:
        path_in("out", name, ".nii.gz")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["sub-01", "Müller 2", "a..b", "DOE^JANE", "é" * 100])
def test_an_id_names_a_file_of_its_folder(name):
    assert path_in("out", name, ".nii.gz") == Path("out") / f"{name}.nii.gz"


def test_escapes_stand_for_what_breaks_a_line():
    assert on_one_line("Mü\n\x1b[2J\udcfc") == r"Mü\n\x1b[2J\udcfc"
