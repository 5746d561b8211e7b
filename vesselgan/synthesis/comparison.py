"""Whether synthetic patches are like those of the training set, said before a U-Net learns from them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vesselgan.core.console import log
from vesselgan.core.errors import DataError, ResourceError
from vesselgan.formats.cohort import shards_dir
from vesselgan.formats.run_dir import RunDir
from vesselgan.formats.shards import MANIFEST, PROCEDURAL_TREES, ShardSet, content_hash
from vesselgan.metrics.centreline import TOUCHING
from vesselgan.metrics.label_likeness import evenly, label_means

MAX_PATCHES = 1000
"""Of a set, all over it."""
THRESHOLDS = [round(0.05 * k, 2) for k in range(1, 20)]
"""Candidates of a label threshold."""
FEW_VOXELS = 4
"""Components of fewer are specks: a vessel's voxels touch more."""
FAR = {"vessel fraction": 3.0, "contrast within patches": 2.0}
"""Ratio of synthetic to training patches, either way, beyond which a set gets a warning."""
FAR_SHIFT = 0.25
"""Of either end of the patches' means, over their range in the training set; the demo's GAN lay 0.19 off, patches too
much alike (30 to 69 for 3 to 73) 0.39."""
FAR_SHARE = 0.3
"""More, of empty labels or of specks, than in the training set."""


@dataclass(frozen=True)
class Summary:
    """Of a set of patches; intensities 0..255."""

    num_empty: int
    num_patches: int
    vessel_fraction: float
    low: float
    high: float
    """5th and 95th percentile of the patches' means."""
    contrast: float
    """Median over patches of the standard deviation within one."""
    specks: float
    """Share of the labels' connected components that have fewer than FEW_VOXELS voxels."""

    @classmethod
    def of(cls, shards: ShardSet, *, label_threshold: float | None = None, max_patches: int = MAX_PATCHES) -> "Summary":
        """label_threshold: of synthetic patches; None: as their manifest recommends."""
        numbers = evenly(len(shards), max_patches)
        fractions, means, contrasts, sizes = [], [], [], []
        for i in map(int, numbers):
            image_XYZ, label_XYZ = shards.pair(i, label_threshold)
            fractions.append(float(label_XYZ.mean()))
            means.append(float(image_XYZ.mean()))
            contrasts.append(float(image_XYZ.std()))
            components_XYZ, _ = ndimage.label(label_XYZ, TOUCHING)
            sizes.append(np.bincount(components_XYZ.ravel())[1:])
        low, high = np.percentile(means, [5, 95])
        all_sizes = np.concatenate(sizes)
        specks = float(np.mean(all_sizes < FEW_VOXELS)) if len(all_sizes) else 0.0
        contrast = float(np.median(contrasts))
        return cls(fractions.count(0.0), len(numbers), float(np.mean(fractions)), low, high, contrast, specks)

    def line(self) -> str:
        return (
            f"{self.num_empty} of {self.num_patches} labels empty, vessel fraction {self.vessel_fraction:.3g}, "
            f"{self.specks:.0%} of components under {FEW_VOXELS} voxels; "
            f"patch means {self.low:.0f} to {self.high:.0f}, contrast within a patch {self.contrast:.1f}"
        )

    def differences(self, training: "Summary") -> list[str]:
        """What is further from the training set than FAR, FAR_SHIFT and FAR_SHARE allow."""
        ratios = {
            "vessel fraction": (self.vessel_fraction, training.vessel_fraction),
            "contrast within patches": (self.contrast, training.contrast),
        }
        shares = {
            "empty labels": (self.num_empty / self.num_patches, training.num_empty / training.num_patches),
            f"components under {FEW_VOXELS} voxels": (self.specks, training.specks),
        }
        texts = [
            f"{name} {a:.3g} against {b:.3g}"
            for name, (a, b) in ratios.items()
            if not b / FAR[name] <= a <= b * FAR[name]
        ]
        texts += [f"{name} {a:.0%} against {b:.0%}" for name, (a, b) in shares.items() if a - b > FAR_SHARE]
        shift = max(abs(self.low - training.low), abs(self.high - training.high))
        if shift > FAR_SHIFT * (training.high - training.low):
            made, real = (f"{summary.low:.0f} to {summary.high:.0f}" for summary in (self, training))
            texts.append(f"patch means {made} against {real}")
        return texts


def training_set(run: RunDir) -> ShardSet | None:
    """What the run learned from, where it still is as it was."""
    folder = shards_dir(run.config("train_gan").data.cohort_dir, "gan", "train")
    is_there = (folder / MANIFEST).is_file() and content_hash(folder) == run.trained_on()
    return ShardSet(folder) if is_there else None


def likest_threshold(scores: Iterable[np.ndarray], training: ShardSet) -> float | None:
    """The one of THRESHOLDS whose labels are most like the training labels; None if no labels can be compared."""
    (reference,) = label_means((training.label(int(i)) for i in evenly(len(training), MAX_PATCHES)), [1.0])
    if not reference.vessel_fraction:
        return None
    distances = [means.distance(reference) for means in label_means(scores, THRESHOLDS)]
    found = [(far, threshold) for far, threshold in zip(distances, THRESHOLDS, strict=True) if far is not None]
    return min(found)[1] if found else None


def log_comparison(synthetic: ShardSet, run: RunDir) -> None:
    """Logs both sets' summaries; a warning where they are far apart, or nothing is labelled."""
    summary, is_given = Summary.of(synthetic), PROCEDURAL_TREES in synthetic.manifest.extra
    labels = "given labels" if is_given else f"at label threshold {synthetic.label_threshold:g}"
    log.info(f"{labels}: {summary.line()}")
    differences = [] if summary.vessel_fraction else ["no label has a vessel"]
    try:
        shards = training_set(run)
        if shards is None:
            raise DataError("it is not where the run read it")
        training = Summary.of(shards)
    except (DataError, ResourceError) as error:
        log.info(f"not compared with the training set: {error}")
    else:
        log.info(f"training set: {training.line()}")
        differences = summary.differences(training)
    if differences:
        remedy = "train longer" + ("" if is_given else ", or choose a label threshold with evaluate=label_threshold")
        log.warning(f"{synthetic.folder}: not like the training set: {'; '.join(differences)}; {remedy}")
