"""What a private run may change when it goes back: nothing that would make a counted release again otherwise."""

import json
from pathlib import Path

import pytest

from vesselgan.core.errors import CheckpointError, PrivacyError
from vesselgan.formats.run_changes import Change
from vesselgan.privacy.releases import FILE, ReleaseCounter, resume

from ..conftest import edit_json

RATE = Change("variant.learning_rate_critic", 1e-4, 2e-4, is_free=False)
LONGER = Change("train.max_steps", 4, 8, is_free=False)
OFTEN = Change("train.log_every", 10, 1, is_free=True)
ZERO = Change("deepspeed.generator.zero_optimization", {"stage": 1}, {"stage": 2}, is_free=True)
CPU = {"ranks": "1 x cpu", "threads": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The mark of a run that made 20 releases with one set of settings."""
    resume(tmp_path / FILE, 0, [], CPU).advance(tmp_path / FILE, 20)
    return tmp_path / FILE


def test_releases_are_repeated_the_same_or_not(path):
    assert resume(path, 10, [LONGER, OFTEN], CPU) == ReleaseCounter(20, 0, CPU)
    for change in (RATE, ZERO):
        with pytest.raises(PrivacyError, match=f"{change.key}.* 20") as raised:
            resume(path, 10, [change], CPU)
        assert raised.value.exit_code == 7
    with pytest.raises(PrivacyError, match="ranks: 1 x cpu -> 2 x cpu"):
        resume(path, 10, [], CPU | {"ranks": "2 x cpu"})


def test_unknown_conditions_repeat_nothing(path):
    """As of a file that an earlier version wrote."""
    edit_json(path, lambda mark: mark.pop("conditions"))
    with pytest.raises(PrivacyError, match="threads"):
        resume(path, 10, [], CPU)
    assert resume(path, 20, [], CPU).num_at_change == 20


def test_settings_may_change_on_the_mark(path):
    resume(path, 20, [RATE], CPU).advance(path, 30)
    assert resume(path, 20, [], CPU).num_at_change == resume(path, 25, [], CPU).num_at_change == 20
    with pytest.raises(PrivacyError, match="release 20"):
        resume(path, 10, [], CPU)


def test_the_mark_never_goes_back(path):
    mark = resume(path, 10, [], CPU)
    mark.advance(path, 15)
    assert json.loads(path.read_text())["num_releases"] == 20
    mark.advance(path, 25)
    assert json.loads(path.read_text())["num_releases"] == 25


@pytest.mark.parametrize("content", [None, "", "{}", '{"num_releases": 3, "num_at_change": 0, "conditions": {}}'])
def test_a_lost_or_damaged_mark_stops_the_run(path, content):
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=FILE) as raised:
        resume(path, 5, [], CPU)
    assert raised.value.exit_code == 4
