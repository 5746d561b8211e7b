"""The real patches that synthetic ones are compared with, and the check that the generator never saw them."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vesselgan.core.atomic_io import write_text
from vesselgan.core.console import log
from vesselgan.core.errors import DataError, check_readable
from vesselgan.evaluation.features import patch_hashes
from vesselgan.formats.cohort import shards_dir, training_shards
from vesselgan.formats.shards import MANIFEST, ShardSet, content_hash, training_hashes


def find_reference(cohort_dir: str, split: str) -> tuple[ShardSet, str]:
    """Returns (the real patches of `split`, the purpose they were cut for: `gan`, else `unet`)."""
    for purpose in ("gan", "unet"):
        if ((folder := shards_dir(cohort_dir, purpose, split)) / MANIFEST).is_file():
            shards = ShardSet(folder)
            if shards.origin != "real":
                raise DataError(f"{folder}: holds {shards.origin} patches; name a cohort of real volumes with data=")
            return shards, purpose
    root = folder.parent.parent
    present = sorted(str(path.parent.relative_to(root)) for path in root.glob(f"*/*/{MANIFEST}"))
    raise DataError(
        f"{root}: no shards of split {split} (there are: {', '.join(present) or 'none'}); make them with "
        "`vesselgan build-shards`, or name another split as reference"
    )


def named_training_shards(cohort_dir: str) -> ShardSet:
    """Of the cohort that a user names as the generator's; raises DataError if there are none."""
    if (training := training_shards(cohort_dir)) is None:
        raise DataError(f"{cohort_dir}: has no shards/gan/train; name the cohort that the GAN learned from")
    return training


def check_trained_on(folder: Path, made_by: Mapping[str, Any], training: ShardSet | None) -> str | None:
    """Returns a note if samples do not record their training set; raises DataError if it is not `training` alone.

    made_by: what `folder` records of its generator. Without `training` nothing is checked.
    """
    hashes = training_hashes(made_by)
    if training is None:
        return None
    if not hashes:
        return "the samples do not record what their generator learned from: that it was these shards is not checked"
    if hashes != {content_hash(training.folder)}:
        raise DataError(
            f"{folder}: their GAN was trained on other shards than {training.folder}, or on others too, before its "
            "data changed or through init_from, so neither copies nor shared patients would be found; name the cohort "
            "of its training with data=, or train on that one alone"
        )
    return None


def check_overlap(reference: ShardSet, training: ShardSet | None, cache_dir: Path) -> str:
    """Returns a sentence on what was compared; raises DataError if both sets share a patient or a patch's bytes."""
    if training is None:
        return "not checked: the cohort has no shards of the GAN's training"
    if shared := sorted(reference.patients() & training.patients()):
        raise DataError(
            f"{reference.folder}: patients of the training set ({', '.join(shared[:5])}) are in the reference; a "
            "generator that copies would win. Hold them out (evaluate=image can use the training split: "
            "image.reference=train)"
        )
    training_index, reference_index = (_cached_hashes(shards, cache_dir) for shards in (training, reference))
    if duplicates := sorted(set(training_index) & set(reference_index)):
        i, j = reference_index[duplicates[0]], training_index[duplicates[0]]
        raise DataError(
            f"{reference.folder}: holds {len(duplicates)} patch{'es' * (len(duplicates) > 1)} of the training set, "
            f"under another name: patch {i}, subject {reference.subject(i)}, is training patch {j}, subject "
            f"{training.subject(j)}; remove the patient from one of the splits"
        )
    return f"none: {len(reference)} reference patches against {len(training)} training patches, by patient and hash"


def match_kinds(reference: ShardSet, training: ShardSet | None, seed: int) -> tuple[np.ndarray, str | None]:
    """Returns (indices into the reference with training's ratio of grid to vessel-centred patches, a note or None).

    Patches cut for the U-Net hold more vessel-centred ones; against those a perfect generator would lose. A reference
    that lacks one of the kinds is used whole, with a note.
    """
    indices = np.arange(len(reference))
    if training is None:
        return indices, None
    counts = Counter(training.kind(i) for i in range(len(training)))
    kinds = np.array([reference.kind(int(i)) for i in indices])
    share = {kind: count / len(training) for kind, count in counts.items()}
    by_kind = {kind: np.flatnonzero(kinds == kind) for kind in share}
    if any(not len(rows) for rows in by_kind.values()):
        ratio = ", ".join(f"{fraction:.0%} {kind}" for kind, fraction in sorted(share.items()))
        present = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kinds.tolist()).items()))
        return indices, f"the reference ({present}) lacks a kind of patch that the GAN was trained on ({ratio})"
    total = min(len(by_kind[kind]) / fraction for kind, fraction in share.items())
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(by_kind[kind], int(total * share[kind]), replace=False) for kind in sorted(share)]
    return np.sort(np.concatenate(drawn)), None


def _cached_hashes(shards: ShardSet, cache_dir: Path) -> dict[str, int]:
    """Hex digest -> index (see `patch_hashes`), cached by the shards' content. A damaged entry is computed again."""
    path = cache_dir / f"hashes-{content_hash(shards.folder)[:32]}.json"
    try:
        cached = json.loads(path.read_text())
        if cached["sha256"] == _digest(cached["hashes"]):
            hashes: dict[str, int] = cached["hashes"]
            return hashes
        log.warning(f"{path}: damaged; computed again")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        check_readable(path, error)
        log.warning(f"{path}: damaged ({error}); computed again")
    hashes = {digest.hex(): index for digest, index in patch_hashes(shards).items()}
    write_text(path, json.dumps({"sha256": _digest(hashes), "hashes": hashes}) + "\n")
    return hashes


def _digest(hashes: Any) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
