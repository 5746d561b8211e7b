"""manifest.json: the shards of a set, in order, and where they come from. Its format stands in formats.shards."""

import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vesselgan.core.atomic_io import write_text
from vesselgan.core.errors import DataError, ResourceError, reading
from vesselgan.core.names import check_id
from vesselgan.core.version import __version__
from vesselgan.formats.shard_file import ORIGINS, ShardInfo, check_version

FORMAT_VERSION = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; the fields are its keys."""

    origin: str
    patch_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    percentiles: tuple[float, float] | None
    count: int
    subjects: dict[str, dict[str, Any]]
    shards: tuple[ShardInfo, ...]
    extra: dict[str, Any]
    made_by: str = field(default=f"vesselgan {__version__}")


def write_manifest(
    folder: str | Path,
    *,
    shards: Sequence[ShardInfo],
    patch_shape: tuple[int, int, int],
    origin: str,
    subjects: dict[str, dict[str, Any]],
    spacing_mm: tuple[float, float, float],
    percentiles: tuple[float, float] | None,
    extra: dict[str, Any],
) -> Path:
    """Makes the finished shards in `folder` a set; written last.

    subjects: {id: {spacing_mm, affine, ...}}; spacing_mm is the set's own, which generated patches inherit.
    Raises ResourceError if it cannot be written.
    """
    assert origin in ORIGINS and shards and len({shard.file for shard in shards}) == len(shards), (origin, shards)
    content = {
        "format": "vesselgan-shards",
        "format_version": FORMAT_VERSION,
        "made_by": f"vesselgan {__version__}",
        "origin": origin,
        "patch_shape": [int(n) for n in patch_shape],
        "spacing_mm": [float(s) for s in spacing_mm],
        "percentiles": percentiles,
        "count": sum(shard.count for shard in shards),
        "subjects": subjects,
        "shards": [asdict(shard) for shard in shards],
        "extra": extra,
    }
    path = Path(folder) / MANIFEST
    try:
        write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}); make room and start again") from error
    return path


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a set of shards. Raises DataError if it is missing, damaged, newer or inconsistent."""
    path = Path(folder) / MANIFEST
    with reading(path, "remove it and make the shards again"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{folder}: no shards here ({MANIFEST} is missing); make them: `vesselgan build-shards`, "
                "or `vesselgan generate` for synthetic ones"
            ) from None
        if not isinstance(content, dict) or content.get("format") != "vesselgan-shards":
            raise DataError(f"{path}: not a manifest of shards; name the folder that holds one")
        check_version(path, content.get("format_version"), content.get("made_by"), reads=FORMAT_VERSION)
        return _parse(path, content)


def _parse(path: Path, content: dict[str, Any]) -> Manifest:
    """Raises KeyError, TypeError, ValueError or AttributeError for what breaks the format, DataError for a wrong id."""
    shards = tuple(ShardInfo(**entry) for entry in content["shards"])
    patch_shape: Any = tuple(operator.index(n) for n in content["patch_shape"])
    spacing_mm: Any = tuple(float(s) for s in content["spacing_mm"])
    percentiles: Any = content["percentiles"] and tuple(float(p) for p in content["percentiles"])
    if len(patch_shape) != 3 or min(patch_shape) < 1:
        raise ValueError(f"patch_shape {patch_shape}")
    if len(spacing_mm) != 3 or not all(0 < s < 1e6 for s in spacing_mm):
        raise ValueError(f"spacing_mm {spacing_mm}")
    if content["origin"] not in ORIGINS:
        raise ValueError(f"origin {content['origin']!r} is not one of {ORIGINS}")
    for shard in shards:
        check_id(shard.file, path)
        if operator.index(shard.count) < 1 or operator.index(shard.bytes) < 1 or len(shard.sha256) != 64:
            raise ValueError(f"shard {shard.file!r} has no patches, bytes or sha256")
    if not shards or sum(shard.count for shard in shards) != content["count"]:
        raise ValueError(f"count is {content['count']}, the shards' counts sum to {sum(s.count for s in shards)}")
    subjects = {check_id(name, path): {**entry} for name, entry in content["subjects"].items()}
    for entry in subjects.values():
        check_id(entry.get("patient") or "unknown", path)
        shape = entry.get("shape", patch_shape)
        if any(operator.index(side) < patch for side, patch in zip(shape, patch_shape, strict=True)):
            raise ValueError(f"shape {shape} of a volume")
    return Manifest(
        origin=content["origin"],
        patch_shape=patch_shape,
        spacing_mm=spacing_mm,
        percentiles=percentiles,
        count=content["count"],
        subjects=subjects,
        shards=shards,
        extra={**content["extra"]},
        made_by=str(content["made_by"]),
    )


def training_hashes(made_by: Mapping[str, Any]) -> set[str]:
    """Content hashes of all that the generator of samples learned from, as they record it; empty if they do not."""
    return {*made_by.get("learned_from", []), made_by.get("trained_on")} - {None}


def content_hash(folder: str | Path) -> str:
    """sha256 over the shards' sha256 in the manifest's order, which identifies the patches and their order."""
    digests = "".join(shard.sha256 for shard in read_manifest(folder).shards)
    return hashlib.sha256(digests.encode("ascii")).hexdigest()
