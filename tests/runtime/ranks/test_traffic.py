"""What plan says that a step sends, against the calls that two ranks really made."""

import pytest

from vesselgan.config.compose import compose
from vesselgan.training.cost import StepSetup
from vesselgan.training.engines import batch_plan
from vesselgan.training.scaling import traffic

from .conftest import PATCH, STAGES, case


@pytest.mark.parametrize("stage", STAGES)
def test_a_steps_traffic_is_as_predicted(results, stage):
    sent = results.record(2, f"spectral-fp32-{stage}")["sent"]
    config = compose("train_gan", case("spectral", "fp32", stage)["words"])
    raw = {"zero_optimization": {"stage": stage, "reduce_bucket_size": 500_000_000}}
    predicted = traffic(StepSetup(config.variant, PATCH, batch_plan(config, 2), raw, "cpu", has_average=False))
    assert len(sent) == predicted.calls
    reduced = sum(size for name, size in sent if name == "allreduce_" and size > 1000)  # the small ones: norms
    assert reduced == predicted.gradient_bytes
    # ZeRO pads its parts.
    gathered = sum(size for name, size in sent if name == "_allgather_base_")
    assert predicted.weight_bytes <= gathered <= predicted.weight_bytes + 64
