"""README.md of a release: data set card and model card in one, in words that need no knowledge of this package."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vesselgan.config.private import PROTECTS_NOBODY
from vesselgan.core.console import counted
from vesselgan.core.names import on_one_line
from vesselgan.core.version import __version__
from vesselgan.formats.results import Result, Results
from vesselgan.release.export import IMAGE, LABEL, NETWORK
from vesselgan.release.ledger import Account

NO_GUARANTEE = "no formal guarantee"
LIMITS = (
    "For method development and for pretraining; not for diagnosis, and not as evidence about any population. The "
    "patches repeat the scanner, the age and the disease of the patients that the generator learned from, and its "
    "errors: thin vessels break, rare anatomy is missing. An audit bounds what it tried; it is no guarantee."
)
TUNED = (
    "Settings and checkpoint may have been chosen on real validation patients of the same hospital, the label "
    "threshold on these or on the training labels. No number here accounts for such a choice, nor for the voxel "
    "spacing and the intensity range, which come from patients."
)
SAMPLE = f"""import sys
import torch
sys.dont_write_bytecode = True  # such a file would name this folder
sys.path.insert(0, "{NETWORK}")  # run it in this folder; needs torch and safetensors
from generator import load_generator
network = load_generator("{NETWORK}")
noise = torch.randn(2, network.latent_size, generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    patches = network(noise)  # [2, 2, X, Y, Z]
images, labels = (patches[:, 0] + 1) * 127.5, patches[:, 1] >= network.label_threshold"""
GIVEN = "network(noise, torch.zeros(2, network.num_given, *network.patch_shape))  # your labels, see load_generator; "
"""In place of `network(noise)`, where the label is given."""


@dataclass(frozen=True)
class Facts:
    """What the card says."""

    name: str
    date: str
    license: str | None
    reason: str | None
    """Why it leaves although the gate was closed."""
    closed: Sequence[str]
    """What closed the gate."""
    num_pairs: int
    patch_shape: Sequence[int]
    spacing_mm: Sequence[float]
    label_thresholds: Sequence[float]
    audit: Result
    spent: list[Account] | None
    """Of this release, a sum per unit that is bounded; None: no formal guarantee."""
    spent_in_all: list[Account] | None
    """With every earlier release that shares a patient."""
    num_releases: int
    """Of those, this one among them."""
    is_seed_known: bool
    generator: str | None
    """The name of its variant; None: it does not leave."""
    is_label_given: bool
    """Whether the network is given labels."""
    are_trees_procedural: bool
    """Whether all vessel trees of the pairs are a procedure's."""
    is_phantom: bool
    scores: list[str] = field(default_factory=list)


def write(facts: Facts) -> str:
    sections = [_head(facts), _data(facts), _privacy(facts), _scores(facts), _use(facts)]
    sections += [_network(facts)] if facts.generator is not None else []
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _head(facts: Facts) -> Iterator[str]:
    yield f"# {facts.name}"
    yield ""
    yield f"{counted(facts.num_pairs, 'synthetic pair')} of TOF-MRA patch and vessel label, released on {facts.date}."
    yield "**Every image is synthetic. None is of a person.**"
    if facts.is_phantom:
        yield "The generator learned from phantoms: no patient's data were used."
    if facts.closed:
        yield ""
        yield f"**Released although the audit did not pass. Reason: {on_one_line(str(facts.reason))}**"
    yield ""
    yield "Licence: " + ("none is set, so it allows nobody anything." if facts.license is None else facts.license)


def _data(facts: Facts) -> Iterator[str]:
    count = facts.audit["count"]
    shape, spacing = (" x ".join(f"{size:g}" for size in sizes) for sizes in (facts.patch_shape, facts.spacing_mm))
    thresholds = ", ".join(f"{threshold:g}" for threshold in facts.label_thresholds) or "not recorded"
    yield "## Data"
    yield ""
    yield f"- `sub-*/anat/*_{IMAGE}`: image, float32, 0 to 255; `*_{LABEL}`: vessel label, 0 or 1"
    yield f"- {shape} voxels of {spacing} mm; axes as RAS, the origin at the patch's centre: no patient's position"
    yield f"- a voxel is vessel from a score of {thresholds} on"
    if facts.are_trees_procedural:
        yield "- the vessel trees are nobody's: a procedure drew them, and the images were made of them"
    yield (
        f"- the generator learned from {counted(count['training'], 'patch', 'patches')} of "
        f"{counted(count['training_people'], 'patient')}; no more is said of them here"
    )
    yield "- BIDS: this folder is a derivative data set. nnU-Net v2: link it as `nnUNet_raw/Dataset501_NAME`; its"
    yield "  `dataset.json` names the same files, so nothing is there twice. Croissant: `croissant.json`"
    yield "- `sha256sum -c SHA256SUMS` checks every file"


def _privacy(facts: Facts) -> Iterator[str]:
    audit = facts.audit
    yield "## Privacy"
    yield ""
    yield f"- audit: **{audit['verdict']}**: {audit['sentence']}"
    for i, one in enumerate(audit["synthetic"], 1) if len(audit["synthetic"]) > 1 else ():
        yield f"- set {i} alone, {counted(one['count'], 'pair')}: {one['verdict']}: {one['sentence']}"
    yield from (f"- {text}" for text in facts.closed if not text.startswith(audit["verdict"]))
    yield f"- power: {_power(audit)}"
    resolution = audit["resolution"]
    yield (
        f"- patches below a threshold point to {resolution['patients_pointed_at']} of "
        f"{audit['count']['training_people']} training patients, at most {resolution['patients_at_most']:.1%} of such "
        "patients (95 %)"
    )
    yield f"- differential privacy: {_guarantee(facts.spent, facts.is_seed_known)}"
    if facts.num_releases > 1:
        number = counted(facts.num_releases, "release")
        yield f"- with all {number} that share a patient: {_guarantee(facts.spent_in_all, False)} (basic composition)"
    yield "- what was attacked are the patches. Whoever has the generator's weights can try more."
    yield "- the critic, the optimizer's state and the log of the training never leave"
    yield f"- {TUNED}"


def _power(audit: Result) -> str:
    share = float(audit["rule"]["share"])
    kinds = [
        f"{one['share_found']:.0%} of {one['kind'].replace('_', ' ')} ones (copies of {share:.0%} would be found with "
        f"probability {one['power'][f'{share:g}']:.2f})"
        for one in audit["planted"]
    ]
    return "of copies planted into this very set the audit finds " + "; ".join(kinds)


def _guarantee(spent: list[Account] | None, is_seed_known: bool) -> str:
    if is_seed_known:
        return f"{NO_GUARANTEE}, as the noise was drawn from a known seed"
    if spent is None:
        return NO_GUARANTEE
    texts = []
    for one in spent:
        void = ", which protects nobody" if (one.epsilon or 0.0) >= PROTECTS_NOBODY else ""
        texts.append(f"epsilon {one.epsilon:.4g} per {one.unit} at delta {one.delta:.3g}{void}")
    if all(one.unit != "patient" for one in spent):
        texts.append(f"{NO_GUARANTEE} per patient")
    return "; ".join(texts)


def _scores(facts: Facts) -> Iterator[str]:
    yield "## Fidelity and utility"
    yield ""
    yield from (f"- {text}" for text in facts.scores or ["not measured on these patches"])


def _use(facts: Facts) -> Iterator[str]:
    yield "## Intended use and limits"
    yield ""
    yield LIMITS
    yield ""
    yield "If a patient whose data were learned from withdraws, this release has to go; a copy cannot be recalled."


def _network(facts: Facts) -> Iterator[str]:
    yield "## Generator"
    yield ""
    yield f"Variant `{facts.generator}` of vesselgan {__version__}: `{NETWORK}/generator.safetensors` (float32),"
    yield "`architecture.json` and `generator.py`, the network alone, to be read and run without vesselgan:"
    yield ""
    yield "```python"
    yield SAMPLE.replace("network(noise)  # ", GIVEN) if facts.is_label_given else SAMPLE
    yield "```"


def scores_of(folder: str | Path, contents: Sequence[str], weights: Sequence[str]) -> list[str]:
    """What the results in `folder` say of sets of these content hashes, and of U-Nets that learned from these weights.

    No subject's own score, and no name that a result was given. Raises DataError for a damaged result.
    """
    texts = []
    for _, result in Results(folder):
        gan = result.get("gan") or {}
        if result["job"] == "image" and result.get("inputs", {}).get("synthetic shards") in contents:
            texts += [_fidelity(result)]
        elif result["job"] == "segmentation" and gan.get("weights_sha256") in weights:
            texts += [_utility(result)]
    return list(dict.fromkeys(texts))


def _fidelity(result: Result) -> str:
    titles = {"fid": "FID", "prd_auc": "PRD-AUC"}
    values = [_value(titles[key], score["mean"], score["interval"]) for key, score in result["scores"].items()]
    return (
        f"{', '.join(values)} against {result['split']} patches of {counted(result['num_patients'], 'patient')} "
        f"({result['extractor']['title']})"
    )


def _utility(result: Result) -> str:
    dice = result["summary"]["all"]["dice"]
    spread = "" if dice["sd"] is None else f" (SD {dice['sd']:.2f})"
    shuffled = ", labels shuffled" if "shuffled" in str(result.get("title")) else ""
    kind = "synthetic and real" if "both" in str(result.get("segmented_with", {}).get("source")) else "synthetic"
    return (
        f"U-Net trained on {kind} patches{shuffled}: Dice {dice['mean']:.2f}{spread} on "
        f"{counted(dice['n'], 'whole volume')} of the split {result['split']}"
    )


def _value(title: str, mean: float, interval: Sequence[float] | None) -> str:
    return f"{title} {mean:.3g}" + ("" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]")
