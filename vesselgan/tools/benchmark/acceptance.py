"""Does the package work on this machine, and how fast: every part in a process of its own, within a time limit.

`correctness` compares with closed forms and float64; `speed` measures the training step beside the authors';
`science` trains for the given minutes and compares U-Nets on synthetic and on real patches.
"""

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from html import escape
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from vesselgan.config.schema import Benchmark
from vesselgan.core.atomic_io import write_text
from vesselgan.core.console import log
from vesselgan.core.errors import NumericError, UsageError
from vesselgan.core.processes import SECONDS_TO_STOP
from vesselgan.runtime import distributed
from vesselgan.runtime.provenance import collect
from vesselgan.tools.benchmark import correctness, science, speed
from vesselgan.tools.benchmark.correctness import Check
from vesselgan.viz.html_page import document

Part = Callable[[Benchmark], "list[Check] | dict[str, Any] | str"]
"""Returns its checks, what it measured, or why it does not apply here."""
GROUPS: dict[str, Mapping[str, Part]] = {
    "correctness": correctness.PARTS,
    "speed": speed.PARTS,
    "science": science.PARTS,
}
STYLE = """
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
td.number { text-align: right; }
.scroll { overflow-x: auto; }
.passed { color: var(--good); } .failed { color: var(--bad); }
"""
HEADERS = ("part", "result", "check", "value", "limit", "seconds")


def run(config: Benchmark) -> None:
    """Write out/acceptance.json and out/index.html, a line per part on the way. NumericError if a part failed."""
    if unknown := [part for part in config.parts if part not in GROUPS]:
        raise UsageError(f"parts={unknown}: choose from {', '.join(GROUPS)}")
    out = Path(config.out or "work/acceptance")
    end = time.monotonic() + 60 * config.minutes
    # fp16 is what a GPU is for; a CPU without it takes what it has.
    device = distributed.choose_device(config.runtime.device, 0)
    if device.type == "cpu" and config.variant.precision == "fp16":
        config = replace(config, variant=replace(config.variant, precision="bf16"))
    provenance = collect()
    results: list[dict[str, Any]] = []
    report = {"device": _device_name(device), "precision": config.variant.precision, "parts": results}
    report |= {key: provenance[key] for key in ("time", "vesselgan", "packages", "hardware")}
    out.mkdir(parents=True, exist_ok=True)
    for group in config.parts:
        for name in GROUPS[group]:
            result = run_part(GROUPS[group][name], config, end - time.monotonic())
            results.append({"group": group, "name": name, **result})
            log.info(f"{group:<12} {name:<32} {result['status']:<8} {result['seconds']:6.1f} s")
            # After every part: a job may be killed.
            write_text(out / "acceptance.json", json.dumps(report, indent=1) + "\n")
            write_text(out / "index.html", page(report))
    log.info(f"{out / 'index.html'}")
    if failed := [part["name"] for part in results if part["status"] == "failed" and part["group"] == "correctness"]:
        raise NumericError(f"acceptance: {', '.join(failed)} failed on {report['device']}; see {out / 'index.html'}")


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
    process = context.Process(target=_child, args=(sender, part, config, seconds))
    process.start()
    sender.close()
    try:
        # A process that dies closes its end, which ends the wait too.
        if receiver.poll(seconds):
            result |= receiver.recv()
    except EOFError:
        process.join()
        result |= {"status": "failed", "message": f"its process ended with code {process.exitcode}"}
    process.terminate()
    process.join(SECONDS_TO_STOP)
    process.kill()
    process.join()
    return result | {"seconds": round(time.monotonic() - started, 1)}


def _child(sender: Any, part: Part, config: Benchmark, seconds: float) -> None:
    # The commands that a part has started end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        outcome = part(replace(config, minutes=seconds / 60))
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
    """One HTML page: a row per check and per measured number."""
    rows = "".join(_rows_of(part) for part in report["parts"])
    head = "".join(f"<th>{header}</th>" for header in HEADERS)
    versions = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    body = (
        f"<header><h1>Acceptance on {escape(report['device'])}</h1><p class='soft'>{escape(report['precision'])}, "
        f"{escape(report['time'])}; {escape(versions)}</p></header>"
        f"<main><div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></main>"
    )
    return document("Acceptance", STYLE, body)


def _rows_of(part: dict[str, Any]) -> str:
    lines = [(check["name"], check["value"], check["limit"], check["passed"]) for check in part["checks"]]
    lines += [(name, value, None, True) for name, value in flat_facts(part["facts"])]
    if not lines:
        lines = [(part["message"], None, None, part["status"] != "failed")]
    html, seconds = "", part["seconds"]
    for index, (name, value, limit, passed) in enumerate(lines):
        status = part["status"] if index == 0 else ""
        html += (
            f"<tr><td>{escape(part['name']) if index == 0 else ''}</td>"
            f"<td class='{'passed' if part['status'] == 'passed' else 'failed'}'>{status}</td>"
            f"<td class='{'' if passed else 'failed'}'>{escape(name)}</td><td class='number'>{_number(value)}</td>"
            f"<td class='number'>{_number(limit)}</td><td class='number'>{seconds if index == 0 else ''}</td></tr>"
        )
    return html


def flat_facts(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of everything measured."""
    rows: list[tuple[str, Any]] = []
    for name, value in facts.items():
        rows += flat_facts(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
