"""The real patches that synthetic ones are held against: which they are, and that the generator never saw them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from vesselgan.config.schema import Evaluate
from vesselgan.core.atomic_io import write_text
from vesselgan.core.errors import DataError
from vesselgan.evaluation.features import patch_hashes
from vesselgan.formats.shards import MANIFEST, ShardSet, content_hash


def find_reference(config: Evaluate, split: str) -> tuple[ShardSet, str]:
    """The real patches of `split`, and for whom they were cut (`gan`, else `unet`)."""
    home = Path(config.data.cohort_dir) / "shards"
    for purpose in ("gan", "unet"):
        if (home / purpose / split / MANIFEST).is_file():
            return ShardSet(home / purpose / split), purpose
    there = sorted(str(path.parent.relative_to(home)) for path in home.glob(f"*/*/{MANIFEST}"))
    raise DataError(
        f"{home}: no shards of split {split} (there are: {', '.join(there) or 'none'}); make them with "
        "python -m data_prep.build_shards, or name another split as reference"
    )


def check_trained_on(synthetic: ShardSet, training: ShardSet) -> str | None:
    """What cannot be checked, in words. DataError where the patches' GAN learned from other shards than `training`."""
    trained_on = synthetic.manifest.extra.get("trained_on")
    if trained_on is None:
        return "the patches do not say what their GAN was trained on: that it was these shards is not checked"
    if trained_on != content_hash(training.folder):
        raise DataError(
            f"{synthetic.folder}: their GAN was trained on other shards than {training.folder}, against which neither "
            "copies nor shared patients would be found; name the cohort of its training with data="
        )
    return None


def check_overlap(reference: ShardSet, training: ShardSet | None, cache_dir: Path) -> str:
    """What was compared, in words. DataError where a patient, or a patch by its bytes, stands in both sets."""
    if training is None:
        return "not checked: the cohort has no shards of the GAN's training"
    if both := sorted(set(reference.subjects) & set(training.subjects)):
        raise DataError(
            f"{reference.folder}: patients of the training set ({', '.join(both[:5])}) are in the reference; a "
            "generator that copies would win. Hold them out (evaluate=image can be asked for the training split: "
            "image.reference=train)"
        )
    known, other = (_cached_hashes(shards, cache_dir) for shards in (training, reference))
    if twins := sorted(set(known) & set(other)):
        first = twins[0]
        raise DataError(
            f"{reference.folder}: holds {len(twins)} patch{'es' * (len(twins) > 1)} of the training set, under another "
            f"name: patch {other[first]}, subject {reference.subject(other[first])}, is training patch {known[first]}, "
            f"subject {training.subject(known[first])}; take the patient out of one of the splits"
        )
    return f"none: {len(reference)} reference patches against {len(training)} training patches, by patient and hash"


def like_training(reference: ShardSet, training: ShardSet | None, seed: int) -> tuple[np.ndarray, str | None]:
    """(the reference's rows to use, what to say of it): as many grid patches to vessel-centred ones as the GAN saw.

    Patches cut for the U-Net hold more that are centred on vessels; against those a perfect generator would lose.
    Where the reference has one kind alone it is used as it is, and that is said.
    """
    everyone = np.arange(len(reference))
    if training is None:
        return everyone, None
    seen = Counter(training.kind(i) for i in range(len(training)))
    kinds = np.array([reference.kind(i) for i in everyone])
    share = {kind: count / len(training) for kind, count in seen.items()}
    have = {kind: np.flatnonzero(kinds == kind) for kind in share}
    mix = ", ".join(f"{part:.0%} {kind}" for kind, part in sorted(share.items()))
    if any(not len(rows) for rows in have.values()):
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kinds.tolist()).items()))
        return everyone, f"the reference ({found}) lacks a kind of patch that the GAN learned from ({mix})"
    most = min(len(have[kind]) / part for kind, part in share.items())
    source = np.random.default_rng(seed)
    drawn = [source.choice(have[kind], int(most * share[kind]), replace=False) for kind in sorted(share)]
    return np.sort(np.concatenate(drawn)), None


def training_shards(config: Evaluate) -> ShardSet | None:
    """What the cohort's GANs learned from; None where those shards are not there."""
    folder = Path(config.data.cohort_dir) / "shards" / "gan" / "train"
    return ShardSet(folder) if (folder / MANIFEST).is_file() else None


def _cached_hashes(shards: ShardSet, cache_dir: Path) -> dict[str, int]:
    """Digest -> number (see `patch_hashes`), kept by the shards' content."""
    path = cache_dir / f"hashes-{content_hash(shards.folder)[:32]}.json"
    try:
        return {str(name): int(number) for name, number in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        hashes = {digest.hex(): number for digest, number in patch_hashes(shards).items()}
        write_text(path, json.dumps(hashes) + "\n")
        return hashes
