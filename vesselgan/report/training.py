"""The training section: cost (Table 2), losses, and the networks (the paper's figure 2)."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from vesselgan.core.console import counted
from vesselgan.core.errors import reading
from vesselgan.formats.run_dir import ARCHITECTURE
from vesselgan.report import table_2
from vesselgan.report.blocks import (
    Block,
    Figure,
    Files,
    Heading,
    Panel,
    Section,
    Text,
    csv_text,
    markdown,
    not_run,
    numbers_csv,
)
from vesselgan.report.runs import Run
from vesselgan.viz import plots

PANELS = (
    ("Losses", {"loss/critic": "critic, with any penalty", "loss/generator": "generator"}),
    (
        "Critic",
        {
            "loss/wasserstein": "Wasserstein estimate",
            "loss/gradient_penalty": "gradient penalty",
            "loss/critic_real": "of real patches",
            "loss/critic_fake": "of made ones",
        },
    ),
)
"""Of a GAN; another generator's losses share one panel under their own names."""
HOW_TO_READ_A_CLASSIFICATION = (
    "the critic's two losses are cross-entropies: log(K + 1) where it says nothing of K classes and of what is made, "
    "near 0 where it is always right. The generator wins while that of made patches stays well above 0; its own loss "
    "falls as the critic finds in its images what was given."
)
HOW_TO_READ_A_GAN = (
    "a GAN's losses do not fall like a classifier's. The Wasserstein estimate should rise quickly, then shrink slowly "
    "and stay positive while the penalty stays small. If it drifts off to one side, training has failed."
)
HOW_TO_READ = {"loss/gradient_penalty": HOW_TO_READ_A_GAN, "loss/critic_fake": HOW_TO_READ_A_CLASSIFICATION}
"""By a loss that the run logs."""
SKIPPED = {
    "fp16": " Skipped: in fp16 a step whose gradients overflow is not applied, and the loss scale is halved; a few are "
    "normal, at the start above all.",
    "other": " Skipped: a step whose loss or gradients are not finite is not applied.",
}
NORMS = {"BatchNorm3d": "batch norm, ReLU", "GroupNorm3d": "group norm, ReLU", "InstanceNorm3d": "instance norm"}
"""Layers that are drawn in the box of the layer before them -> their text."""


def section(runs: Sequence[Run]) -> Section:
    costs = table_2.table(runs)
    blocks: list[Block] = [costs]
    files: Files = {"table-2.md": markdown([costs]), "table-2.csv": csv_text(costs.frame)}
    if not runs:
        blocks.append(not_run("losses and figure 2: no run directory was given (runs=[DIR])"))
    titles: dict[str, str] = {}
    for run in runs:
        networks = json.dumps(run.architecture)
        blocks += [Heading(run.title), *(Text(f"{text}.", "Warning:") for text in run.warnings), _losses(run)]
        if networks in titles and run.architecture:
            blocks.append(Text(f"The networks are those of {titles[networks]}."))
        else:
            blocks += _networks(run)
        titles.setdefault(networks, run.title)
        if run.architecture:
            files[f"figure-2-{len(titles)}.csv"] = _layers_csv(run.architecture)
    return Section("Training and networks", blocks, files)


def _losses(run: Run) -> Block:
    if not len(run.steps):
        return not_run("losses: this run has logged nothing yet")
    panels, is_smoothed = [], False
    known = {name for _, names in PANELS for name in names}
    others = {
        name: name.removeprefix("loss/") for name in run.scalars if name.startswith("loss/") and name not in known
    }
    for title, names in (*PANELS, ("Loss", others)):
        series = [plots.Series(text, run.steps, run.scalars[n]) for n, text in names.items() if n in run.scalars]
        if series:
            is_smoothed |= plots.is_smoothed(series)
            panels.append(Panel([plots.lines(series, x_label="generator step", y_label="value", title=title)]))
    skips = ""
    details = ["finished" if run.finished is not None else "not finished"]
    if "time/step_ms" in run.scalars:
        details.append(f"{np.nanmedian(run.scalars['time/step_ms']):.0f} ms each")
    for name, values in run.scalars.items():
        if name.startswith("amp/") and name.endswith("_skipped_total") and (total := np.nanmax(values)) > 0:
            network = name.removeprefix("amp/").removesuffix("_skipped_total")
            details.append(f"{counted(int(total), f'{network} step')} skipped")
            skips = SKIPPED["fp16" if run.setting("variant.precision") == "fp16" else "other"]
    return Figure(
        f"Losses over {int(run.steps[-1]):,} generator steps ({', '.join(details)})",
        panels,
        ("Faint: as logged; strong: running mean." if is_smoothed else "As logged.") + skips,
        how_to_read=next((text for name, text in HOW_TO_READ.items() if name in run.scalars), ""),
    )


def _networks(run: Run) -> list[Block]:
    if not run.architecture:
        # Figure 2 shows the paper's generator and critic, not a generator that is given labels.
        is_drawn = "loss/critic" in run.scalars and run.setting("variant.condition") is None
        return [not_run("figure 2: the run directory does not describe its networks")] if is_drawn else []
    with reading(run.folder / ARCHITECTURE, "remove it"):
        diagrams = [_diagram(name, network) for name, network in run.architecture.items()]
    figure = Figure(
        "Figure 2, the networks",
        [Panel([diagram], grid="diagram") for diagram in diagrams],
        "Each box is a layer's output, with its channels and voxels above and its operations below. Height: voxels "
        "along X; shade: channels.",
        grid="one",
    )
    return [figure]


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
    if "kernel" not in layer:
        return [layer["kind"].lower(), *layer["after"]]
    kernel = "×".join(map(str, layer["kernel"]))
    upsampling = "2× up, " if layer["kind"].startswith("Upsample") else ""
    stride = f", stride {layer['stride'][0]}" if layer["stride"][0] > 1 else ""
    after = ["spectral norm"] * layer["is_spectral"] + (layer["after"] or ["tanh"])
    return [f"{upsampling}conv {kernel}{stride}", *after]


def _diagram(name: str, network: dict[str, Any]) -> plots.Chart:
    layers = layers_of(network)
    shapes = [network["input"], *(layer["shape"] for layer in layers)]
    texts = [["latent" if len(shapes[0]) == 1 else "image and label"], *map(operations, layers)]
    feet = ["", *(f"{layer['parameters']:,} parameters" for layer in layers)]
    volumes = [shape for shape in shapes if len(shape) > 1]
    largest, max_channels = (max(shape[k] for shape in volumes) for k in (1, 0))
    boxes = []
    for shape, text, foot in zip(shapes, texts, feet, strict=True):
        is_volume = len(shape) > 1
        above = f"{shape[0]:,}" + (f" · {'×'.join(map(str, shape[1:]))}" if is_volume else "")
        share = np.log2(shape[0]) / max(np.log2(max_channels), 1.0) if is_volume else 0.0
        boxes.append(plots.Box(above, text, foot, shape[1] / largest if is_volume else 0.0, 0.18 + 0.62 * share))
    return plots.boxes_in_a_row(boxes, title=f"{name.capitalize()}, {network['parameters']:,} parameters")


def _layers_csv(architecture: dict[str, Any]) -> str:
    rows = [
        [name, number, " ".join(operations(layer)), " x ".join(map(str, layer["shape"])), layer["parameters"]]
        for name, network in architecture.items()
        for number, layer in enumerate(layers_of(network), 1)
    ]
    return numbers_csv(rows, ["network", "layer", "operation", "output", "parameters"])
