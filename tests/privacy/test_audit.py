"""An attack on the private step itself: what it proves about epsilon lies below the claim, and above it without noise.

A canary, one more unit with the largest gradient that clipping leaves, is in half of the trials' data. The attacker
sees what a step releases, as the accountants assume, and guesses. How often he is right bounds epsilon from below:
for an (epsilon, delta)-private step, true positives <= e^epsilon * false positives + delta (Kairouz 2015).
"""

import math

import pytest
import torch
from scipy.stats import beta
from torch import nn

from vesselgan.privacy.engine import PrivateEngine, build_private
from vesselgan.privacy.opacus_parts import epsilon_of, renyi
from vesselgan.privacy.poisson import PoissonSampler
from vesselgan.runtime.distributed import World

WIDTH, UNITS, RATE, DELTA, STEPS = 64, 8, 0.5, 1e-5, 4
CONFIDENCE = 0.99
WORLD = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def epsilon_at_least(hits: int, false_alarms: int, trials: int) -> float | None:
    """A lower bound on epsilon from so many trials with the canary and as many without, with CONFIDENCE.

    Clopper-Pearson's limits of both rates, half of the doubt for each; None where they prove nothing.
    """
    doubt = (1 - CONFIDENCE) / 2
    true_rate = beta.ppf(doubt, hits, trials - hits + 1) if hits else 0.0
    false_rate = beta.ppf(1 - doubt, false_alarms + 1, trials - false_alarms) if false_alarms < trials else 1.0
    if true_rate - DELTA <= false_rate:
        return None
    return math.log((true_rate - DELTA) / false_rate)


def critic(noise: float, key: int) -> PrivateEngine:
    built = build_private(
        "critic", nn.Linear(WIDTH, 1, bias=False), learning_rate=0.0, betas=[0.0, 0.9], noise_multiplier=noise,
        clip_norm=1.0, expected_batch=1.0, weight_clip=1e9, world=WORLD,
    )  # fmt: skip
    built.key = key
    return built


def released(built: PrivateEngine, *, has_canary: bool, key: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """What STEPS steps release along the canary's direction, in all; other units lie across it."""
    seen = []
    inner = built.inner_optimizer
    monkeypatch.setattr(inner, "step", lambda: seen.append(float(inner.param_groups[0]["params"][0].grad[0, 0])))
    units = [[number] for number in range(UNITS + has_canary)]
    positions = range(STEPS)
    shares = PoissonSampler(
        units, sample_rate=RATE, key=key, positions=positions, rank=0, world_size=1, augment=False
    )  # fmt: skip
    directions = torch.eye(WIDTH)
    for records, _ in shares:
        for record in records:
            direction = directions[0] if record == UNITS else directions[1 + record]
            built.backward(1000 * built.module(direction[None]).sum())
        built.step()
    return sum(seen)


def audit(*, noise: float, trials: int, monkeypatch: pytest.MonkeyPatch) -> float | None:
    """The attacker's lower bound; he says "there" above half of what a canary adds on average."""
    threshold = STEPS * RATE / 2
    counts = []
    for has_canary in (True, False):
        above = 0
        for trial in range(trials):
            key = 2 * trial + has_canary
            total = released(critic(noise, key), has_canary=has_canary, key=key, monkeypatch=monkeypatch)
            above += total > threshold
        counts.append(above)
    return epsilon_at_least(*counts, trials)


def test_the_attack_stays_below_the_claim(monkeypatch):
    claimed = epsilon_of(STEPS * renyi(noise_multiplier=0.7, sample_rate=RATE), delta=DELTA)
    proven = audit(noise=0.7, trials=200, monkeypatch=monkeypatch)
    assert proven is not None and 0 < proven < claimed  # the attack is one: it proves something


def test_the_attack_finds_noise_switched_off(monkeypatch):
    claimed = epsilon_of(STEPS * renyi(noise_multiplier=4.0, sample_rate=RATE), delta=DELTA)
    proven = audit(noise=1e-9, trials=200, monkeypatch=monkeypatch)
    assert proven is not None and proven > claimed


def test_the_bound_by_paper_and_pencil():
    # 100 of 100 hits: the lower limit is 0.005^(1/100) = 0.9484; no false warning: the upper one 1 - 0.9484 = 0.0516.
    assert epsilon_at_least(100, 0, 100) == pytest.approx(math.log(0.9484 / 0.0516), abs=2e-3)
    assert epsilon_at_least(3, 0, 3) is None and epsilon_at_least(50, 50, 100) is None  # too few conclude nothing
