"""A batch over ranks and micro-batches, by paper and pencil."""

import pytest

from vesselgan.core.errors import UsageError
from vesselgan.trainer.batch_plan import BatchPlan


def test_sixteen_on_four_ranks_two_at_a_time():
    plan = BatchPlan.of(16, 2, ranks=4)
    assert plan == BatchPlan(total=16, per_rank=4, micro=2, accumulation=2) and plan.ranks == 4
    assert plan.whole() == BatchPlan(16, 4, 4, 1)
    assert [list(range(16))[plan.slice_of(rank)] for rank in (0, 3)] == [[0, 1, 2, 3], [12, 13, 14, 15]]
    resolved = plan.resolve({"train_batch_size": "auto", "gradient_clipping": 0.0})
    assert resolved["train_batch_size"] == 16 and resolved["gradient_clipping"] == 0.0
    assert resolved["train_micro_batch_size_per_gpu"] == resolved["gradient_accumulation_steps"] == 2


@pytest.mark.parametrize(("batch", "per_gpu", "nearest"), [(5, None, 4), (12, 5, 10)])
def test_a_batch_that_does_not_divide_is_refused(batch, per_gpu, nearest):
    with pytest.raises(UsageError, match=rf"unet.batch_size={batch}.*\b{nearest}\b"):
        BatchPlan.of(batch, per_gpu, ranks=2, group="unet")
