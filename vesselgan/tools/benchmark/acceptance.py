"""Does the package work on this machine, and how fast: every part in a process of its own, within a time limit.

`correctness` compares with closed forms and float64; `speed` measures the training step beside the authors';
`science` trains for the given minutes and compares U-Nets on synthetic and on real patches.
"""

import json
import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from vesselgan.config.schema import Benchmark, Variant
from vesselgan.core.atomic_io import write_text
from vesselgan.core.console import log
from vesselgan.core.errors import NumericError
from vesselgan.core.processes import SECONDS_TO_STOP
from vesselgan.runtime import distributed
from vesselgan.runtime.provenance import collect
from vesselgan.tools.benchmark import correctness, science, speed
from vesselgan.tools.benchmark.correctness import Check
from vesselgan.tools.benchmark.measurement import as_text, flatten
from vesselgan.viz.pages import render

Part = Callable[[Benchmark], "list[Check] | dict[str, Any] | str"]
"""Returns its checks, what it measured, or why it does not apply here."""
GROUPS: dict[str, Mapping[str, Part]] = {
    "correctness": correctness.PARTS,
    "speed": speed.PARTS,
    "science": science.PARTS,
}


def run(config: Benchmark) -> None:
    """Write out/acceptance.json and out/index.html, a line per part on the way. NumericError if a part failed."""
    out = Path(config.out or "work/acceptance")
    end = time.monotonic() + 60 * config.minutes
    device = distributed.choose_device(config.runtime.device, 0)
    chosen = config.variant.precision
    precisions = {group: precision_of(group, device, config.variant) for group in config.parts}
    for group, precision in precisions.items():
        if precision != chosen:
            log.info(f"{group} in {precision} on this {device.type}, in place of variant.precision={chosen}")
    provenance = collect()
    results: list[dict[str, Any]] = []
    used = ", ".join(dict.fromkeys(precisions.values()))
    report = {"device": _device_name(device), "precision": used, "parts": results}
    report |= {key: provenance[key] for key in ("time", "vesselgan", "packages", "hardware")}
    out.mkdir(parents=True, exist_ok=True)
    for group, precision in precisions.items():
        measured = replace(config, variant=replace(config.variant, precision=precision))
        for name in GROUPS[group]:
            # Science trains for the given minutes, and takes as long as it takes.
            seconds = math.inf if group == "science" else end - time.monotonic()
            result = run_part(GROUPS[group][name], measured, seconds)
            results.append({"group": group, "name": name, **result})
            log.info(f"{group:<12} {name:<32} {result['status']:<8} {result['seconds']:6.1f} s")
            # After every part: a job may be killed.
            write_text(out / "acceptance.json", json.dumps(report, indent=1) + "\n")
            write_text(out / "index.html", page(report))
    log.info(f"{out / 'index.html'}")
    if failed := [part["name"] for part in results if part["status"] == "failed" and part["group"] == "correctness"]:
        raise NumericError(f"acceptance: {', '.join(failed)} failed on {report['device']}; see {out / 'index.html'}")


def precision_of(group: str, device: torch.device, variant: Variant) -> str:
    """In which a group of parts computes: what the GPU is for, but where science trains in what the variant needs.

    A flow's Muon works in fp32 alone, and a private variant trains in nothing else.
    """
    if group == "science" and device.type == "cuda" and (variant.flow is not None or variant.dp is not None):
        return variant.precision
    return precision_on(device, variant.precision)


def precision_on(device: torch.device, precision: str) -> str:
    """A GPU is accepted in half precision too, which is what it is for; a CPU without fp16 takes what it has."""
    replaced = {"cuda": {"fp32": "fp16"}, "cpu": {"fp16": "bf16"}}
    return replaced[device.type].get(precision, precision)


def run_part(part: Part, config: Benchmark, seconds: float) -> dict[str, Any]:
    """The result of one part: status (passed, failed, not run), checks, facts, message and seconds.

    It runs in a process of its own, which is killed after `seconds`.
    """
    result = {"status": "not run", "seconds": 0.0, "checks": [], "facts": {}, "message": "the time limit was reached"}
    if seconds <= 0:
        return result
    started = time.monotonic()
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, part, config))
    process.start()
    sender.close()
    try:
        # A process that dies closes its end, which ends the wait too.
        if receiver.poll(None if seconds == math.inf else seconds):
            result |= receiver.recv()
        else:
            process.terminate()
    except EOFError:
        process.join()
        result |= {"status": "failed", "message": f"its process ended with code {process.exitcode}"}
    process.join(SECONDS_TO_STOP)
    process.kill()
    process.join()
    return result | {"seconds": round(time.monotonic() - started, 1)}


def _child(sender: Any, part: Part, config: Benchmark) -> None:
    # The commands that a part has started end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        outcome = part(config)
    except Exception as error:  # every part is reported, whatever another one raises
        message = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
        sender.send({"status": "failed", "message": message})
        return
    if isinstance(outcome, str):
        sender.send({"status": "not run", "message": outcome})
    elif isinstance(outcome, dict):
        sender.send({"status": "passed", "facts": outcome, "message": ""})
    else:
        rows = [asdict(check) | {"passed": check.passed} for check in outcome]
        status = "passed" if all(check.passed for check in outcome) else "failed"
        sender.send({"status": status, "checks": rows, "message": ""})


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def page(report: dict[str, Any]) -> str:
    """One HTML page: a table per group, a row per check and per number measured."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for part in report["parts"]:
        groups.setdefault(part["group"], []).append(part | {"rows": _rows_of(part)})
    values = {
        "title": f"Acceptance on {report['device']}",
        "answer": _in_words(report["parts"]),
        "when": report["time"].replace("T", " ").replace("+00:00", " UTC"),
        "groups": groups,
        "versions": ", ".join(f"{name} {version}" for name, version in report["packages"].items()),
    }
    return render("vesselgan.tools.benchmark", "acceptance.html", report | values)


def _in_words(parts: list[dict[str, Any]]) -> str:
    """How many parts passed, failed and were not run, the failed ones by name."""
    by_status = {status: [p["name"] for p in parts if p["status"] == status] for status in ("failed", "not run")}
    failed, rest = by_status["failed"], len(by_status["not run"])
    verdict = f"{len(failed)} of {len(parts)} parts failed: {', '.join(failed)}" if failed else "No part failed"
    return f"{verdict}; {len(parts) - len(failed) - rest} passed, {rest} {'was' if rest == 1 else 'were'} not run."


def _rows_of(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Texts of the page's rows; of a part without a number its message."""
    checks = [check | {"value": as_text(check["value"]), "limit": as_text(check["limit"])} for check in part["checks"]]
    facts = [{"name": name, "value": text, "limit": "", "passed": True} for name, text in flatten(part["facts"])]
    message = {"name": part["message"], "value": "", "limit": "", "passed": part["status"] != "failed"}
    return checks + facts or [message]
