"""The commands that the page prints: complete, with the report's own paths, and nobody's folders."""

import re
import shlex
from pathlib import Path

import pytest

from vesselgan.config.compose import compose, parse
from vesselgan.report import error_maps, page, scores, table_1
from vesselgan.report.commands import Commands
from vesselgan.report.runs import read_run
from vesselgan.report.table_3_rows import from_results


def printed(texts: list[str]) -> list[list[str]]:
    """Words of the commands in these texts."""
    return [shlex.split(command) for text in texts for command in re.findall("`(vesselgan [^`]*)`", text)]


def check(words: list[str]) -> None:
    """Raises UsageError if the command line lacks a setting or has one that is not read."""
    parse(words[1].replace("-", "_"), None, words[2:])


def test_every_command_on_the_page_is_complete(road, make_result):
    for path in (road / "results").iterdir():
        path.unlink()
    config = compose("report", [f"work_dir='{road}'", f"runs=['{road}/runs/demo-gan']", "data.name=my own"])
    runs = [read_run(config.runs[0])]
    commands = Commands.of(config, [])
    head, sections = page.build(config, [], runs)
    texts = [*head.further, *(block.text for part in sections for block in part.blocks if block.kind == "text")]
    lines = [*printed(texts), *printed([f"`{commands.threshold('far')}`", f"`{commands.generate(runs[0].folder)}`"])]
    assert {words[1] for words in lines} == {"study", "audit", "evaluate", "generate"}
    for words in lines:
        check(words)
        assert not any(str(road) in word for word in words)


def test_a_missing_threshold_has_its_command(make_result):
    commands = Commands(cohort=("mine", "work/mine"))
    part = scores.section("mine", "test", [make_result("real", 0.9)], [], is_only=True, commands=commands)
    (words,) = printed([block.text for block in part.blocks if block.kind == "text"])
    settings = ["name=threshold", "data.name=mine", "data.cohort_dir=work/mine", "out=work/results/threshold.json"]
    assert words == ["vesselgan", "evaluate", "evaluate=threshold", *settings]
    assert "data.cohort_dir=work/far" in commands.threshold("far")


def test_missing_error_maps_have_a_command_each(make_result):
    result = make_result("real", 0.9)
    result["provenance"]["command"] = ["vesselgan evaluate", "name=real", "predictions=out/mine"]
    results = [result, make_result("synthetic", 0.8)]
    commands = Commands.of(compose("report", []), results)
    texts = [block.text for block in error_maps.section([from_results(results, ["dice"], {})], None, commands).blocks]
    first, second = printed(texts)
    settings = [
        "name=real",
        "predictions=out/mine",
        "error_maps=work/errors/real/phantom",
        "out=work/results/real.json",
    ]
    assert first == ["vesselgan", "evaluate", "evaluate=segmentation", *settings]
    assert "predictions=work/predictions/synthetic" in second
    for words in (first, second):
        check(words)


def test_image_scores_have_a_command(road):
    run = read_run(road / "runs/demo-gan")
    (words,) = printed([block.text for block in table_1.section([], [run]).blocks if block.kind == "text"])
    assert "name=sn_mp" in words and "out=work/results/image-demo-gan.json" in words
    check(words)


@pytest.mark.parametrize(
    ("path", "text"),
    [("a/b", "a/b"), ("/data/me/vg/runs/x", "vg/runs/x"), ("/elsewhere/of/me/x", "x"), (Path.cwd() / "w", "w")],
)
def test_a_path_names_nobodys_folders(path, text):
    assert Commands(work_dir="/data/me/vg").place(path) == text


def test_odd_names_are_quoted():
    command = Commands(cohort=("a b", "work/a b")).threshold("a b")
    assert shlex.split(command)[4:6] == ['data.name="a b"', 'data.cohort_dir="work/a b"']
