"""Groups of settings of the training commands: networks, training, machine."""

from dataclasses import dataclass, field

from vesselgan.config.checks import (
    DEVICE,
    NOT_NEGATIVE,
    POSITIVE,
    SCALE,
    SHARE,
    SHARE_BELOW_1,
    THRESHOLD,
    one_of,
    read_if,
    rule,
)
from vesselgan.config.flow import takes_muon

PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""A network's precision: its name, which is also that of its section in the DeepSpeed JSON (fp32 has none), and
torch's type of its weights, activations and gradients; masters and moments are float32."""

PRECISION = one_of(*PRECISIONS)


@dataclass
class Dp:
    """Differential privacy of the network that sees patches: the critic (appendix B), or a flow."""

    unit: str = field(metadata=one_of("patch", "patient"))
    """The unit of epsilon, which is sampled and clipped as one: `patch` (the paper's) or `patient`, as the shards'
    manifest names them."""
    noise_multiplier: float | None = field(
        metadata=rule(lambda v: 0.01 <= v <= 1000, "must lie between 0.01 and 1000; less is no differential privacy")
    )
    """Standard deviation of the noise over clip_norm; null: what target_epsilon needs."""
    clip_norm: float = field(metadata=SCALE)
    """Norm that each unit's gradient is cut to."""
    delta: float | None = field(metadata=rule(lambda v: 0 < v < 1, "must lie between 0 and 1, such as 1e-5"))
    """Null: 1 / number of units, as the paper; refused above that and above 1e-3."""
    target_epsilon: float | None = field(
        metadata=rule(lambda v: 0 < v <= 1e9, "must lie above 0, at most 1e9; more is no differential privacy")
    )
    """The run stops before the step that would pass it; null: no limit."""
    weight_clip: float | None = field(metadata=SCALE)
    """The critic's weights are kept within plus and minus this (Arjovsky 2017); a flow's are not, null."""
    noise_seed: int | None = field(metadata=NOT_NEGATIVE)
    """Null: sampling and noise from a secret key, kept in the run directory alone. A number: repeatable, but whoever
    knows it can subtract the noise."""


@dataclass
class Flow:
    """Flow matching in place of a GAN: one network learns the way from noise to a patch (Lipman 2023)."""

    position: bool
    """Whether the network knows the patch's place in the head. Samples get places as frequent as in the training set,
    from a coarse histogram."""
    time_shift: float = field(
        metadata=rule(lambda v: 0.01 <= v <= 100, "must lie between 0.01 and 100; 1 draws all times alike")
    )
    """s of t = s u / (1 + (s - 1) u) with u uniform, 0 the patch and 1 noise: above 1 more of the training's times lie
    near noise, where what kind of patch it becomes is decided."""
    num_steps: int = field(metadata=rule(lambda v: 1 <= v <= 1000, "must lie between 1 and 1000"))
    """Steps of the sampler, a forward each."""
    guidance: float = field(metadata=rule(lambda v: 0 <= v <= 10, "must lie between 0 and 10; 0 is none"))
    """Samples differ by this share more from the mean patch of their place than the network predicts, at the start;
    at the end by nothing. Small networks make samples too much alike; 0: as predicted."""


OF_MUON = read_if(lambda c: takes_muon(c.variant), "a flow in fp32 without variant.dp,")
OF_GAN = read_if(lambda c: c.variant.flow is None, "a GAN, variant.flow=null,")
OF_LATENTS = read_if(
    lambda c: c.variant.flow is None and c.variant.condition is None, "a GAN without variant.condition,"
)
OF_MADE_LABELS = read_if(lambda c: c.variant.condition is None, "a variant that makes labels, variant.condition=null,")
OF_PENALTY = read_if(
    lambda c: c.variant.penalty_weight > 0 and c.variant.flow is None and c.variant.condition is None,
    "a GAN with variant.penalty_weight above 0",
)
OF_FLOW = read_if(lambda c: c.variant.flow is not None, "a flow, such as variant=flow,")


