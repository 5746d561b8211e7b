"""A folder of synthetic heads, a cohort that data=pairs reads.

images/<subject>.nii.gz, labels/<subject>.nii.gz, masks/<subject>.nii.gz
generation.json            what made them
comparison.json            their statistics and those of the training cohort
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.errors import DataError, reading
from vesselgan.core.names import path_in
from vesselgan.formats.nifti import is_whole
from vesselgan.formats.shards import PROCEDURAL_TREES

SETTINGS = "generation.json"
"""Of heads and of patches."""
COMPARISON = "comparison.json"
LABEL_THRESHOLD = 0.5
"""The score of patches that are cut from heads is their label, 0 or 1."""
KINDS = ("labels", "masks", "images")
"""Written in this order, the image last."""
ENDING = ".nii.gz"


class SyntheticVolumes:
    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def exists(self) -> bool:
        return (self.folder / SETTINGS).is_file()

    def path(self, kind: str, subject: str) -> Path:
        """kind: one of KINDS."""
        return path_in(self.folder / kind, subject, ENDING)

    def is_complete(self, subject: str) -> bool:
        """Whether all its volumes are there and whole; reads them."""
        return all(is_whole(self.path(kind, subject)) for kind in KINDS)

    @property
    def subjects(self) -> list[str]:
        """Of the complete heads. Raises DataError if one lacks its label or its mask."""
        names = sorted(path.name.removesuffix(ENDING) for path in (self.folder / "images").glob(f"*{ENDING}"))
        for name in names:
            if missing := [kind for kind in KINDS if not self.path(kind, name).is_file()]:
                raise DataError(f"{self.path(missing[0], name)}: is missing; generate the heads again")
        return names

    def settings(self) -> dict[str, Any]:
        """What made the heads. Raises DataError if that is missing or damaged."""
        path = self.folder / SETTINGS
        remedy = "nothing else says that these volumes are synthetic: name a folder that `vesselgan generate` wrote"
        with reading(path, remedy):
            return {**json.loads(path.read_text(encoding="utf-8"))}

    def content_hash(self) -> str:
        """Of all files of the complete heads."""
        with reading(self.folder, "generate the heads again"):
            files = [f"{kind}/{name} {sha256_of(self.path(kind, name))}" for name in self.subjects for kind in KINDS]
        return hashlib.sha256("\n".join(files).encode()).hexdigest()


def origin_of(root: str | Path) -> str:
    """Of the volumes in a cohort's folder: `synthetic` for heads that `vesselgan generate` wrote, else `real`."""
    volumes = SyntheticVolumes(root)
    has_heads = volumes.exists() and (volumes.folder / KINDS[-1]).is_dir()  # a folder of patches has settings too
    return "synthetic" if has_heads else "real"


def generation_of(root: str | Path) -> dict[str, Any]:
    """What the manifest of patches says of the generator of the heads in `root`; nothing for patients' volumes."""
    if origin_of(root) == "real":
        return {}
    return {**SyntheticVolumes(root).settings(), PROCEDURAL_TREES: True, "threshold": LABEL_THRESHOLD}
