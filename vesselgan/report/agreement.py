"""Do image scores rank the GANs as the U-Nets trained on their patches do? FID and PRD-AUC against Dice and bAVD.

The paper discusses that they need not agree; its own numbers stand beside ours.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from scipy import stats

from vesselgan.report import charts, image_quality, paper
from vesselgan.report.markup import Section, csv_text, figure, not_run, panels, table
from vesselgan.report.runs import gan_of
from vesselgan.report.study_rows import completed
from vesselgan.report.tables import REGIONS

IMAGE_SCORES = {"fid": ("FID", -1), "prd_auc": ("PRD-AUC", 1)}
"""Score -> name, and whether more (1) or less (-1) is better."""
UNET_SCORES = {"dice": ("Dice", 1), "bavd_voxels": ("bAVD", -1)}
MIN_MODELS = 3
PAIRS = list(itertools.product(IMAGE_SCORES, UNET_SCORES))
COLUMNS = ("scores of", "models", *(f"{IMAGE_SCORES[i][0]} and {UNET_SCORES[u][0]}" for i, u in PAIRS))
CSV_COLUMNS = ("scores of", "model", *IMAGE_SCORES, *UNET_SCORES)


@dataclass(frozen=True)
class Model:
    name: str
    scores: dict[str, float]
    """By the keys of IMAGE_SCORES and UNET_SCORES."""


@dataclass(frozen=True)
class ModelSet:
    """Models whose scores are comparable."""

    title: str
    models: list[Model]


def kendall(models: Sequence[Model], image_score: str, unet_score: str) -> float | None:
    """Kendall's tau-b between the two rankings, 1 if the better image score goes with the better U-Net.

    None below MIN_MODELS models, or if one of the scores is the same for all.
    """
    if len(models) < MIN_MODELS:
        return None
    signs = {image_score: IMAGE_SCORES[image_score][1], unet_score: UNET_SCORES[unet_score][1]}
    rankings = [[sign * model.scores[score] for model in models] for score, sign in signs.items()]
    if any(len(set(ranking)) == 1 for ranking in rankings):
        return None
    return float(stats.kendalltau(*rankings).statistic)


def model_sets(results: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> list[ModelSet]:
    """Returns our models by image scoring, test cohort and region, then the paper's.

    Image and U-Net scores are joined by the GAN's run and weights, not by its variant.
    """
    sets = []
    for group in image_quality.groups(results):
        by_gan = {gan_of(result.get("synthetic")): result for result in group.results}
        suffix = "" if group.is_comparable else "; random features, not comparable"
        for comparison in comparisons:
            home = comparison["cohorts"][0]  # the GANs' training patients
            if any(result["cohort"] != home for result in group.results):
                continue
            for cohort, (region, name) in itertools.product(comparison["cohorts"], REGIONS.items()):
                images = "" if cohort == home else f", images of {home}"
                if models := _models(comparison, cohort, region, by_gan):
                    sets.append(ModelSet(f"{cohort}, {name.lower()}{images}{suffix}", models))
    return sets + [
        ModelSet(f"the paper, {paper.COHORTS[0]}, {name.lower()}", _paper_models(region))
        for region, name in REGIONS.items()
    ]


def _models(
    comparison: dict[str, Any], cohort: str, region: str, by_gan: dict[tuple[str, str] | None, dict[str, Any]]
) -> list[Model]:
    models, rows = [], completed(comparison)["rows"]
    for row in rows:
        gan = gan_of(row.get("gan"))
        image = by_gan.get(gan) if gan else None
        metrics = row["scores"].get(cohort, {}).get(region, {})
        if row["kind"] == "synthetic" and image is not None and all(score in metrics for score in UNET_SCORES):
            scores = {score: float(image["scores"][score]["mean"]) for score in IMAGE_SCORES}
            scores |= {score: float(metrics[score]["mean"]) for score in UNET_SCORES}
            models.append(Model(_name(row, rows), scores))
    return models


def _name(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The paper's name of the model, with the row's own if several GANs share it."""
    title = _title(row)
    is_shared = sum(other["kind"] == row["kind"] and _title(other) == title for other in rows) > 1
    return f"{title} ({row['name']})" if is_shared and title != row["name"] else title


def _title(row: dict[str, Any]) -> str:
    return str(paper.VARIANTS.get(row.get("variant") or "", row["name"]))


def _paper_models(region: str) -> list[Model]:
    models = []
    for name, (fid, auc) in paper.TABLE_1.items():
        unet = paper.TABLE_3[region][name]
        scores = {"fid": fid, "prd_auc": auc, "dice": unet.pegasus_dice.mean, "bavd_voxels": unet.pegasus_bavd.mean}
        models.append(Model(name, scores))
    return models


def section(results: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> Section:
    sets = model_sets(results, comparisons)
    rows = []
    for models in sets:
        taus = [kendall(models.models, *pair) for pair in PAIRS]
        rows.append(
            [models.title, str(len(models.models)), *("not defined" if t is None else f"{t:.2f}" for t in taus)]
        )
    caption = (
        "<b>Kendall's tau</b> between the ranking of the models by image score and by the U-Nets trained on their "
        f"patches: 1 is equal, 0 unrelated, -1 reversed. Not defined below {MIN_MODELS} models."
    )
    body = [table(caption, COLUMNS, rows, classes="wide")]
    if len(sets) == len(REGIONS):
        body.append(not_run("needs image scores and segmentation scores of the same GANs"))
    body += [_plots(models) for models in sets if len(models.models) > 1]
    numbers = [
        [models.title, model.name, *(model.scores[score] for score in (*IMAGE_SCORES, *UNET_SCORES))]
        for models in sets
        for model in models.models
    ]
    files: dict[str, str | bytes] = {"image-against-segmentation.csv": csv_text(CSV_COLUMNS, numbers)}
    return Section("Image quality against segmentation", "\n".join(body), files)


def _plots(models: ModelSet) -> str:
    plots = []
    for image_score, unet_score in PAIRS:
        x_label, y_label = IMAGE_SCORES[image_score][0], UNET_SCORES[unet_score][0]
        points = [charts.Point(m.name, m.scores[image_score], m.scores[unet_score]) for m in models.models]
        title = f"{y_label} against {x_label}"
        chart = charts.scatter(points, x_label=x_label, y_label=y_label, title=f"{title}, {models.title}")
        plots.append((title, chart))
    return figure(
        f"Image scores against segmentation, {escape(models.title)}",
        panels(plots, grid="small four"),
        "One dot per model. Lower FID and bAVD are better, higher PRD-AUC and Dice.",
    )
