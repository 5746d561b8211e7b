"""Steps, batches and epochs of a run, by paper and pencil."""

from dataclasses import replace

import pytest

from vesselgan.core.errors import CheckpointError, UsageError
from vesselgan.trainer.schedule import Schedule

# 24 patches in batches of 4 are 6 batches an epoch; two for each step.
SCHEDULE = Schedule(seed=7, batch_size=4, num_patches=24, batches_per_step=2, epochs=3, max_steps=None)


def test_epochs_give_the_steps():
    assert SCHEDULE.stop == 9 and SCHEDULE.batches == range(18)
    assert replace(SCHEDULE, max_steps=4).stop == 4
    assert replace(SCHEDULE, epochs=1, batches_per_step=7).stop == 1
    assert replace(SCHEDULE, limit=5).resumed_from({"step": 0}).stop == 5
    assert SCHEDULE.position_after(4) == {"seed": 7, "epoch": 1, "patches": 8}


def test_the_position_survives_another_batch_size():
    position = SCHEDULE.position_after(4)
    larger = replace(SCHEDULE, batch_size=6).resumed_from({"step": 4, "position": position})
    # An epoch of four batches, and one batch of the 8 patches that were seen, so two are seen again.
    assert (larger.start, larger.first_batch) == (4, 5)
    # Seven batches are left of three epochs: three more steps.
    assert larger.stop == 7 and larger.batches == range(5, 11)


def test_what_fits_no_batch_is_refused():
    with pytest.raises(UsageError, match="batch_size=25"):
        _ = replace(SCHEDULE, batch_size=25).stop
    with pytest.raises(CheckpointError, match="position"):
        SCHEDULE.resumed_from({"step": 3})


@pytest.mark.parametrize("end", [{"max_steps": 3}, {"epochs": 1}, {"limit": 3}])
def test_a_run_past_its_end_is_refused(end):
    state = {"step": 4, "position": SCHEDULE.position_after(4)}
    with pytest.raises(UsageError, match=next(iter(end)).replace("limit", "target_epsilon")):
        replace(SCHEDULE, **end).resumed_from(state)
    assert replace(SCHEDULE, max_steps=4).resumed_from(state).steps == range(4, 4)
