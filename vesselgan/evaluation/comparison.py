"""The results of one study, side by side: the scores of every source, and its paired difference to real.

sources.json, which `vesselgan study` writes, lists the rows of the paper's tables, each with one result of
`evaluate=segmentation` per cohort and seed. All rows of one table have the same patients and labels; a missing result
is an error. A patient's visits count as one: their mean.
"""

from pathlib import Path

import numpy as np

from vesselgan.config.schema import Evaluate
from vesselgan.core.atomic_io import sha256_of
from vesselgan.core.errors import DataError, UsageError
from vesselgan.formats.results import Result, read_result, truth_of
from vesselgan.metrics.scores import UNITS
from vesselgan.metrics.statistics import BOOTSTRAP_SAMPLES, MIN_PATIENTS, compare, describe, holm
from vesselgan.runtime.provenance import collect

REFERENCE = "real"
CONTROLS = ("shuffled", "threshold")
"""Kinds of rows that are baselines and no hypotheses: they are not tested."""
BOOTSTRAP_SEED = 990


def compare_sources(config: Evaluate) -> Result:
    """Returns the comparison that config.sources describes; raises DataError for results that do not fit together."""
    if config.sources is None:
        raise UsageError("evaluate=comparison needs sources=FILE, the sources.json that `vesselgan study` writes")
    path = Path(config.sources)
    study = read_result(path)
    inputs = {path.name: sha256_of(path)}
    results: dict[str, dict[str, list[Result]]] = {}
    for row in study["rows"]:
        results[row["name"]] = {}
        for cohort, by_seed in row["results"].items():
            results[row["name"]][cohort] = [read_result(path.parent / name) for name in by_seed.values()]
            inputs |= {name: sha256_of(path.parent / name) for name in by_seed.values()}
    rows = [_score_row(row, results[row["name"]], results.get(REFERENCE, {})) for row in study["rows"]]
    _add_adjusted_p(rows)
    return {key: value for key, value in study.items() if key not in ("rows", "format_version")} | {
        "job": "comparison",
        "name": config.name,
        "units": UNITS,
        "statistics": {
            "min_patients": MIN_PATIENTS,
            "bootstrap_samples": BOOTSTRAP_SAMPLES,
            "bootstrap_seed": BOOTSTRAP_SEED,
            "test": "Wilcoxon signed-rank against real, two-sided, Holm over the sources without the controls",
        },
        "rows": rows,
        "inputs": inputs,
        "provenance": collect(),
    }


def _score_row(row: Result, by_cohort: dict[str, list[Result]], reference: dict[str, list[Result]]) -> Result:
    """The row without its files, with its scores, whose visits they are of, counts of empty volumes, GAN's privacy."""
    if row["name"] == REFERENCE:
        reference = {}
    first: Result = next((result for results in by_cohort.values() for result in results), {})
    return {key: value for key, value in row.items() if key != "results"} | {
        "privacy": first.get("segmented_with", {}).get("privacy") if row["kind"] == "synthetic" else None,
        "scores": {
            cohort: _score_cohort(results, reference.get(cohort), cohort) for cohort, results in by_cohort.items()
        },
        "patients": {
            cohort: {subject: truth.patient for subject, truth in truth_of(results[0]).items()}
            for cohort, results in by_cohort.items()
        },
        "empty": {cohort: [result["empty"] for result in results] for cohort, results in by_cohort.items()},
    }


def _score_cohort(results: list[Result], reference: list[Result] | None, cohort: str) -> Result:
    """Region -> metric -> `describe`, the values by patient (means over seeds) and the difference to the reference."""
    scores: Result = {}
    for region in dict.fromkeys(entry["region"] for entry in results[0]["subjects"]):
        scores[region] = {}
        for metric in results[0]["summary"][region]:
            patients, all_PS = value_table([*results, *(reference or [])], region, metric, cohort)
            values_PS, reference_PS = np.split(all_PS, [len(results)], axis=1)
            summary: Result = describe(values_PS, seed=BOOTSTRAP_SEED)
            summary["values"] = dict(zip(patients, values_PS.mean(axis=1).tolist(), strict=True))
            summary["difference"] = compare(values_PS, reference_PS, seed=BOOTSTRAP_SEED) if reference else None
            scores[region][metric] = summary
    return scores


def value_table(results: list[Result], region: str, metric: str, cohort: str) -> tuple[list[str], np.ndarray]:
    """Returns (sorted patients, values [P, S], means over visits, one column per result).

    Raises DataError if the results do not all have the same patients and labels.
    """
    columns = [{e["subject"]: e.get(metric) for e in result["subjects"] if e["region"] == region} for result in results]
    subjects = sorted(columns[0])
    for column, result in zip(columns, results, strict=True):
        missing = [subject for subject in subjects if column.get(subject) is None]
        if sorted(column) != subjects or missing:
            raise DataError(
                f"{cohort}, {region}, {metric}: the results of {result['name']} do not hold the same patients "
                f"({', '.join(sorted(column))} and {', '.join(subjects)}, without a value: {', '.join(missing)}); "
                "score them again"
            )
        if truth_of(result) != truth_of(results[0]):
            raise DataError(
                f"{cohort}: {result['name']} was scored on other labels than {results[0]['name']}, or with other "
                "patients to the subjects; score them again"
            )
    visits: dict[str, list[list[float]]] = {}
    for subject in subjects:
        patient = truth_of(results[0])[subject].patient
        visits.setdefault(patient, []).append([column[subject] for column in columns])
    patients = sorted(visits)
    return patients, np.array([np.mean(visits[patient], axis=0) for patient in patients], dtype=float)


def _add_adjusted_p(rows: list[Result]) -> None:
    """Adds `p_holm` to every difference: Holm over the sources compared in one cohort, region and metric.

    Null for the controls: counted as hypotheses they would cost the other sources power.
    """
    families: dict[tuple[str, str, str], list[Result]] = {}
    for row in rows:
        for cohort, regions in row["scores"].items():
            for region, metrics in regions.items():
                for metric, summary in metrics.items():
                    if summary["difference"] is None:
                        continue
                    summary["difference"]["p_holm"] = None
                    if row["kind"] not in CONTROLS:
                        families.setdefault((cohort, region, metric), []).append(summary["difference"])
    for family in families.values():
        for difference, p in zip(family, holm([difference["p"] for difference in family]), strict=True):
            difference["p_holm"] = p
