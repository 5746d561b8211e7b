"""The training section: cost (Table 2), losses, and the networks (the paper's figure 2)."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from vesselgan.core.errors import DataError
from vesselgan.formats.run_dir import ARCHITECTURE
from vesselgan.report import charts, cost
from vesselgan.report.markup import Section, counted, csv_text, figure, markdown, not_run, panels
from vesselgan.report.runs import Run

PANELS = (
    ("Losses", {"loss/critic": "critic, with penalty", "loss/generator": "generator"}),
    ("Critic", {"loss/wasserstein": "Wasserstein estimate", "loss/gradient_penalty": "gradient penalty"}),
)
NORMS = {"BatchNorm3d": "batch norm, ReLU", "GroupNorm3d": "group norm, ReLU", "InstanceNorm3d": "instance norm"}
"""Layers that are drawn in the box of the layer before them -> their text."""
BOX, GAP, TALLEST = 136, 26, 170
FIGURE_HEIGHT = TALLEST + 112


def section(runs: Sequence[Run]) -> Section:
    rows = cost.rows(runs)
    body = [cost.section(runs)]
    files: dict[str, str | bytes] = {
        "table-2.md": f"{markdown(cost.COLUMNS, rows)}\n\n{cost.NOTE}\n",
        "table-2.csv": csv_text(cost.COLUMNS, rows),
    }
    if not runs:
        body.append(not_run("losses and figure 2: no run directory was given (runs=[DIR])"))
    titles: dict[str, str] = {}
    for run in runs:
        body += [f"<h3>{escape(run.title)}</h3>", _losses(run)]
        networks = _networks(run)
        body.append(networks if networks not in titles else f"<p>The networks are those of {titles[networks]}.</p>")
        titles.setdefault(networks, escape(run.title))
        if run.architecture:
            files[f"figure-2-{len(titles)}.csv"] = _layers_csv(run.architecture)
    return Section("Training and networks", "\n".join(body), files)


def _losses(run: Run) -> str:
    if not len(run.steps):
        return not_run("losses: this run has logged nothing yet")
    plots = []
    for title, names in PANELS:
        series = [charts.Series(text, run.steps, run.scalars[n]) for n, text in names.items() if n in run.scalars]
        chart = charts.line_chart(series, x_label="generator step", y_label="value", title=title) if series else ""
        plots.append((title, chart or '<p class="notrun">not logged</p>'))
    details = ["finished" if run.finished is not None else "not finished"]
    if "time/step_ms" in run.scalars:
        details.append(f"{np.nanmedian(run.scalars['time/step_ms']):.0f} ms each")
    for network in ("critic", "generator"):
        total = float(np.nanmax(run.scalars.get(f"amp/{network}_skipped_total", np.zeros(1))))
        details += [f"{counted(int(total), f'{network} step')} skipped"] if total > 0 else []
    return figure(
        f"Losses over {int(run.steps[-1]):,} generator steps ({', '.join(details)})",
        panels(plots),
        "Faint: as logged; strong: running mean.",
        how_to_read="a GAN's losses do not fall like a classifier's. The Wasserstein estimate should rise quickly, "
        "then shrink slowly and stay positive while the penalty stays small. If it drifts off to one side, training "
        "has failed.",
    )


def _networks(run: Run) -> str:
    if not run.architecture:
        return not_run("figure 2: the run directory does not describe its networks")
    diagrams = []
    try:
        for name, network in run.architecture.items():
            title = f"{name.capitalize()}, {network['parameters']:,} parameters"
            diagrams.append((title, _diagram(network, title)))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{run.folder / ARCHITECTURE}: not readable ({error!r}); remove it") from error
    return figure(
        "Figure 2, the networks",
        panels(diagrams, grid="one"),
        "Each box is a layer's output, with its channels and voxels above and its operations below. Height: voxels "
        "along X; shade: channels.",
    )


def layers_of(network: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers in the order of the calls, each with the normalisation and activation after it."""
    layers: list[dict[str, Any]] = []
    for layer in network["layers"]:
        if layers and (layer["kind"] in NORMS or layer["kind"] == "LeakyReLU"):
            layers[-1]["after"].append(NORMS.get(layer["kind"], "leaky ReLU"))
            layers[-1]["parameters"] += layer["parameters"]
            layers[-1]["shape"] = layer["shape"]
        else:
            layers.append({**layer, "after": []})
    return layers


def operations(layer: dict[str, Any]) -> list[str]:
    """The operations of a layer as texts."""
    if layer["kind"] == "Linear":
        return ["linear", *layer["after"]]
    kernel = "×".join(map(str, layer["kernel"]))
    upsampling = "2× up, " if layer["kind"].startswith("Upsample") else ""
    stride = f", stride {layer['stride'][0]}" if layer["stride"][0] > 1 else ""
    after = ["spectral norm"] * layer["is_spectral"] + (layer["after"] or ["tanh"])
    return [f"{upsampling}conv {kernel}{stride}", *after]


def _diagram(network: dict[str, Any], title: str) -> str:
    """Boxes from left to right, joined by arrows."""
    layers = layers_of(network)
    shapes = [network["input"], *(layer["shape"] for layer in layers)]
    largest = max(shape[1] for shape in shapes if len(shape) > 1)
    max_channels = max(shape[0] for shape in shapes if len(shape) > 1)
    step = BOX + GAP
    marks = []
    for i, shape in enumerate(shapes):
        left, middle = GAP / 2 + i * step, TALLEST / 2 + 22
        height = max(14.0, TALLEST * shape[1] / largest) if len(shape) > 1 else 14.0
        shade = 0.18 + 0.62 * (np.log2(shape[0]) / max(np.log2(max_channels), 1.0) if len(shape) > 1 else 0.0)
        marks.append(
            f'<rect class="layer" x="{left + 24:.1f}" y="{middle - height / 2:.1f}" width="{BOX - 48}" '
            f'height="{height:.1f}" rx="4" style="fill-opacity:{shade:.2f}"/>'
        )
        size = "×".join(map(str, shape[1:]))
        marks.append(_text(left + BOX / 2, 14, f"{shape[0]:,}" + (f" · {size}" if size else ""), "name"))
        lines = ["latent" if len(shape) == 1 else "image and label"] if i == 0 else operations(layers[i - 1])
        marks += [_text(left + BOX / 2, TALLEST + 44 + 16 * row, text, "") for row, text in enumerate(lines)]
        if i:
            count = f"{layers[i - 1]['parameters']:,} parameters"
            marks.append(_text(left + BOX / 2, FIGURE_HEIGHT - 8, count, "name"))
            end = left + 19
            marks.append(f'<path class="arrow" d="M{left - GAP + 6:.1f} {middle}L{end:.1f} {middle}"/>')
            marks.append(
                f'<path class="arrow" d="M{end - 5:.1f} {middle - 4}L{end:.1f} {middle}L{end - 5:.1f} {middle + 4}"/>'
            )
    view = f"0 0 {step * len(shapes)} {FIGURE_HEIGHT}"
    return (
        f'<div class="chart"><svg viewBox="{view}" role="img" aria-label="{escape(title)}">{"".join(marks)}</svg></div>'
    )


def _text(x: float, y: float, text: str, text_class: str) -> str:
    return f'<text class="{text_class}" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _layers_csv(architecture: dict[str, Any]) -> str:
    rows = [
        [name, number, " ".join(operations(layer)), " x ".join(map(str, layer["shape"])), layer["parameters"]]
        for name, network in architecture.items()
        for number, layer in enumerate(layers_of(network), 1)
    ]
    return csv_text(["network", "layer", "operation", "output", "parameters"], rows)
