"""What a layout leaves to the cohort's folder: whether it has the optional kinds, and which label values are vessel."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep import mpi
from data_prep.layouts import has_files
from data_prep.mpi import MpiWorld
from vesselgan.config.schema import PreparedData
from vesselgan.core.console import log
from vesselgan.core.errors import DataError, UsageError, check_readable
from vesselgan.core.names import on_one_line
from vesselgan.formats.synthetic_volumes import generation_of

OPTIONAL = "?"
VESSEL_WORDS = ("vessel", "arter", "vein", "vascul")
NO_STRUCTURE = ("background", "ignore")
MAX_BYTES = 10_000_000


def resolve(data: PreparedData, world: MpiWorld) -> None:
    """Sets data.layout and data.prepare.label_values to what `data.root` holds, on all ranks.

    Synthetic heads are all for training: U-Nets are chosen and tested on patients.

    Raises DataError for a dataset.json or generation.json that cannot be used, UsageError where the former names
    several structures, and for a split of heads.
    """
    data.prepare.label_values, data.layout.label, data.layout.mask = mpi.run_on_rank0(world, lambda: _look(data))
    if mpi.run_on_rank0(world, lambda: generation_of(data.root)):
        if data.prepare.split.csv is not None:
            raise UsageError(f"data.prepare.split.csv: the synthetic heads of {data.root} are all for training")
        data.prepare.split = replace(data.prepare.split, train=None, validation=0, test=0)


def _look(data: PreparedData) -> tuple[list[int] | None, str | None, str | None]:
    """(label values, pattern of the label, of the mask)."""
    prepare, layout = data.prepare, data.layout
    values, kinds = prepare.label_values, {"label": layout.label, "mask": layout.mask}
    if Path(data.root).is_dir():  # if not, finding the subjects says so
        kinds = {kind: _present(data, kind, pattern) for kind, pattern in kinds.items()}
        has_rule = values is not None or prepare.label_binarize_threshold is not None
        if layout.dataset_json is not None and kinds["label"] is not None and not has_rule:
            values = vessel_values(Path(data.root) / layout.dataset_json)
    return values, kinds["label"], kinds["mask"]


def _present(data: PreparedData, kind: str, pattern: str | None) -> str | None:
    if pattern is None or not pattern.startswith(OPTIONAL):
        return pattern
    pattern = pattern.removeprefix(OPTIONAL)
    if has_files(data.root, pattern):
        return pattern
    log.info(f"{data.name}: no {kind} ({pattern})")
    return None


def vessel_values(path: Path) -> list[int]:
    """The values that mean vessel: the only structure's, else those whose names say so; the choice is logged."""
    structures = _structures(path)
    named = {name: values for name, values in structures.items() if any(w in name.casefold() for w in VESSEL_WORDS)}
    chosen = structures if len(structures) == 1 else named
    shown = ", ".join(f"{name} {values}" for name, values in structures.items())
    if not chosen:
        raise UsageError(
            f"{path}: which of its labels are vessel ({shown})? data.prepare.label_values=[VALUE,...] says so, or "
            "data.layout.label=null uses none"
        )
    values = sorted({value for of_name in chosen.values() for value in of_name})
    if not values or 0 in values:
        raise DataError(f"{path}: {shown} leaves open what is vessel, as 0 is background; correct it")
    log.info(f"{path}: labels {shown}; vessel: {values}")
    return values


def _structures(path: Path) -> dict[str, list[int]]:
    """Name -> values of all labels but the background, in either of nnU-Net's two forms."""
    remedy = "correct it, or data.layout.dataset_json=null with data.prepare.label_values=[1]"
    try:
        with path.open("rb") as file:
            content: Any = json.loads(file.read(MAX_BYTES))
        # Version 1 writes {"1": "vessel"}, version 2 {"vessel": 1} or {"vessel": [1, 2]}.
        pairs = [(v, k) if isinstance(v, str) else (k, v) for k, v in content["labels"].items()]
        labels = {on_one_line(name): _integers(values) for name, values in pairs}
    except FileNotFoundError:
        seen = ", ".join(sorted(on_one_line(entry.name) for entry in path.parent.glob("*"))[:5]) or "nothing"
        below = next(iter(sorted(path.parent.glob(f"*/{path.name}"))), None)
        hint = remedy if below is None else f"data.root={on_one_line(str(below.parent))} has one"
        raise DataError(f"{path}: no such file; there is {seen}; {hint}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        check_readable(path, error)
        raise DataError(f"{path}: no labels can be read from it ({type(error).__name__}: {error}); {remedy}") from error
    structures = {name: values for name, values in labels.items() if name.casefold() not in NO_STRUCTURE}
    if not structures:
        raise DataError(f"{path}: names no label but the background; {remedy}")
    return structures


def _integers(values: Any) -> list[int]:
    return [int(value) for value in (values if isinstance(values, list) else [values])]
