"""One study's results put together: for every source its mean over patients and seeds, and its difference to real.

What belongs together stands in sources.json, which launch/study.py writes: the rows of the paper's tables, each with
one result of `evaluate=segmentation` per cohort and seed. A result that is missing, or of other patients, is an error:
rows of one table have one n.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from vesselgan.config.schema import Evaluate
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.errors import DataError, UsageError
from vesselgan.metrics.scores import UNITS
from vesselgan.metrics.statistics import BOOTSTRAP_SAMPLES, MIN_PATIENTS, compare, describe, holm
from vesselgan.runtime.provenance import collect

FORMAT_VERSION = 1
REFERENCE = "real"
CONTROLS = ("shuffled", "threshold")
"""Kinds of rows that say what no learning, or learning from wrong labels, reaches: nothing is claimed of them."""
BOOTSTRAP_SEED = 990

Result = dict[str, Any]


def compare_sources(config: Evaluate) -> Result:
    """The comparison that config.sources describes. UsageError without it, DataError for results that do not fit."""
    if config.sources is None:
        raise UsageError("evaluate=comparison needs sources=FILE, the sources.json that launch/study.py writes")
    path = Path(config.sources)
    study = _read(path)
    inputs = {path.name: sha256_of(path)}
    members: dict[str, dict[str, list[Result]]] = {}
    for row in study["rows"]:
        members[row["name"]] = {}
        for cohort, by_seed in row["results"].items():
            members[row["name"]][cohort] = [_read(path.parent / name) for name in by_seed.values()]
            inputs |= {name: sha256_of(path.parent / name) for name in by_seed.values()}
    reference = members.get(REFERENCE, {})
    rows = []
    for row in study["rows"]:
        told = {key: value for key, value in row.items() if key != "results"}
        against = {} if row["name"] == REFERENCE else reference
        by_cohort = members[row["name"]]
        scores = {cohort: _score_cohort(results, against.get(cohort), cohort) for cohort, results in by_cohort.items()}
        empty = {cohort: [result["empty"] for result in results] for cohort, results in by_cohort.items()}
        first = next((result for results in by_cohort.values() for result in results), {})
        privacy = first.get("segmented_with", {}).get("privacy") if row["kind"] == "synthetic" else None
        rows.append(told | {"privacy": privacy, "scores": scores, "empty": empty})
    _adjust(rows)
    about = {key: value for key, value in study.items() if key != "rows"}
    method = {"least_patients": MIN_PATIENTS, "bootstrap_draws": BOOTSTRAP_SAMPLES, "bootstrap_seed": BOOTSTRAP_SEED}
    return about | {
        "format_version": FORMAT_VERSION,
        "job": "comparison",
        "name": config.name,
        "units": UNITS,
        "statistics": method
        | {"test": "Wilcoxon signed-rank against real, two-sided, Holm over the sources without the controls"},
        "rows": rows,
        "inputs": inputs,
        "provenance": collect(),
    }


def _score_cohort(members: list[Result], reference: list[Result] | None, cohort: str) -> Result:
    """Region -> metric -> `describe`, the values by patient (means over seeds) and the difference to the reference."""
    scores: Result = {}
    regions = list(dict.fromkeys(entry["region"] for entry in members[0]["subjects"]))
    for region in regions:
        scores[region] = {}
        for metric in members[0]["summary"][region]:
            subjects, values_PS = table_of(members, region, metric, cohort)
            facts: Result = describe(values_PS, seed=BOOTSTRAP_SEED)
            facts["values"] = dict(zip(subjects, values_PS.mean(axis=1).tolist(), strict=True))
            facts["difference"] = None
            if reference is not None:
                others, reference_PS = table_of(reference, region, metric, cohort)
                if others != subjects:
                    raise DataError(f"{cohort}, {region}: {members[0]['name']} was scored on {', '.join(subjects)}, "
                                    f"real on {', '.join(others)}; score both on the same patients")  # fmt: skip
                facts["difference"] = compare(values_PS, reference_PS, seed=BOOTSTRAP_SEED)
            scores[region][metric] = facts
    return scores


def table_of(members: list[Result], region: str, metric: str, cohort: str) -> tuple[list[str], np.ndarray]:
    """(patients in order, their values [P, S], one column per result); DataError unless all have the same patients."""
    columns = []
    for result in members:
        columns.append({e["subject"]: e.get(metric) for e in result["subjects"] if e["region"] == region})
    subjects = sorted(columns[0])
    for column, result in zip(columns, members, strict=True):
        lacking = [subject for subject in subjects if column.get(subject) is None]
        if sorted(column) != subjects or lacking:
            raise DataError(
                f"{cohort}, {region}, {metric}: the results of {result['name']} do not hold the same patients "
                f"({', '.join(sorted(column))} and {', '.join(subjects)}, without a value: {', '.join(lacking)}); "
                "score them again"
            )
    return subjects, np.array([[column[subject] for column in columns] for subject in subjects], dtype=float)


def _adjust(rows: list[Result]) -> None:
    """Add `p_holm` to every difference: Holm over the sources compared in one cohort, region and metric.

    Null for the controls, which are no hypotheses: counted among them they would cost the others.
    """
    families: dict[tuple[str, str, str], list[Result]] = {}
    for row in rows:
        for cohort, regions in row["scores"].items():
            for region, metrics in regions.items():
                for metric, facts in metrics.items():
                    if facts["difference"] is None:
                        continue
                    facts["difference"]["p_holm"] = None
                    if row["kind"] not in CONTROLS:
                        families.setdefault((cohort, region, metric), []).append(facts["difference"])
    for family in families.values():
        for difference, p in zip(family, holm([difference["p"] for difference in family]), strict=True):
            difference["p_holm"] = p


def _read(path: Path) -> Result:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable ({error}); run the study again, it goes on where it was") from error
