"""qc.html: one page of projections and histograms per cohort, the most suspicious subject first.

Every text is escaped; images are inline; the page fetches nothing. Subjects bear the names that the cohort writes
(pseudonyms, where asked for), and faults stand without the paths of files.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import numpy as np

from data_prep import qc
from data_prep.layouts import without_paths
from data_prep.qc import AXES, Preview
from data_prep.qc_results import CheckResult, CohortReport
from vesselgan.config.schema import PreparedData
from vesselgan.core.atomic_io import describe, write_text
from vesselgan.core.errors import ResourceError
from vesselgan.core.version import __version__
from vesselgan.formats.nifti import format_sizes
from vesselgan.viz import html_page

PAGE = "qc.html"
RULES = """
main, header, footer { max-width: 1210px; }
h2 { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere; }
article { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px;
  margin: 18px 0; break-inside: avoid; }
.head { display: flex; gap: 12px; align-items: baseline; flex-wrap: wrap; }
.verdict { font-weight: 650; font-size: 0.86rem; }
.verdict.ok { color: var(--good); } .verdict.warning { color: var(--warn); } .verdict.unusable { color: var(--bad); }
.why { margin: 6px 0 0; padding-left: 1.2em; }
.why li { overflow-wrap: anywhere; } .why .fault { color: var(--bad); }
.facts { display: flex; flex-wrap: wrap; gap: 0 18px; margin: 4px 0 0; font-size: 0.86rem;
  font-variant-numeric: tabular-nums; }
