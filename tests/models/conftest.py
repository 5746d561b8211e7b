"""Every test of a network runs on one thread, from one seed."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """The fixture of all folders, for every test here."""
