"""The rates of a machine: two points on a line, and a row that plan reads."""

import pytest
import yaml

from vesselgan.config.compose import compose
from vesselgan.core.errors import ResourceError, UsageError
from vesselgan.tools.benchmark import machine


def test_two_steps_give_rate_and_overhead():
    # 0.05 s and 2 TFLOP/s: 0.15 s for 0.2 TFLOP, 0.45 s for 0.8.
    found = machine.rate_and_overhead((0.15, 0.2), (0.45, 0.8))
    assert found == {"tflop_per_s": pytest.approx(2.0), "overhead_ms": pytest.approx(50.0)}
    # Many patches that are slower than few: no negative overhead, and the many's rate.
    found = machine.rate_and_overhead((0.1, 0.2), (0.5, 0.4))
    assert found == {"tflop_per_s": pytest.approx(0.8), "overhead_ms": 0.0}


def test_contradicting_times_are_refused():
    with pytest.raises(ResourceError, match="busy"):
        machine.rate_and_overhead((0.2, 0.2), (0.2, 0.8))
    with pytest.raises(UsageError, match="2 or more"):
        machine.measure(compose("benchmark", ["target=machine", "batch_size=1", "runtime.device=cpu"]))


@pytest.mark.soak
def test_plan_reads_the_measured_machine(tmp_path):
    words = ["target=machine", "variant.width=16", "patch_shape=[32,32,16]", "shape=[48,48,32]", "num_patches=2"]
    words += ["repeats=5", "batch_size=8", "ranks_per_node=2", f"machine_file={tmp_path / 'ours.yaml'}"]
    record = machine.run(compose("benchmark", [*words, "runtime.device=cpu"]))["machine"]
    assert yaml.safe_load((tmp_path / "ours.yaml").read_text()) == record
    assert record["ranks_per_node"] == 2 and record["network_gib_per_s"] is None
    assert all(value > 0 for key, value in record.items() if key.endswith(("_per_s", "call_ms")) and value is not None)
    assert record.keys() == vars(compose("plan", []).machine).keys()