@dataclass
class Variant:
    """How samples are learned: a GAN's networks and losses (a row of the paper's comparison) or a flow's; optimizer."""

    name: str
    """The row's name, from which runs are named."""
    width: int = field(
        metadata=rule(lambda v: v >= 8 and v % 8 == 0, "must be a multiple of 8 (three halvings of channels)")
    )
    """Generator channels at the start, critic channels at the end (paper: 512, complex 1024); a flow's at the top, and
    those of a GAN that is given labels, whose critic has twice as many at its lowest level."""
    latent_size: int = field(metadata=POSITIVE | OF_LATENTS)
    """Values of the noise that a sample is made from (a GAN that makes its labels)."""
    critic_norm: str | None = field(metadata=one_of("instance", "spectral") | OF_GAN)
    """`instance` or `spectral` normalisation (with variant.condition the latter); null, with variant.flow alone: there
    is no critic."""
    generator_norm: str | None = field(metadata=one_of("batch", "group") | OF_GAN)
    """`batch` or `group` normalisation; null, with variant.flow alone, whose network has its own."""
    precision: str = field(metadata=PRECISION)
    """`fp32`, `fp16` or `bf16`: the type in which networks compute. The optimizer keeps and updates float32 weights in
    all three; the DeepSpeed JSON's fp16 or bf16 section is completed to agree."""
    penalty_weight: float = field(metadata=NOT_NEGATIVE | OF_LATENTS)
    """lambda of equation 1; 0: no penalty."""
    penalty_reduction: str = field(metadata=one_of("sample", "batch") | OF_PENALTY)
    """`sample`: one norm and one epsilon per sample (Gulrajani 2017); `batch`: the authors' code."""
    n_critic: int = field(metadata=POSITIVE | OF_GAN)
    """Critic steps, each on a fresh batch, per generator step."""
    learning_rate_critic: float = field(metadata=POSITIVE | OF_GAN)
    """Adam's, of the critic."""
    learning_rate_generator: float = field(metadata=POSITIVE)
    """Adam's, of the generator or a flow's network; with Muon, of all but its weight matrices."""
    muon_learning_rate: float | None = field(metadata=POSITIVE | OF_MUON)
    """Of Muon, the optimizer of a flow's weight matrices in fp32; null: Adam for all, as always in half precision."""
    betas: list[float] = field(
        metadata=rule(lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "must be two rates from 0 to below 1")
    )
    """Adam's two decay rates."""
    final_learning_rate: float = field(metadata=SHARE)
    """Share of the learning rates that is left at the last step; they fall linearly. 1: constant, as the paper's."""
    ema_decay: float | None = field(metadata=rule(lambda v: 0 < v < 1, "must lie between 0 and 1, such as 0.995"))
    """Moving average of the generator's weights, per generator step, as another set to sample from; null: none. It
    warms up: after n steps the decay is at most n / (n + 10), so 0.999 is reached after 10,000."""
    label_threshold: float = field(metadata=THRESHOLD | OF_MADE_LABELS)
    """Score from which a voxel of a sample is vessel, where nothing else is said (paper: 0.3)."""
    dp: Dp | None
    """Differential privacy; null: none."""
    condition: str | None = field(metadata=one_of("label", "anatomy"))
    """What the image is made of, and what a GAN's critic must find in it. `label`: a given vessel label; `anatomy`: a
    label and a map of brain, head and outside, for which every subject needs a brain mask. `generate` gives it
    procedural ones, which are nobody's. Null: image and label are made together."""
    time_power: float = field(
        metadata=rule(lambda v: 0.5 <= v <= 4, "must lie between 0.5 and 4; 1 is equal steps") | OF_FLOW
    )
    """A flow's sampling times, 1 (noise) to 0, are this power of equal steps: above 1 more of them lie near the end,
    where the finest texture is made. Equal steps smooth the scanner's noise away once a network is well trained."""
    flow: Flow | None
    """Flow matching in place of critic and generator; null: a GAN."""


@dataclass
class Train:
    """How long, how large, how often."""

    batch_size: int = field(metadata=POSITIVE)
    """Samples per step over all ranks: a result does not depend on the number of ranks."""
    batch_per_gpu: int | None = field(metadata=POSITIVE)
    """Patches that a rank's critic sees at a time (gradient accumulation); null: its slice, batch_size / ranks. The
    update is the same. The generator, whose BatchNorm needs the whole batch, sees its slice at once."""
    epochs: int = field(metadata=POSITIVE | read_if(lambda c: c.train.max_steps is None, "train.max_steps=null"))
    """Passes over the training patches."""
    max_steps: int | None = field(metadata=POSITIVE)
    """Stop after so many generator steps; null: epochs decide."""
    max_minutes: float | None = field(metadata=POSITIVE)
    """Save and stop in time for a job that ends so many minutes after its start; null: no limit, or Slurm's."""
    seed: int = field(metadata=NOT_NEGATIVE)
    log_every: int = field(metadata=POSITIVE)
    image_every: int = field(metadata=POSITIVE)
    """Generator steps between sample images."""
    checkpoint_every: int = field(metadata=POSITIVE)
    """Generator steps between checkpoints."""
    keep_last: int = field(metadata=POSITIVE)
    """Newest checkpoints kept; one more lies on the disk while it is written."""
    save_every_epochs: int | None = field(metadata=POSITIVE)
    """Epochs between checkpoints that are kept for ever; null: none."""
    max_skipped_steps: int = field(metadata=POSITIVE)
    """Steps in a row that one network may skip for a loss or gradient that is not finite, while no smaller loss scale
    is left to try, before the run ends (exit 5)."""
    num_workers: int = field(metadata=NOT_NEGATIVE)
    """Processes that read shards; 0: the training process itself."""


