"""Outputs are complete, exclusive and never written through a link."""

import os
import stat
from pathlib import Path

import pytest

from vesselgan.core import locks
from vesselgan.core.atomic_io import PartialFile, open_to_append, write_bytes, write_private
from vesselgan.core.errors import ResourceError


def publish(path: Path, content: bytes) -> None:
    file = PartialFile(path)
    file.write(content)
    file.publish()


@pytest.mark.parametrize("write", [write_bytes, publish, lambda path, content: write_private(path, content.decode())])
@pytest.mark.parametrize("linked", ["a", "a.partial"])
def test_nothing_is_written_through_a_link(tmp_path, write, linked):
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / linked).symlink_to(victim)
    write(folder / "a", b"new")
    assert victim.read_bytes() == b"kept"
    assert os.listdir(folder) == ["a"] and not (folder / "a").is_symlink() and (folder / "a").read_bytes() == b"new"


@pytest.mark.parametrize("open_file", [open_to_append, locks.acquire])
def test_logs_and_locks_are_no_links(tmp_path, open_file):
    (tmp_path / "victim").write_bytes(b"kept")
    (tmp_path / "a").symlink_to("victim")
    with pytest.raises((OSError, ResourceError)):
        open_file(tmp_path / "a")
    assert (tmp_path / "victim").read_bytes() == b"kept"


def test_private_texts_are_the_owners_alone(tmp_path):
    write_private(tmp_path / "a", "text")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
