"""Costs against the paper's Table 2 and against a checkpoint that was really written."""

import json
import subprocess
import sys

import pytest

from vesselgan.config.compose import compose
from vesselgan.plan import costs


@pytest.mark.parametrize(
    ("variant", "total", "generator"),
    [
        ("gp", 144_697_347, 139_916_994),
        ("sn", 144_697_347, 139_916_994),
        ("sn_mp", 144_697_347, 139_916_994),
        ("c_sn_mp", 307_974_147, 289_123_714),
    ],
)
def test_parameters_are_those_of_table_2(variant, total, generator):
    facts = costs(compose("plan", [f"variant={variant}"]))
    assert facts["parameters_generator"] == generator
    assert facts["parameters_generator"] + facts["parameters_critic"] == total


def test_half_the_width_is_the_private_variants_size():
    assert costs(compose("plan", ["variant=sn", "variant.width=256"]))["parameters"] == 70_026_243


def test_json_is_one_object_with_the_documented_keys(repository):
    command = [sys.executable, str(repository / "launch/plan.py"), "variant=c_sn_mp", "patch_shape=[128,128,64]"]
    result = subprocess.run([*command, "ranks=[1,2]", "--json"], capture_output=True, text=True, timeout=60, check=True)
    facts = json.loads(result.stdout)
    assert facts["parameters_generator"] == 289_123_714 and facts["parameters_critic"] == 18_850_433
    # Three float32 numbers a parameter: the weight and Adam's two moments.
    assert facts["checkpoint_gib"] == pytest.approx(3 * 4 * 307_974_147 / 2**30, rel=1e-3)
    assert [row["batch_per_rank"] for row in facts["ranks"]] == [4, 2]