@dataclass
class Machine:
    """Rates of a rank's machine, as `vesselgan benchmark target=machine` measures them."""

    description: str
    """Which machine, measured when."""
    device: str = field(metadata=DEVICE)
    """`cpu` or `cuda`."""
    ranks_per_node: int = field(metadata=POSITIVE)
    """Ranks that share a node's memory and links."""
    tflop_per_s: float = field(metadata=POSITIVE)
    """10^12 operations a second in training, with one rank at work: those that one more patch in a step takes, over the
    time that it adds."""
    tflop_per_s_shared: float = field(metadata=POSITIVE)
    """The same of each rank while ranks_per_node are at work on one batch."""
    overhead_ms: float = field(metadata=NOT_NEGATIVE)
    """What a step takes however few its patches are, with one rank at work."""
    overhead_ms_shared: float = field(metadata=NOT_NEGATIVE)
    """The same of each rank while ranks_per_node are at work on one batch."""
    update_mparameters_per_s: float = field(metadata=POSITIVE)
    """10^6 parameters that Adam steps, with one rank at work."""
    update_mparameters_per_s_shared: float = field(metadata=POSITIVE)
    link_gib_per_s: float = field(metadata=POSITIVE)
    """That a rank sends and receives in an all-reduce within a node."""
    network_gib_per_s: float | None = field(metadata=POSITIVE)
    """The same between nodes; null: as within."""
    call_ms: float = field(metadata=POSITIVE)
    """Of a collective call that carries next to nothing, two ranks."""
    load_mvoxels_per_s: float = field(metadata=POSITIVE)
    """10^6 voxels of pairs that one worker makes ready for the GAN."""
    storage_mib_per_s: float = field(metadata=POSITIVE)
    """Of the file system the shards lie on, all ranks together, not yet cached."""


@dataclass
class Runtime:
    """The machine."""

    device: str = field(metadata=one_of("auto", "cpu", "cuda"))
    """`auto`, `cpu` or `cuda`; asking for a missing one is exit 6."""


@dataclass
class TrainingRuntime(Runtime):
    """The machine, for hours and over several ranks."""

    rank_timeout_minutes: float = field(
        metadata=rule(lambda v: 0 < v <= 366 * 24 * 60, "must lie above 0, at most a year of minutes")
    )
    """How long a rank waits for the others in a collective call before it ends (exit 6); longer than a save."""
    deterministic: bool
    """On a GPU: cuDNN's deterministic kernels, the same in every session, at a loss of speed. Without it a resumed run
    agrees to rounding. A CPU repeats its bytes anyway."""
    max_restarts: int = field(metadata=POSITIVE)
    """Starts of a run after which it asks for no further requeue: a job without progress must not loop for ever."""


@dataclass
class Unet:
    """The segmentation network and its training (Hilbert 2020 as the paper used it)."""

    network: str = field(metadata=one_of("hilbert", "residual"))
    """Its levels: `hilbert` (the paper's) or `residual`."""
    loss: str = field(metadata=one_of("dice", "dice_ce"))
    """`dice` (the paper's) or `dice_ce`: with the cross-entropy. Checkpoints are chosen by Dice in both."""
    filters: list[int] = field(
        metadata=rule(lambda v: len(v) >= 2 and all(n > 0 for n in v), "must be two or more channel counts above 0")
    )
    """Channels of each level, from the finest on."""
    dropout: float = field(metadata=SHARE_BELOW_1)
    """Share of features that is dropped in training."""
    learning_rate: float = field(metadata=POSITIVE)
    precision: str = field(metadata=PRECISION)
    """As for the GAN: fp32, fp16 or bf16, of weights and activations."""
    batch_size: int = field(metadata=POSITIVE)
    """Samples per step over all ranks."""
    batch_per_gpu: int | None = field(metadata=POSITIVE)
    """Samples that a rank sees at a time (gradient accumulation); null: its slice of the batch."""
    max_steps: int = field(metadata=POSITIVE)
    """Optimizer steps; the same number for real, synthetic and both, so that sources are compared at equal effort."""
    validate_every: int = field(metadata=POSITIVE)
    """Steps between validations on the real validation patches; a checkpoint is written at each."""
    log_every: int = field(metadata=POSITIVE)
    keep_last: int = field(metadata=POSITIVE)
    """Checkpoints kept beside the best."""
    max_skipped_steps: int = field(metadata=POSITIVE)
    """Steps in a row that may be skipped for a loss or gradient that is not finite, as for the GAN (exit 5)."""
    num_workers: int = field(metadata=NOT_NEGATIVE)


@dataclass
class UnetRun(Unet):
    """A single U-Net's training, which may stop early."""

    patience: int = field(metadata=POSITIVE)
    """Validations without a better loss before the run stops."""
    seed: int = field(metadata=NOT_NEGATIVE)
