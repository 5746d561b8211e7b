"""Do image scores rank the GANs as the U-Nets trained on their patches do? FID and PRD-AUC against Dice and bAVD.

The paper discusses that they need not agree; its own numbers stand beside ours.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from vesselgan.report import paper, table_1
from vesselgan.report.blocks import Block, Figure, Panel, Section, Table, csv_text, text_frame
from vesselgan.report.runs import Made, gan_of
from vesselgan.report.table_3_rows import in_paper_order, model_of
from vesselgan.report.tables import REGIONS
from vesselgan.viz import plots

IMAGE_SCORES = {"fid": ("FID", -1), "prd_auc": ("PRD-AUC", 1)}
"""Score -> name, and whether more (1) or less (-1) is better."""
UNET_SCORES = {"dice": ("Dice", 1), "bavd_voxels": ("bAVD", -1)}
MIN_MODELS = 3
PAIRS = list(itertools.product(IMAGE_SCORES, UNET_SCORES))
COLUMNS = ("scores of", "models", *(f"{IMAGE_SCORES[i][0]} and {UNET_SCORES[u][0]}" for i, u in PAIRS))
FRAME_COLUMNS = ("scores of", "model", *IMAGE_SCORES, *UNET_SCORES)
CAPTION = (
    "between the ranking of the models by image score and by the U-Nets trained on their patches: 1 is equal, 0 "
    f"unrelated, -1 reversed. A model counts once, with its best U-Net by Dice. Not defined below {MIN_MODELS} models."
)

Model = tuple[str, str, float, float, float, float]
"""Under FRAME_COLUMNS."""


def kendall(models: pd.DataFrame, image_score: str, unet_score: str) -> float | None:
    """Kendall's tau-b between the two rankings, 1 if the better image score goes with the better U-Net.

    None below MIN_MODELS models, or if one of the scores is the same for all.
    """
    images = IMAGE_SCORES[image_score][1] * models[image_score]
    unets = UNET_SCORES[unet_score][1] * models[unet_score]
    if len(models) < MIN_MODELS or images.nunique() == 1 or unets.nunique() == 1:
        return None
    return float(stats.kendalltau(images, unets).statistic)


def all_models(results: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Returns our models by image scoring, test cohort and region, then the paper's, under FRAME_COLUMNS.

    Image and U-Net scores are joined by what made the patches, not by its variant. Every image scoring and every
    comparison is a set of its own.
    """
    models: list[Model] = []
    for number, group in enumerate(groups := table_1.groups(results), 1):
        by_gan = {gan_of(result.get("synthetic")): result for result in group.results}
        suffix = f"; image scores of table {number}, {group.results[0]['n']} patches" if len(groups) > 1 else ""
        suffix += "" if group.is_comparable else "; random features, not comparable"
        for comparison in comparisons:
            home = comparison["cohorts"][0]  # the GANs' training patients
            if any(result["cohort"] != home for result in group.results):
                continue
            of_study = f"{comparison['name']}: " if len(comparisons) > 1 else ""
            for cohort, (region, name) in itertools.product(comparison["cohorts"], REGIONS.items()):
                images = "" if cohort == home else f", images of {home}"
                title = f"{of_study}{cohort}, {name.lower()}{images}{suffix}"
                models += _models(title, comparison, cohort, region, by_gan)
    models += [model for region in REGIONS for model in _paper_models(region)]
    return pd.DataFrame(models, columns=list(FRAME_COLUMNS))


def _models(
    title: str,
    comparison: dict[str, Any],
    cohort: str,
    region: str,
    by_gan: dict[Made | None, dict[str, Any]],
) -> Iterable[Model]:
    """One of each GAN: of several U-Nets the one of the highest Dice."""
    rows = in_paper_order(comparison)["rows"]
    models: dict[Made | None, Model] = {}
    for row in rows:
        gan = gan_of(row.get("gan"))
        image = by_gan.get(gan) if gan else None
        metrics = row["scores"].get(cohort, {}).get(region, {})
        if row["kind"] == "synthetic" and image is not None and all(score in metrics for score in UNET_SCORES):
            fid, auc = (float(image["scores"][score]["mean"]) for score in IMAGE_SCORES)
            dice, bavd = (float(metrics[score]["mean"]) for score in UNET_SCORES)
            if gan not in models or dice > models[gan][4]:
                models[gan] = title, _name(row, rows), fid, auc, dice, bavd
    return models.values()


def _name(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The paper's name of the model, with the row's own if several GANs share it."""
    title = model_of(row)
    is_shared = sum(other["kind"] == row["kind"] and model_of(other) == title for other in rows) > 1
    return f"{title} ({row['name']})" if is_shared and title != row["name"] else title


def _paper_models(region: str) -> Iterator[Model]:
    title = f"the paper, {paper.COHORTS[0]}, {REGIONS[region].lower()}"
    for name, (fid, auc) in paper.TABLE_1.items():
        unet = paper.TABLE_3[region][name]
        yield title, name, fid, auc, unet.pegasus_dice.mean, unet.pegasus_bavd.mean


def section(results: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> Section | None:
    """None if fewer than MIN_MODELS generators have both image scores and segmentation scores."""
    frame = all_models(results, comparisons)
    sets = [(str(title), models) for title, models in frame.groupby("scores of", sort=False)]
    if max((len(models) for _, models in sets[: -len(REGIONS)]), default=0) < MIN_MODELS:
        return None
    rows = []
    for title, models in sets:
        taus = [kendall(models, *pair) for pair in PAIRS]
        rows.append([title, str(len(models)), *("not defined" if t is None else f"{t:.2f}" for t in taus)])
    blocks: list[Block] = [Table(text_frame(rows, COLUMNS), "Kendall's tau", CAPTION, style="wide")]
    blocks += [_plots(title, models) for title, models in sets if len(models) > 1]
    return Section("Image quality against segmentation", blocks, {"image-against-segmentation.csv": csv_text(frame)})


def _plots(models_title: str, models: pd.DataFrame) -> Figure:
    panels = []
    for image_score, unet_score in PAIRS:
        x_label, y_label = IMAGE_SCORES[image_score][0], UNET_SCORES[unet_score][0]
        points = list(zip(models.model, models[image_score], models[unet_score], strict=True))
        title = f"{y_label} against {x_label}"
        panels.append(Panel([plots.scatter(points, x_label=x_label, y_label=y_label, title=title)]))
    return Figure(
        f"Image scores against segmentation, {models_title}",
        panels,
        "One dot per model. Lower FID and bAVD are better, higher PRD-AUC and Dice.",
        grid="small four",
    )
