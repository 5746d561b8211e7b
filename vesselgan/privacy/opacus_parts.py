"""Opacus: accountants, noise for a target epsilon, and an optimizer that clips and adds noise.

The mechanism: every unit enters a step with probability `sample_rate`, its gradient is clipped to one norm, the
sum gets Gaussian noise of `noise_multiplier` times that norm (Abadi 2016; Mironov 2019). Epsilon is for adding or
removing one unit. The one module that imports Opacus.
"""

import functools
import math
import warnings
from typing import Any

import numpy as np
import torch

from vesselgan.core.errors import PrivacyError
from vesselgan.privacy.gaussian_noise import gaussian_noise

ORDERS = [1 + tenth / 10 for tenth in range(1, 100)] + list(range(12, 64))
"""Renyi orders: Opacus' own and the paper's code's."""
GROUP_ORDERS = [1.002, 1.005, 1.01, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 6, 8, 12, 16, 32]
"""A group's divergence grows with the square of its size, so low orders are the ones that count."""
PRV_LIMIT = 20.0
"""RDP epsilons above it get no second opinion. At 177 Opacus 1.6's PRV gives 156 with an error of 0.01 and 134 with one
of 3.5, so neither is a bound; below 20 the two agree within the error that was asked for."""
PRV_SHARE = 0.02
"""Error of the PRV accountant as a share of epsilon: a hundredth of one takes ten seconds at epsilon 15, this one."""


@functools.lru_cache
def renyi(*, noise_multiplier: float, sample_rate: float) -> np.ndarray:
    """Renyi divergence of one step at ORDERS; steps add up."""
    from opacus.accountants.analysis.rdp import compute_rdp

    divergence = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS)
    return np.asarray(divergence, np.float64)


@functools.lru_cache
def renyi_of_group(*, noise_multiplier: float, sample_rate: float, size: int) -> np.ndarray:
    """Bound at GROUP_ORDERS for adding or removing `size` units at once, each sampled by itself.

    j of them are in the step with binomial probability and move its sum by at most j norms, so the step's distribution
    is a mixture over j; exp((order - 1) * divergence) is convex in either distribution, so the mean of the parts bounds
    it. Tighter than group privacy of the whole run, which knows nothing of sampling.
    """
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = np.asarray(GROUP_ORDERS, np.float64)
    rate = -math.expm1(size * math.log1p(-sample_rate))
    exponents = []
    for number in range(1, size + 1):
        chance = math.lgamma(size + 1) - math.lgamma(number + 1) - math.lgamma(size - number + 1)
        chance += number * math.log(sample_rate) + (size - number) * math.log1p(-sample_rate)
        divergence = compute_rdp(q=rate, noise_multiplier=noise_multiplier / number, steps=1, orders=GROUP_ORDERS)
        exponents.append(chance - math.log(rate) + (orders - 1) * np.asarray(divergence))
    return np.logaddexp.reduce(exponents, axis=0) / (orders - 1)


def epsilon_of(divergence: np.ndarray, *, delta: float) -> float:
    """Epsilon of a sum of divergences, at ORDERS or at GROUP_ORDERS as many as there are (Balle 2020)."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    orders = ORDERS if len(divergence) == len(ORDERS) else GROUP_ORDERS
    with warnings.catch_warnings():
        # At the edge of the orders the bound is loose, not wrong, and the paper's orders are kept.
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        return float(get_privacy_spent(orders=orders, rdp=divergence, delta=delta)[0])


def epsilon_prv(
    *, noise_multiplier: float, sample_rate: float, steps: int, delta: float, error: float | None = None
) -> float | None:
    """An upper bound by Opacus' PRV accountant (Gopi 2021), at most twice `error` above the truth; None beyond it.

    error: null for PRV_SHARE of what RDP says.
    """
    from opacus.accountants import PRVAccountant

    by_rdp = epsilon_of(steps * renyi(noise_multiplier=noise_multiplier, sample_rate=sample_rate), delta=delta)
    if by_rdp > PRV_LIMIT:
        return None
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    try:
        epsilon = float(accountant.get_epsilon(delta, eps_error=error or max(0.01, PRV_SHARE * by_rdp)))
    except ValueError:  # a delta so small that PRV's rounding exceeds it
        return None
    if not 0 <= epsilon <= by_rdp + 2 * max(0.01, PRV_SHARE * by_rdp):
        raise PrivacyError(
            f"the accountants disagree: RDP bounds epsilon by {by_rdp:.3f}, PRV by {epsilon:.3f}, at noise multiplier "
            f"{noise_multiplier}, rate {sample_rate}, {steps} steps, delta {delta}; rely on neither, and report it"
        )
    return epsilon


def noise_for(*, target_epsilon: float, sample_rate: float, steps: int, delta: float) -> float:
    """The smallest noise multiplier found that keeps `steps` within the target by RDP; PrivacyError where none does."""
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
            return float(
                get_noise_multiplier(
                    target_epsilon=target_epsilon,
                    target_delta=delta,
                    sample_rate=sample_rate,
                    steps=steps,
                    accountant="rdp",
                    epsilon_tolerance=min(0.01, target_epsilon / 100),
                )
            )
    except ValueError as error:
        raise PrivacyError(
            f"variant.dp.target_epsilon={target_epsilon} at delta {delta:.3g}: no noise keeps {steps:,} steps within "
            f"it ({error}); take fewer epochs, a smaller batch or a larger target"
        ) from error


def private_optimizer(
    inner: torch.optim.Optimizer,
    *,
    noise_multiplier: float,
    clip_norm: float,
    expected_batch: float,
    num_ranks: int,
) -> Any:
    """`inner` behind Opacus' clipping and noise; on several ranks the clipped sums are added and rank 0 adds noise.

    expected_batch: units per step over all ranks; the noisy sum is divided by it. What the noise of a step is drawn
    from, a numpy Generator, is set as `generator` before it.
    """
    from opacus.optimizers import DistributedDPOptimizer, DPOptimizer

    class Noisy(DPOptimizer):
        def add_noise(self) -> None:
            """Opacus' own, with our source of noise."""
            for parameter in self.params:
                noise = gaussian_noise(self.generator, parameter, sd=self.noise_multiplier * self.max_grad_norm)
                parameter.grad = (parameter.summed_grad + noise).view_as(parameter)

    class NoisyOverRanks(DistributedDPOptimizer, Noisy):
        """The noise is added by rank 0, as Opacus has it."""

    # Over ranks Opacus divides by their number once more.
    return (NoisyOverRanks if num_ranks > 1 else Noisy)(
        inner,
        noise_multiplier=noise_multiplier,
        max_grad_norm=clip_norm,
        expected_batch_size=expected_batch / num_ranks,
    )
