"""The pairs of a release: one set of NIfTI files that BIDS and nnU-Net both read, and what describes them.

dataset_description.json                       BIDS 1.9, a derivative
dataset.json                                   nnU-Net v2: which file is which case's image and label
croissant.json                                 Croissant 1.0, JSON-LD
sub-synth00001/anat/*_desc-synthetic_angio.nii.gz, *_label-vessel_desc-synthetic_mask.nii.gz
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vesselgan.core.atomic_io import sha256_of, write_text
from vesselgan.core.errors import UsageError
from vesselgan.core.version import __version__
from vesselgan.formats.nifti import SYNTHETIC
from vesselgan.formats.shards import ShardSet
from vesselgan.formats.volumes import write_volume
from vesselgan.synthesis.generate import canonical_affine

IMAGE, LABEL = "desc-synthetic_angio.nii.gz", "label-vessel_desc-synthetic_mask.nii.gz"
NETWORK = "generator"
OUTSIDE_BIDS = (NETWORK, "dataset.json", "croissant.json", "SHA256SUMS")
TERMS = "citeAs column equivalentProperty extract field fileProperty fileObject fileSet format includes isLiveDataset "
TERMS += "jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source "
TERMS += "subField transform"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in TERMS.split()},
}
"""The standard one of Croissant 1.0."""


def grid_of(sets: Sequence[ShardSet]) -> np.ndarray:
    """The affine of every pair. Raises UsageError for sets of different grids."""
    first = sets[0]
    for other in sets[1:]:
        if (other.patch_shape, other.spacing_mm) != (first.patch_shape, first.spacing_mm):
            raise UsageError(f"{other.folder}: has another grid than {first.folder}; release each by itself")
    return canonical_affine(first.patch_shape, first.spacing_mm)


def write_pairs(folder: Path, sets: Sequence[ShardSet]) -> list[tuple[str, str]]:
    """Writes every pair, numbered anew: a sample's seed would be a name; returns (image, label) below `folder`."""
    affine, files = grid_of(sets), []
    total = sum(map(len, sets))
    for number, (image_XYZ, label_XYZ) in enumerate(tqdm(_pairs(sets), total=total, unit="pair", disable=None), 1):
        subject = f"sub-synth{number:05d}"
        names = [f"{subject}/anat/{subject}_{ending}" for ending in (IMAGE, LABEL)]
        for name, array_XYZ in zip(names, (image_XYZ, label_XYZ), strict=True):
            write_volume(folder / name, array_XYZ, affine, SYNTHETIC)
        files.append((names[0], names[1]))
    return files


def _pairs(sets: Sequence[ShardSet]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for shards in sets:
        yield from (shards.pair(i) for i in range(len(shards)))
        shards.close()


def write_descriptions(folder: Path, name: str, files: Sequence[tuple[str, str]], license: str | None) -> None:
    """BIDS' dataset_description.json and nnU-Net's dataset.json."""
    made_by = {"Name": "vesselgan", "Version": __version__, "Description": "Generated; no volume is of a person."}
    bids = {"Name": name, "BIDSVersion": "1.9.0", "DatasetType": "derivative", "GeneratedBy": [made_by]}
    write_json(folder / "dataset_description.json", bids | ({} if license is None else {"License": license}))
    sidecar = {"Description": "Generated patch of TOF-MRA.", "SkullStripped": False}  # BIDS requires the second
    write_json(folder / IMAGE.replace(".nii.gz", ".json"), sidecar)
    write_text(folder / ".bidsignore", "\n".join(OUTSIDE_BIDS) + "\n")
    cases = {Path(image).parts[0].removeprefix("sub-"): (image, label) for image, label in files}
    nnunet = {
        "name": name,
        "description": "Synthetic; no case is of a person.",
        "channel_names": {"0": "TOF-MRA"},
        "labels": {"background": 0, "vessel": 1},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "dataset": {case: {"images": [image], "label": label} for case, (image, label) in cases.items()},
    }
    write_json(folder / "dataset.json", nnunet | ({} if license is None else {"licence": license}))


def write_croissant(folder: Path, name: str, date: str, license: str | None, limits: str) -> None:
    """croissant.json, of what lies in `folder` by now. limits: for rai:dataLimitations."""
    objects = [
        {
            "@type": "cr:FileObject",
            "@id": str(path.relative_to(folder)),
            "name": path.name,
            "contentUrl": str(path.relative_to(folder)),
            "encodingFormat": "application/json" if path.suffix == ".json" else "application/octet-stream",
            "sha256": sha256_of(path),
        }
        for path in sorted([folder / "dataset.json", *(folder / NETWORK).glob("generator.safetensors")])
    ]
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": kind,
            "name": kind,
            "encodingFormat": "application/gzip",
            "includes": f"sub-*/anat/*_{ending}",
        }
        for kind, ending in (("images", IMAGE), ("vessel-labels", LABEL))
    ]
    content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": name,
        "description": "Synthetic patches of TOF-MRA with vessel labels; no patch is of a person.",
        "datePublished": date,
        "version": "1.0.0",
        **({} if license is None else {"license": license}),
        "rai:hasSyntheticData": True,
        "rai:dataLimitations": limits,
        "rai:personalSensitiveInformation": "Generated by a network that learned from patients; see README.md.",
        "distribution": [*objects, *sets],
    }
    write_json(folder / "croissant.json", content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
