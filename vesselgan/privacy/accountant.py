"""What a private run spends and says of it: epsilon by patch and by patient, what none covers, what is refused."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vesselgan.config.schema import Dp, Variant
from vesselgan.core.errors import CheckpointError, PrivacyError, UsageError
from vesselgan.privacy.opacus_parts import epsilon_of, epsilon_prv, noise_for, renyi, renyi_of_group

LARGEST_DELTA = 1e-3
"""Delta is the chance that the bound does not hold at all; 1 / 47 for 47 patients would give one of them away."""
PROTECTS_NOBODY = 10.0
"""Epsilon from which the text says so: an attacker's odds may grow by e^10 = 22,000."""
NOT_COVERED = (
    "the intensity range, which is a percentile of the private volumes",
    "the label threshold, the checkpoint and the settings, where they are chosen on private validation data",
    "the counts of patients and patches, and statistics of the split",
    "the voxel spacing, which is a median of the private volumes, and the hash of the training shards (trained_on), by "
    "which whoever has a set can tell that it is this one",
    "the run's own log: critic losses and pictures of real patches carry no noise; share the samples, not the log",
)


@dataclass(frozen=True)
class Mechanism:
    """One run's steps of the critic: who enters with which chance, under how much noise."""

    unit: str
    """`patch` or `patient`: whose adding or removing epsilon speaks of, and what is sampled and clipped as one."""
    num_units: int
    batch_size: int
    """Expected units per step."""
    patches_per_patient: int
    """The most that any patient has."""
    noise_multiplier: float
    clip_norm: float
    delta: float

    @property
    def sample_rate(self) -> float:
        """Chance of a unit to be in a step."""
        return self.batch_size / self.num_units

    def epsilon(self, unit: str, steps: int) -> float:
        """By RDP, for `unit`, after so many steps of the critic; 0 after none.

        For the other unit than the one that is sampled: a patient's patches as a group, each sampled by itself; a patch
        as what its patient shows in one of `patches_per_patient` cases.
        """
        if steps == 0:
            return 0.0
        return epsilon_of(steps * self._of_one_step(unit), delta=self.delta)

    def epsilon_prv(self, steps: int) -> float | None:
        """The PRV accountant's bound for the unit that is sampled; None where it is no help. PrivacyError when the two
        accountants contradict each other."""
        if steps == 0:
            return 0.0
        return epsilon_prv(
            noise_multiplier=self.noise_multiplier, sample_rate=self.sample_rate, steps=steps, delta=self.delta
        )

    def steps_within(self, target_epsilon: float, most: int) -> int:
        """The largest number of steps, up to `most`, whose epsilon for the sampled unit stays within the target."""
        low, high = 0, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.epsilon(self.unit, middle) <= target_epsilon else (low, middle)
        return low

    def told(self, steps: int) -> dict[str, Any]:
        """For finished.json, the checkpoint and tables: epsilon, delta, unit, noise_multiplier and how they arose."""
        return {
            "epsilon": self.epsilon(self.unit, steps),
            "delta": self.delta,
            "unit": self.unit,
            "noise_multiplier": self.noise_multiplier,
            "accountant": "rdp",
            "steps": steps,
            "sample_rate": self.sample_rate,
            "num_units": self.num_units,
            "clip_norm": self.clip_norm,
            "not_covered": list(NOT_COVERED),
        }

    def _of_one_step(self, unit: str) -> np.ndarray:
        noise, rate, most = self.noise_multiplier, self.sample_rate, self.patches_per_patient
        if unit == self.unit:
            return renyi(noise_multiplier=noise, sample_rate=rate)
        if self.unit == "patient":
            return renyi(noise_multiplier=noise, sample_rate=rate / most)
        return renyi_of_group(noise_multiplier=noise, sample_rate=rate, size=most)


def mechanism_of(
    dp: Dp, *, batch_size: int, num_patches: int, num_patients: int, patches_per_patient: int, steps: int
) -> Mechanism:
    """The mechanism of a run of `steps` critic steps. PrivacyError for a delta that means nothing.

    With dp.noise_multiplier null, the noise that keeps all the steps within dp.target_epsilon.
    """
    num_units = num_patients if dp.unit == "patient" else num_patches
    delta = 1 / num_units if dp.delta is None else dp.delta
    if delta > LARGEST_DELTA:
        origin = f"1 / {num_units:,} {plural(dp.unit)}" if dp.delta is None else "variant.dp.delta"
        raise PrivacyError(
            f"delta={delta:.3g} ({origin}) means nothing: with that chance nothing at all is promised. Set "
            f"variant.dp.delta to at most {LARGEST_DELTA:g} and well below 1 / {num_units:,}, such as 1e-5"
        )
    if batch_size >= num_units:
        raise UsageError(
            f"train.batch_size={batch_size} of {num_units} {plural(dp.unit)}: everyone would be in every step, and "
            "nothing is gained from sampling; take a smaller batch or more data"
        )
    noise = dp.noise_multiplier
    if noise is None:
        assert dp.target_epsilon is not None, "refused with the configuration"
        rate = batch_size / num_units
        noise = noise_for(target_epsilon=dp.target_epsilon, sample_rate=rate, steps=steps, delta=delta)
    return Mechanism(dp.unit, num_units, batch_size, patches_per_patient, noise, dp.clip_norm, delta)


