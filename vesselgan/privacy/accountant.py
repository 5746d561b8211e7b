"""The privacy accountant: epsilon per patch and per patient, what it does not cover, which runs are refused."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vesselgan.config.private import PROTECTS_NOBODY
from vesselgan.config.schema import Dp, Variant
from vesselgan.core.errors import CheckpointError, PrivacyError, UsageError
from vesselgan.privacy.opacus_parts import epsilon_of, epsilon_prv, noise_for, renyi, renyi_of_group

LARGEST_DELTA = 1e-3
"""Delta is the probability that the bound does not hold; 1 / 47 for 47 patients would expose one of them."""
NOT_COVERED = (
    "the intensity range, which is a percentile of the private volumes",
    "the label threshold, the checkpoint and the settings, where they are chosen on private validation data",
    "the counts of patients and patches, and statistics of the split",
    "voxel spacing and size of the volumes, a median and a mean of the private ones, and the hash of the training "
    "shards (trained_on), by which whoever has a set can tell that it is this one",
    "the run's own log: critic losses and pictures of real patches carry no noise; share the samples, not the log",
)


@dataclass(frozen=True)
class PatientCounts:
    """Of a training set."""

    num_patches: int
    num_patients: int
    patches_per_patient: int
    """Maximum over patients."""


@dataclass(frozen=True)
class Mechanism:
    """The subsampled Gaussian mechanism of a run's private steps."""

    unit: str
    """`patch` or `patient`: what is sampled and clipped as one, and added or removed in the definition of epsilon."""
    num_units: int
    batch_size: int
    """Expected units per step."""
    patches_per_patient: int
    """Maximum over patients."""
    noise_multiplier: float
    clip_norm: float
    delta: float

    @property
    def sample_rate(self) -> float:
        """Probability that a unit is in a step."""
        return self.batch_size / self.num_units

    def epsilon(self, unit: str, steps: int) -> float:
        """Epsilon by RDP for `unit` after `steps` private steps.

        For a unit other than the sampled one: a patient is a group of independently sampled patches; a patch is in a
        step with 1 / `patches_per_patient` of its patient's probability.
        """
        if steps == 0:
            return 0.0
        return epsilon_of(steps * self._of_one_step(unit), delta=self.delta)

    def epsilon_prv(self, steps: int) -> float | None:
        """The PRV accountant's bound for the sampled unit, None above its range; PrivacyError if it contradicts RDP."""
        if steps == 0:
            return 0.0
        return epsilon_prv(
            noise_multiplier=self.noise_multiplier, sample_rate=self.sample_rate, steps=steps, delta=self.delta
        )

    def steps_within(self, target_epsilon: float, max_steps: int) -> int:
        """The largest number of steps, up to `max_steps`, whose epsilon for the sampled unit is within the target."""
        low, high = 0, max_steps + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.epsilon(self.unit, middle) <= target_epsilon else (low, middle)
        return low

    def to_json(self, steps: int) -> dict[str, Any]:
        """The accountant after `steps` steps, for the facts of a finished run, checkpoints and tables."""
        return {
            "epsilon": self.epsilon(self.unit, steps),
            "epsilon_patient": self.epsilon("patient", steps),
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
        noise, rate, group = self.noise_multiplier, self.sample_rate, self.patches_per_patient
        if unit == self.unit:
            return renyi(noise_multiplier=noise, sample_rate=rate)
        if self.unit == "patient":
            return renyi(noise_multiplier=noise, sample_rate=rate / group)
        return renyi_of_group(noise_multiplier=noise, sample_rate=rate, size=group)


def _mechanism(dp: Dp, patients: PatientCounts, batch_size: int, steps: int) -> Mechanism:
    """Of a run of `steps` private steps; with dp.noise_multiplier null, the noise that keeps all within the target."""
    num_units = patients.num_patients if dp.unit == "patient" else patients.num_patches
    delta = 1 / num_units if dp.delta is None else dp.delta
    if delta > min(LARGEST_DELTA, 1 / num_units):
        origin = f"1 / {num_units:,} {plural(dp.unit)}" if dp.delta is None else "variant.dp.delta"
        raise PrivacyError(
            f"delta={delta:.3g} ({origin}) is too large: with that probability the bound does not hold. Set "
            f"variant.dp.delta to at most {LARGEST_DELTA:g} and well below 1 / {num_units:,}, such as 1e-5; more is no "
            "differential privacy"
        )
    if batch_size >= num_units:
        raise UsageError(
            f"train.batch_size={batch_size} of {num_units} {plural(dp.unit)}: every unit would be in every step, "
            "without amplification by sampling; use a smaller batch or more data"
        )
    noise = dp.noise_multiplier
    if noise is None:
        assert dp.target_epsilon is not None, "checked with the configuration"
        rate = batch_size / num_units
        noise = noise_for(target_epsilon=dp.target_epsilon, sample_rate=rate, steps=steps, delta=delta)
    return Mechanism(dp.unit, num_units, batch_size, patients.patches_per_patient, noise, dp.clip_norm, delta)


def plan_mechanism(
    variant: Variant, patients: PatientCounts, *, batch_size: int, generator_steps: int
) -> tuple[Mechanism, int]:
    """(mechanism, private steps) of a run of `generator_steps`, shortened where dp.target_epsilon would be exceeded.

    PrivacyError for a delta that is too large or a target that not even one step keeps.
    """
    assert variant.dp is not None
    steps = generator_steps * variant.n_critic
    mechanism = _mechanism(variant.dp, patients, batch_size, steps)
    if variant.dp.target_epsilon is not None:
        allowed = mechanism.steps_within(variant.dp.target_epsilon, steps) // variant.n_critic
        if allowed == 0:
            raise PrivacyError(
                f"variant.dp.target_epsilon={variant.dp.target_epsilon}: the first {variant.n_critic} private "
                f"steps exceed it (noise multiplier {mechanism.noise_multiplier:.4g}); use more noise, a smaller "
                "batch or a larger target"
            )
        steps = allowed * variant.n_critic
    return mechanism, steps


def summary_lines(mechanism: Mechanism, steps: int) -> list[str]:
    """A summary of what `steps` private steps spend: both units, both accountants, what is not covered."""
    prv = mechanism.epsilon_prv(steps)
    prv_text = "PRV is no help at this size" if prv is None else f"PRV: {prv:.4g}"
    lines = [
        f"privacy: {steps:,} private steps, each of {mechanism.num_units:,} {plural(mechanism.unit)} in a "
        f"step with chance {mechanism.sample_rate:.3g}, clipping norm {mechanism.clip_norm:g}, noise "
        f"multiplier {mechanism.noise_multiplier:.4g}"
    ]
    for unit in ("patch", "patient"):
        epsilon = mechanism.epsilon(unit, steps)
        method = f"RDP; {prv_text}" if unit == mechanism.unit else "RDP, derived"
        lines.append(
            f"privacy: per {unit}: epsilon {epsilon:.4g} at delta {mechanism.delta:.3g} ({method}){verdict(epsilon)}"
        )
    if mechanism.delta >= 1 / mechanism.num_units:
        lines.append(
            f"privacy: at delta 1 / {mechanism.num_units:,} a program that publishes one whole {mechanism.unit} "
            "passes: no differential privacy for that one; set variant.dp.delta=1e-5"
        )
    return [*lines, "privacy: not covered by any epsilon: " + "; ".join(NOT_COVERED)]


def verdict(epsilon: float) -> str:
    """A warning for an epsilon that is too large; otherwise empty."""
    if epsilon < PROTECTS_NOBODY:
        return ""
    factor = f"{np.exp(epsilon):,.0f}" if epsilon < 15 else f"10^{epsilon / np.log(10):.0f}"
    return f": no differential privacy, an attacker's odds may grow by a factor of {factor}"


def plural(unit: str) -> str:
    return {"patch": "patches", "patient": "patients"}[unit]


def check_same_history(state: dict[str, Any], current: dict[str, Any]) -> None:
    """CheckpointError unless the checkpoint has this run's accountant and it has counted every release.

    current: `PrivateRun.to_json` of this run, with the steps that the restored critic has taken. A public noise key
    cannot become secret: its noise can be removed.
    """
    stored = state.get("privacy")
    remedy = "start a new run directory: an epsilon for these weights would not be true"
    if stored is None:
        raise CheckpointError(f"the checkpoint of step {state['step']} holds no privacy accountant; {remedy}")
    keys = ("unit", "num_units", "sample_rate", "noise_multiplier", "clip_norm", "delta", "is_key_secret")
    changed = [f"{key}: {stored.get(key)} -> {current.get(key)}" for key in keys if stored.get(key) != current.get(key)]
    if changed:
        raise CheckpointError(
            f"the checkpoint's privacy accountant counted another mechanism ({'; '.join(changed)}); resume with the "
            f"earlier settings and data, or {remedy}"
        )
    if stored["steps"] != current["steps"]:
        raise CheckpointError(
            f"the privacy accountant counts {stored['steps']} steps, the critic has taken {current['steps']}; {remedy}"
        )


PAPER = {0.1: 1e6, 0.3: 1e3, 0.5: 1e2}
"""Noise multiplier -> epsilon, from appendix B."""
PAPER_STEPS, PAPER_RATE, PAPER_DELTA = 58_750, 4 / 2350, 1 / 2350
"""100 epochs of 2,350 patches in batches of 4; one step of the loader each."""


def paper_settings() -> list[dict[str, float]]:
    """The paper's three settings, per patch: claimed epsilon, how it is counted, what its code and ours spend.

    Its code steps twice in each of five passes over one Poisson batch and counts ten independent draws (`counted`). The
    steps on generated patches release nothing; the five on one batch are one release with noise / sqrt(5) (`spent`).
    Ours uses fresh batches, one release each (`ours`).
    """
    rows = []
    for noise, claimed in PAPER.items():
        single = renyi(noise_multiplier=noise, sample_rate=PAPER_RATE)
        five = renyi(noise_multiplier=noise / 5**0.5, sample_rate=PAPER_RATE)
        rows.append(
            {
                "noise_multiplier": noise,
                "claimed": claimed,
                "counted": epsilon_of(10 * PAPER_STEPS * single, delta=PAPER_DELTA),
                "spent": epsilon_of(PAPER_STEPS * five, delta=PAPER_DELTA),
                "ours": epsilon_of(PAPER_STEPS * single, delta=PAPER_DELTA),
            }
        )
    return rows
