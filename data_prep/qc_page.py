"""qc.html: one page per cohort for the eyes, the most suspicious subject first. Offline, light and dark.

Every text is escaped; pictures are inline; the page fetches nothing. Subjects bear the names that the cohort writes
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
from data_prep.qc_results import CohortReport, Finding, by
from vesselgan.config.schema import PreparedData
from vesselgan.core.atomic_io import describe, write_text
from vesselgan.core.errors import ResourceError
from vesselgan.core.version import __version__
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
class Entry:
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
    facts: dict[str, str]
    look: Preview | None
    """None where the volumes could not be read."""


def write(data: PreparedData, checked: CohortReport, assigned: dict[str, str]) -> Path:
    """Write <cohort_dir>/qc.html; `assigned`: subject -> split, empty where the cohort could not be divided."""
    apart = qc.reasons([_numbers(finding) for finding in checked.findings])
    entries = [
        _entry(finding, found, assigned.get(finding.subject))
        for finding, found in zip(checked.findings, apart, strict=True)
    ]
    path = Path(data.cohort_dir) / PAGE
    try:
        write_text(path, page(data.name, entries, checked.warnings))
    except OSError as error:
        raise ResourceError(f"{path}: {describe(error)}; go without the page (qc=false), or make room") from error
    return path


def page(cohort: str, entries: Sequence[Entry], warnings: Sequence[str]) -> str:
    """The whole page as HTML, entries by falling suspicion."""
    ranked = sorted(entries, key=lambda entry: (-entry.suspicion, entry.subject))
    counts = {verdict: sum(entry.verdict == verdict for entry in entries) for verdict in ("ok", "warning", "UNUSABLE")}
    title, who = f"Quality of cohort {cohort}", "1 subject" if len(entries) == 1 else f"{len(entries)} subjects"
    articles = "\n".join(_article(entry) for entry in ranked)
    said = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    body = f"""<header>
<h1>{escape(title)}</h1>
<p>{who}: {counts["ok"]} ok, {counts["warning"]} with warnings, {counts["UNUSABLE"]} unusable. The
most suspicious come first. Maximum-intensity projections, windowed to the limits that become 0 and 255; outlined are
the <b class="label">vessel label</b> and the <b class="mask">brain mask</b>. Histograms between those limits: non-zero
voxels (bars) and <b class="label">vessel voxels</b> (line), each to its own height; heights are square roots.</p>
{f'<ul class="why">{said}</ul>' if said else ""}
</header>
<main>
{articles}
</main>
<footer>vesselgan {escape(__version__)}, {datetime.now(UTC):%d %B %Y, %H:%M} UTC. Patients' volumes are on this page: it
belongs where they belong.</footer>"""
    return html_page.document(title, RULES, body)


def _numbers(finding: Finding) -> dict[str, float | None]:
    """What subjects are compared by."""
    look, header = finding.look, finding.header
    return {
        "vessel share": finding.vessel_share,
        "vessel contrast": look and look.contrast,
        "brightness": look and look.brightness,
        "voxel volume (mm3)": header and float(np.prod(header.spacing_mm)),
        "number of voxels": header and float(np.prod(header.shape)),
    }


def _entry(finding: Finding, apart: list[tuple[float, str]], split: str | None) -> Entry:
    look, header = finding.look, finding.header
    found = sorted(apart, reverse=True)
    if look is not None and look.contrast is not None and look.contrast < qc.MIN_CONTRAST:
        text = f"vessels are hardly brighter than what is around them ({look.contrast:.2f} times): is it the label?"
        found.insert(0, (2 * qc.FAR_OFF, text))
    facts = {"voxels": by(header.shape), "mm": " x ".join(f"{s:.3g}" for s in header.spacing_mm)} if header else {}
    facts |= {"axes": header.orientation} if header else {}
    shares = {"vessel": finding.vessel_share, "in mask": finding.mask_share}
    shares |= {"clipped vessel": finding.clipped_vessel_share}
    facts |= {name: f"{100 * share:.3g} %" for name, share in shares.items() if share is not None}
    facts |= {"vessel contrast": f"{look.contrast:.2f}"} if look and look.contrast is not None else {}
    facts |= {"limits": f"{finding.limits[0]:.4g} to {finding.limits[1]:.4g}"} if finding.limits else {}
    return Entry(
        subject=finding.subject,
        verdict=finding.verdict,
        split=split,
        faults=tuple(without_paths(fault, finding.files) for fault in finding.faults),
        warnings=tuple(without_paths(warning, finding.files) for warning in finding.warnings),
        reasons=tuple(text for _, text in found),
        suspicion=100.0 * len(finding.faults) + 2.0 * len(finding.warnings) + sum(min(d, 20.0) for d, _ in found),
        facts=facts,
        look=look,
    )


def _article(entry: Entry) -> str:
    why = [f'<li class="fault">{escape(fault)}</li>' for fault in entry.faults]
    why += [f"<li>{escape(text)}</li>" for text in (*entry.warnings, *entry.reasons)]
    facts = "".join(f"<div><dt>{escape(k)}</dt> <dd>{escape(v)}</dd></div>" for k, v in entry.facts.items())
    pictures = "" if entry.look is None else _pictures(entry.look)
    split = f'<span class="soft">{escape(entry.split)}</span>' if entry.split else ""
    return f"""<article>
<div class="head"><h2>{escape(entry.subject)}</h2>
<span class="verdict {escape(entry.verdict.lower())}">{escape(entry.verdict)}</span>{split}</div>
{f'<ul class="why">{"".join(why)}</ul>' if why else ""}
{f'<dl class="facts">{facts}</dl>' if facts else ""}
<div class="row">{pictures}</div>
</article>"""


def _pictures(look: Preview) -> str:
    figures = [
        f'<figure><img alt="projection {name}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{name}</figcaption></figure>"
        for name, png in zip(AXES, look.pngs, strict=True)
    ]
    return "".join(figures) + f"<figure>{_chart(look)}<figcaption>intensities</figcaption></figure>"


def _chart(look: Preview) -> str:
    """The histogram as SVG. Its first and last bins hold what lies at the limits and would flatten the rest; square
    roots, because vessels are few."""
    width, height = 220.0, 180.0
    step = width / len(look.histogram)
    bars = "".join(
        f'<rect class="all" x="{i * step:.1f}" y="{height - h:.1f}" width="{step - 0.6:.1f}" height="{h:.1f}"/>'
        for i, h in enumerate(_heights(look.histogram, height))
    )
    line = ""
    if look.vessel_histogram is not None:
        points = " ".join(
            f"{(i + 0.5) * step:.1f},{height - h:.1f}" for i, h in enumerate(_heights(look.vessel_histogram, height))
        )
        line = f'<polyline class="vessel" points="{points}"/>'
    axis = f'<line class="axis" x1="0" y1="{height}" x2="{width}" y2="{height}"/>'
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="histogram">{bars}{axis}{line}</svg>'


def _heights(shares: Sequence[float], height: float) -> list[float]:
    top = max(*shares[1:-1], 1e-12)
    return [(height - 4) * min(1.0, share / top) ** 0.5 for share in shares]
