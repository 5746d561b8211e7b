"""The volumes that a U-Net was trained and selected on, by the sha256 of their voxels: no test set may hold them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vesselgan.core.errors import DataError
from vesselgan.formats.cohort import Cohort, shards_dir
from vesselgan.formats.shards import MANIFEST, ShardSet, content_hash, read_manifest, training_hashes


def is_preprocessed(image: Path) -> bool:
    """Whether `vesselgan preprocess` wrote the image: its provenance lies beside it."""
    return image.name == "image.nii.gz" and image.with_name("image.json").is_file()


def learned_from_preprocessed(cohort_dir: str) -> bool | None:
    """Whether the validation volumes of a cohort are preprocessed; None for shards without a readable cohort."""
    try:
        subjects = Cohort.read(cohort_dir).of_split("validation")
    except DataError:
        return None
    return all(is_preprocessed(subject.image) for subject in subjects.values())


def learned_from(cohort_dir: str, sets: Sequence[ShardSet], validation: ShardSet) -> dict[str, Any]:
    """{"train": [sha256], "validation": [sha256], "unknown": [reason], "gan": {run, weights_sha256, and if they
    are heads shape and noise} or null}.

    Synthetic patches count as the volumes that their GAN learned from, if the shards of its training lie in the cohort.
    """
    unknown: list[str] = []
    train: list[str] = []
    gan = None
    for shards in sets:
        folder = shards.folder
        if shards.origin == "synthetic":
            generation = shards.manifest.extra
            gan = {key: generation.get(key) for key in ("run", "weights_sha256")}
            gan |= {key: generation[key] for key in ("shape", "noise") if key in generation}
            folder = shards_dir(cohort_dir, "gan", "train")
            hashes, here = training_hashes(generation), content_hash(folder) if (folder / MANIFEST).is_file() else None
            if hashes != {here}:
                unknown.append("what the GAN of the synthetic patches learned from is not in the cohort")
            if here not in hashes:
                continue
        train += _hashes(folder, unknown)
    return {
        "train": sorted(set(train)),
        "validation": sorted(set(_hashes(validation.folder, unknown))),
        "unknown": unknown,
        "gan": gan,
    }


def _hashes(folder: Path, unknown: list[str]) -> list[str]:
    """Of the volumes that the shards were cut from."""
    subjects = read_manifest(folder).subjects.values()
    hashes = [str(subject["image_sha256"]) for subject in subjects if subject.get("image_sha256")]
    if len(hashes) < len(subjects):
        unknown.append(f"the shards of {'/'.join(folder.parts[-2:])} do not say which volumes they were cut from")
    return hashes
