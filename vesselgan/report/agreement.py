"""Do the scores of images say which GAN's patches train the better U-Net? FID and PRD-AUC against Dice and bAVD.

The paper's discussion says that they need not agree: its own numbers stand here in the same form as ours.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from scipy import stats

from vesselgan.report import charts, image_quality, paper
from vesselgan.report.markup import Part, csv_text, figure, not_run, panels, table
from vesselgan.report.runs import gan_of
from vesselgan.report.study_rows import completed
from vesselgan.report.tables import REGIONS

IMAGE = {"fid": ("FID", -1), "prd_auc": ("PRD-AUC", 1)}
"""Score -> name, and whether more (1) or less (-1) is better."""
USE = {"dice": ("Dice", 1), "bavd_voxels": ("bAVD", -1)}
LEAST_MODELS = 3  # two models agree or not, which says nothing
HEADS = ("whose", "models", *(f"{image} and {use}" for image, _ in IMAGE.values() for use, _ in USE.values()))
CSV_HEADS = ("whose", "model", *IMAGE, *USE)


@dataclass(frozen=True)
class Model:
    name: str
    scores: dict[str, float]
    """By the keys of IMAGE and USE."""


@dataclass(frozen=True)
class Family:
    """Models that were scored alike."""

    title: str
    models: list[Model]


def kendall(models: Sequence[Model], image: str, use: str) -> float | None:
    """Kendall's tau-b between the two rankings, 1 where the better image score goes with the better U-Net.

    None for fewer than LEAST_MODELS, or where one of the scores is the same for all.
    """
    if len(models) < LEAST_MODELS:
        return None
    sides = [
        [sign * model.scores[key] for model in models] for key, sign in ((image, IMAGE[image][1]), (use, USE[use][1]))
    ]
    if any(len(set(side)) == 1 for side in sides):
        return None
    return float(stats.kendalltau(*sides).statistic)


def families(results: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> list[Family]:
    """Ours, by how the images were scored, the test cohort and the region; the paper's last.

    Joined are scores of the images and of the U-Nets of one GAN: the same run and weights, not the same variant.
    """
    found = []
    for group in image_quality.groups(results):
        by_gan = {gan_of(result.get("synthetic")): result for result in group.results}
        marked = "" if group.is_comparable else "; random features, not comparable"
        for comparison in comparisons:
            home = comparison["cohorts"][0]  # whose patients the GANs learned from
            if any(result["cohort"] != home for result in group.results):
                continue
            for cohort, (region, name) in itertools.product(comparison["cohorts"], REGIONS.items()):
                models = _models(comparison, cohort, region, by_gan)
                images = "" if cohort == home else f", images of {home}"
                if models:
                    found.append(Family(f"{cohort}, {name.lower()}{images}{marked}", models))
    for region, name in REGIONS.items():
        found.append(Family(f"the paper, {paper.COHORTS[0]}, {name.lower()}", _paper_models(region)))
    return found


def _models(
    comparison: dict[str, Any], cohort: str, region: str, by_gan: dict[tuple[str, str] | None, dict[str, Any]]
) -> list[Model]:
    models, rows = [], completed(comparison)["rows"]
    for row in rows:
        key = gan_of(row.get("gan"))
        image = by_gan.get(key) if key else None
        facts = row["scores"].get(cohort, {}).get(region, {})
        if row["kind"] == "synthetic" and image is not None and all(key in facts for key in USE):
            scores = {key: float(image["scores"][key]["mean"]) for key in IMAGE}
            models.append(Model(_name(row, rows), scores | {key: float(facts[key]["mean"]) for key in USE}))
    return models


def _name(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The paper's name of the model; with the row's own where several GANs would bear it."""
    title = _title(row)
    is_shared = sum(other["kind"] == row["kind"] and _title(other) == title for other in rows) > 1
    return f"{title} ({row['name']})" if is_shared and title != row["name"] else title


def _title(row: dict[str, Any]) -> str:
    return paper.VARIANTS.get(row.get("variant") or "", row["name"])


def _paper_models(region: str) -> list[Model]:
    models = []
    for name, (fid, auc) in paper.TABLE_1.items():
        found = paper.TABLE_3[region][name]
        scores = {"fid": fid, "prd_auc": auc, "dice": found.pegasus_dice.mean, "bavd_voxels": found.pegasus_bavd.mean}
        models.append(Model(name, scores))
    return models


def section(results: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> Part:
    found = families(results, comparisons)
    lines = [_line(family) for family in found]
    caption = (
        "<b>Kendall's tau</b> between the ranking of the models by their images and the ranking by the U-Nets that "
        "learned from them: 1 where both agree, 0 where they have nothing to do with each other, -1 where they are "
        f"opposed. Not defined below {LEAST_MODELS} models."
    )
    body = [table(caption, HEADS, lines, classes="wide")]
    if len(found) == len(REGIONS):
        body.append(not_run("ours need image scores and segmentation scores of the same GANs"))
    body += [_plots(family) for family in found if len(family.models) > 1]
    numbers = [
        [family.title, model.name, *(model.scores[key] for key in (*IMAGE, *USE))]
        for family in found
        for model in family.models
    ]
    return Part(
        "Image quality against segmentation",
        "\n".join(body),
        {"image-against-segmentation.csv": csv_text(CSV_HEADS, numbers)},
    )


def _line(family: Family) -> list[str]:
    taus = [kendall(family.models, image, use) for image in IMAGE for use in USE]
    return [family.title, str(len(family.models)), *("not defined" if t is None else f"{t:.2f}" for t in taus)]


def _plots(family: Family) -> str:
    shown = []
    for image, (x_label, _) in IMAGE.items():
        for use, (y_label, _) in USE.items():
            points = [charts.Point(model.name, model.scores[image], model.scores[use]) for model in family.models]
            title = f"{y_label} against {x_label}"
            chart = charts.scatter(points, x_label=x_label, y_label=y_label, title=f"{title}, {family.title}")
            shown.append((title, chart))
    return figure(
        f"Image scores against segmentation, {escape(family.title)}",
        panels(shown, grid="small four"),
        "A dot per model. FID and bAVD: less is better; PRD-AUC and Dice: more.",
    )
