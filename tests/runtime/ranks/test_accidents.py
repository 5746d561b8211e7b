"""What is not finite on one rank changes nothing on any, is counted on all, and the next step is taken."""

import math

import pytest

KINDS = ["fp32-0", "bf16-1", "fp16-2"]
WHERE = [("input", "critic", "generator"), ("gradient", "generator", "critic")]
COUNTS = ("skipped_total", "bad_in_a_row", "scale", "optimizer_steps", "weight_sum")


def column(record: dict, key: str) -> list:
    return [step.get(key) for step in record["steps"]]


def assert_only_one_step_was_skipped(record: dict, network: str, other: str) -> None:
    """The second of five."""
    assert column(record, f"amp/{network}_skipped") == [0, 1, 0, 0, 0]
    assert column(record, f"{network}_skipped_total") == [0, 1, 1, 1, 1]
    assert column(record, f"{network}_optimizer_steps") == [1, 1, 2, 3, 4]
    sums = column(record, f"{network}_weight_sum")
    assert sums[0] == sums[1] and len(set(sums)) == 4
    assert column(record, f"amp/{other}_skipped") == [0] * 5 and len(set(column(record, f"{other}_weight_sum"))) == 5
    # A skipped step has no loss to tell, so no mean is spoiled; the others are numbers.
    losses = column(record, f"{network}_loss")
    assert losses[1] is None and all(math.isfinite(loss) for loss in losses if loss is not None)
    assert all(math.isfinite(number) for network in record["after"].values() for n in network.values() for number in n)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("where", "network", "other"), WHERE)
def test_a_nan_skips_one_step_on_all_ranks(results, where, network, other, kind, size):
    record = [results.record(size, f"nan-{where}-{kind}", rank) for rank in range(size)]
    # A NaN loss is mended by no smaller scale: a bad step. For a gradient in fp16 the scale could still be halved.
    bad = [0] * 5 if (where, kind) == ("gradient", "fp16-2") else [0, 1, 0, 0, 0]
    for rank in record:
        assert_only_one_step_was_skipped(rank, network, other)
        assert column(rank, f"{network}_bad_in_a_row") == bad
    assert record[0]["after"] == record[-1]["after"]


@pytest.mark.parametrize("size", [1, 2])
def test_an_overflow_halves_one_players_scale(results, size):
    for rank in range(size):
        record = results.record(size, "overflow", rank)
        assert_only_one_step_was_skipped(record, "critic", "generator")
        # loss_scale_window 2: doubled in the third good step after a start or an overflow, then every second.
        assert column(record, "critic_scale") == [4096, 2048, 2048, 2048, 4096]
        assert column(record, "generator_scale") == [4096, 4096, 8192, 8192, 16384]
        assert record["steps"][-1]["critic_bad_in_a_row"] == 0


@pytest.mark.parametrize("size", [1, 2])
def test_overflows_at_the_smallest_scale_are_counted(results, size):
    for rank in range(size):
        record = results.record(size, "floor", rank)
        assert column(record, "amp/critic_skipped") == [0, 1, 1, 1, 1]
        assert column(record, "critic_scale") == [2, 1, 1, 1, 1]
        # The step tried with scale 2 had a way out; those with 1 had none.
        assert column(record, "critic_bad_in_a_row") == [0, 0, 1, 2, 3]
        assert column(record, "generator_bad_in_a_row") == [0] * 5


@pytest.mark.parametrize("size", [1, 2])
def test_five_critic_steps_take_five_batches(results, size):
    (step,) = results.record(size, "five-critic-steps")["steps"]
    assert (step["critic_optimizer_steps"], step["generator_optimizer_steps"]) == (5, 1)
    assert len(set(results.record(size, "five-critic-steps")["critic_losses"])) == 5


def test_a_batch_of_one_trains(results):
    record = results.record(1, "one-patch")
    assert all(math.isfinite(step["loss/critic"] + step["loss/generator"]) for step in record["steps"])
    assert column(record, "amp/critic_skipped") == column(record, "amp/generator_skipped") == [0, 0]


def test_ranks_count_alike(results):
    for name in ("overflow", "floor", "nan-input-fp16-2"):
        first, second = (results.record(2, name, rank)["steps"] for rank in (0, 1))
        for a, b in zip(first, second, strict=True):
            for network in ("critic", "generator"):
                assert [a[f"{network}_{key}"] for key in COUNTS] == [b[f"{network}_{key}"] for key in COUNTS]
