"""What the operating system refuses is a resource error; a defect stays a traceback."""

import errno
import os

import pytest

from vesselgan.core.errors import exit_on_error


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "EDQUOT", "EIO", "EACCES", "EMFILE"])
def test_a_full_disk_is_exit_6(name, capsys):
    def fail() -> None:
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number), "work/run/log.txt")

    with pytest.raises(SystemExit) as caught:
        exit_on_error(fail)
    assert caught.value.code == 6 and "error: work/run/log.txt" in capsys.readouterr().err


def test_a_missing_file_is_our_defect():
    with pytest.raises(FileNotFoundError):
        exit_on_error(lambda: open("/nowhere/at/all").close())