.facts dt, .facts dd { display: inline; margin: 0; } .facts dt, figcaption { color: var(--soft); }
.row { display: flex; gap: 14px; flex-wrap: wrap; align-items: flex-start; margin-top: 10px; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 5px; background: #0d1017; }
figcaption { font-size: 0.8rem; margin-top: 3px; }
svg { display: block; width: 220px; height: 180px; }
svg .all { fill: var(--bar); } svg .vessel { fill: none; stroke: var(--vessel); stroke-width: 1.6; }
svg .axis { stroke: var(--rule); }
.label { color: var(--vessel); } .mask { color: var(--mask); }
"""


@dataclass(frozen=True)
class PageEntry:
    """One subject on the page."""

    subject: str
    verdict: str
    """`ok`, `warning` or `UNUSABLE`."""
    split: str | None
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    reasons: tuple[str, ...]
    """What sets it apart from the others."""
    suspicion: float
    measures: dict[str, str]
    preview: Preview | None
    """None where the volumes could not be read."""


def write_page(data: PreparedData, report: CohortReport, assigned: dict[str, str]) -> Path:
    """Write <cohort_dir>/qc.html; `assigned`: subject -> split, empty where the cohort could not be divided."""
    outliers = qc.find_outliers([_compared_measures(result) for result in report.results])
    entries = [
        _page_entry(result, reasons, assigned.get(result.subject))
        for result, reasons in zip(report.results, outliers, strict=True)
    ]
    path = Path(data.cohort_dir) / PAGE
    try:
        write_text(path, page_html(data.name, entries, report.warnings))
    except OSError as error:
        raise ResourceError(f"{path}: {describe(error)}; go without the page (qc=false), or make room") from error
    return path


def page_html(cohort: str, entries: Sequence[PageEntry], warnings: Sequence[str]) -> str:
    """The whole page as HTML, entries by falling suspicion."""
    ranked = sorted(entries, key=lambda entry: (-entry.suspicion, entry.subject))
    counts = {verdict: sum(entry.verdict == verdict for entry in entries) for verdict in ("ok", "warning", "UNUSABLE")}
    title = f"Quality of cohort {cohort}"
    subjects = "1 subject" if len(entries) == 1 else f"{len(entries)} subjects"
    articles = "\n".join(_article(entry) for entry in ranked)
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    body = f"""<header>
<h1>{escape(title)}</h1>
<p>{subjects}: {counts["ok"]} ok, {counts["warning"]} with warnings, {counts["UNUSABLE"]} unusable. The
most suspicious come first. Maximum-intensity projections, windowed to the limits that become 0 and 255; outlined are
the <b class="label">vessel label</b> and the <b class="mask">brain mask</b>. Histograms between those limits: non-zero
voxels (bars) and <b class="label">vessel voxels</b> (line), each to its own height; heights are square roots.</p>
{f'<ul class="why">{items}</ul>' if items else ""}
</header>
<main>
{articles}
</main>
<footer>vesselgan {escape(__version__)}, {datetime.now(UTC):%d %B %Y, %H:%M} UTC. Patients' volumes are on this page: it
belongs where they belong.</footer>"""
    return html_page.document(title, RULES, body)


def _compared_measures(result: CheckResult) -> dict[str, float | None]:
    """What subjects are compared by."""
    preview, header = result.preview, result.header
    return {
        "vessel share": result.vessel_share,
        "vessel contrast": preview.contrast if preview else None,
        "brightness": preview.brightness if preview else None,
        "voxel volume (mm3)": float(np.prod(header.spacing_mm)) if header else None,
        "number of voxels": float(np.prod(header.shape)) if header else None,
    }


def _page_entry(result: CheckResult, outliers: list[tuple[float, str]], split: str | None) -> PageEntry:
    preview = result.preview
    reasons = sorted(outliers, reverse=True)
    if preview is not None and preview.contrast is not None and preview.contrast < qc.MIN_CONTRAST:
        text = f"vessels are hardly brighter than what is around them ({preview.contrast:.2f} times): is it the label?"
        reasons.insert(0, (2 * qc.OUTLIER_DEVIATIONS, text))
    suspicion = 100.0 * len(result.faults) + 2.0 * len(result.warnings)
    return PageEntry(
        subject=result.subject,
        verdict=result.verdict,
        split=split,
        faults=tuple(without_paths(fault, result.files) for fault in result.faults),
        warnings=tuple(without_paths(warning, result.files) for warning in result.warnings),
        reasons=tuple(text for _, text in reasons),
        suspicion=suspicion + sum(min(deviations, 20.0) for deviations, _ in reasons),
        measures=_shown_measures(result),
        preview=preview,
    )


def _shown_measures(result: CheckResult) -> dict[str, str]:
    measures: dict[str, str] = {}
    if (header := result.header) is not None:
        spacing = " x ".join(f"{s:.3g}" for s in header.spacing_mm)
        measures = {"voxels": format_sizes(header.shape), "mm": spacing, "axes": header.orientation}
    shares = {"vessel": result.vessel_share, "in mask": result.mask_share}
    shares |= {"clipped vessel": result.clipped_vessel_share}
    measures |= {name: f"{100 * share:.3g} %" for name, share in shares.items() if share is not None}
    if result.preview is not None and result.preview.contrast is not None:
        measures["vessel contrast"] = f"{result.preview.contrast:.2f}"
    if result.limits is not None:
        measures["limits"] = f"{result.limits[0]:.4g} to {result.limits[1]:.4g}"
    return measures


def _article(entry: PageEntry) -> str:
    reasons = [f'<li class="fault">{escape(fault)}</li>' for fault in entry.faults]
    reasons += [f"<li>{escape(text)}</li>" for text in (*entry.warnings, *entry.reasons)]
    measures = "".join(f"<div><dt>{escape(k)}</dt> <dd>{escape(v)}</dd></div>" for k, v in entry.measures.items())
    figures = "" if entry.preview is None else _figures(entry.preview)
    split = f'<span class="soft">{escape(entry.split)}</span>' if entry.split else ""
    return f"""<article>
<div class="head"><h2>{escape(entry.subject)}</h2>
<span class="verdict {escape(entry.verdict.lower())}">{escape(entry.verdict)}</span>{split}</div>
{f'<ul class="why">{"".join(reasons)}</ul>' if reasons else ""}
{f'<dl class="facts">{measures}</dl>' if measures else ""}
<div class="row">{figures}</div>
</article>"""


def _figures(preview: Preview) -> str:
    figures = [
        f'<figure><img alt="projection {name}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{name}</figcaption></figure>"
        for name, png in zip(AXES, preview.pngs, strict=True)
    ]
    return "".join(figures) + f"<figure>{_histogram_svg(preview)}<figcaption>intensities</figcaption></figure>"


def _histogram_svg(preview: Preview) -> str:
    """The first and last bins hold what lies at the limits and would flatten the rest, so they do not set the scale;
    square roots, because vessels are few."""
    width, height = 220.0, 180.0
    step = width / len(preview.histogram)
    bars = "".join(
        f'<rect class="all" x="{i * step:.1f}" y="{height - h:.1f}" width="{step - 0.6:.1f}" height="{h:.1f}"/>'
        for i, h in enumerate(_bar_heights(preview.histogram, height))
    )
    line = ""
    if preview.vessel_histogram is not None:
        heights = _bar_heights(preview.vessel_histogram, height)
        points = " ".join(f"{(i + 0.5) * step:.1f},{height - h:.1f}" for i, h in enumerate(heights))
        line = f'<polyline class="vessel" points="{points}"/>'
    axis = f'<line class="axis" x1="0" y1="{height}" x2="{width}" y2="{height}"/>'
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="histogram">{bars}{axis}{line}</svg>'


def _bar_heights(shares: Sequence[float], height: float) -> list[float]:
    top = max(*shares[1:-1], 1e-12)
    return [(height - 4) * min(1.0, share / top) ** 0.5 for share in shares]