def planned(
    variant: Variant,
    *,
    batch_size: int,
    num_patches: int,
    num_patients: int,
    patches_per_patient: int,
    generator_steps: int,
) -> tuple[Mechanism, int]:
    """(the mechanism, steps of the critic) of a run so long, cut short where dp.target_epsilon would be passed."""
    assert variant.dp is not None
    steps = generator_steps * variant.n_critic
    mechanism = mechanism_of(
        variant.dp,
        batch_size=batch_size,
        num_patches=num_patches,
        num_patients=num_patients,
        patches_per_patient=patches_per_patient,
        steps=steps,
    )
    if variant.dp.target_epsilon is not None:
        within = mechanism.steps_within(variant.dp.target_epsilon, steps) // variant.n_critic
        if within == 0:
            raise PrivacyError(
                f"variant.dp.target_epsilon={variant.dp.target_epsilon}: the first {variant.n_critic} steps of the "
                f"critic pass it already (noise multiplier {mechanism.noise_multiplier:.4g}); take more noise, a "
                "smaller batch or a larger target"
            )
        steps = within * variant.n_critic
    return mechanism, steps


def words(mechanism: Mechanism, steps: int) -> list[str]:
    """What `steps` steps of the critic spend, for people: both units, both accountants, what is not covered."""
    prv = mechanism.epsilon_prv(steps)
    second = "PRV is no help at this size" if prv is None else f"PRV: {prv:.4g}"
    lines = [
        f"privacy: {steps:,} steps of the critic, each of {mechanism.num_units:,} {plural(mechanism.unit)} in a "
        f"step with chance {mechanism.sample_rate:.3g}, clipping norm {mechanism.clip_norm:g}, noise "
        f"multiplier {mechanism.noise_multiplier:.4g}"
    ]
    for unit in ("patch", "patient"):
        epsilon = mechanism.epsilon(unit, steps)
        how = f"RDP; {second}" if unit == mechanism.unit else "RDP, derived"
        lines.append(
            f"privacy: per {unit}: epsilon {epsilon:.4g} at delta {mechanism.delta:.3g} ({how}){verdict(epsilon)}"
        )
    return [*lines, "privacy: not covered by any epsilon: " + "; ".join(NOT_COVERED)]


def verdict(epsilon: float) -> str:
    """What to think of an epsilon that is too large; nothing for others."""
    if epsilon < PROTECTS_NOBODY:
        return ""
    factor = f"{np.exp(epsilon):,.0f}" if epsilon < 15 else f"10^{epsilon / np.log(10):.0f}"
    return f": this protects nobody, an attacker's odds may grow by a factor of {factor}"


def plural(unit: str) -> str:
    return {"patch": "patches", "patient": "patients"}[unit]


def check_same_history(state: dict[str, Any], now: dict[str, Any]) -> None:
    """CheckpointError unless the checkpoint's accountant is there, is this run's, and has counted every release.

    now: what this run would tell of itself (`Private.told`), `steps` being those that the restored critic has taken.
    A key that was known once stays so: noise that was taken off cannot be put on again.
    """
    stored = state.get("privacy")
    remedy = "start a new run directory: an epsilon for these weights would not be true"
    if stored is None:
        raise CheckpointError(f"the checkpoint of step {state['step']} holds no privacy accountant; {remedy}")
    keys = ("unit", "num_units", "sample_rate", "noise_multiplier", "clip_norm", "delta", "is_key_secret")
    changed = [f"{key}: {stored.get(key)} -> {now.get(key)}" for key in keys if stored.get(key) != now.get(key)]
    if changed:
        raise CheckpointError(
            f"the checkpoint's privacy accountant counted another mechanism ({'; '.join(changed)}); go on with the "
            f"settings and data of before, or {remedy}"
        )
    if stored["steps"] != now["steps"]:
        raise CheckpointError(
            f"the privacy accountant counts {stored['steps']} steps, the critic has taken {now['steps']}; {remedy}"
        )


PAPER = {0.1: 1e6, 0.3: 1e3, 0.5: 1e2}
"""Noise multiplier -> epsilon, as appendix B says."""
PAPER_STEPS, PAPER_RATE, PAPER_DELTA = 58_750, 4 / 2350, 1 / 2350
"""100 epochs of 2,350 patches in batches of 4; one step of the loader each."""


def paper_settings() -> list[dict[str, float]]:
    """The paper's three settings, per patch: what it says, where that comes from, what its code spends, what ours does.

    Its code steps twice in each of five passes over one Poisson batch and counts ten independent draws (`counted`). The
    steps on generated patches touch no one; the five on one batch are one release with noise over sqrt(5) (`spent`).
    Ours takes as many fresh batches in all, one release each (`ours`).
    """
    rows = []
    for noise, claimed in PAPER.items():
        own = renyi(noise_multiplier=noise, sample_rate=PAPER_RATE)
        five = renyi(noise_multiplier=noise / 5**0.5, sample_rate=PAPER_RATE)
        rows.append(
            {
                "noise_multiplier": noise,
                "claimed": claimed,
                "counted": epsilon_of(10 * PAPER_STEPS * own, delta=PAPER_DELTA),
                "spent": epsilon_of(PAPER_STEPS * five, delta=PAPER_DELTA),
                "ours": epsilon_of(PAPER_STEPS * own, delta=PAPER_DELTA),
            }
        )
    return rows
