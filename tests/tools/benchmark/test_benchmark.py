"""The benchmarks measure what they say: turns are taken, both ways read the same pair, one line of JSON comes out."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from vesselgan.config.compose import compose
from vesselgan.config.schema import Benchmark
from vesselgan.core.errors import UsageError
from vesselgan.tools.benchmark import interleave as interleave_module
from vesselgan.tools.benchmark import loader
from vesselgan.tools.benchmark import run as run_module

SIZES = ["shape=[64,64,32]", "patch_shape=[32,32,16]", "num_patches=2", "repeats=2"]


def small(*words: str) -> Benchmark:
    return compose("benchmark", [*SIZES, *words])


def test_the_first_round_does_not_count():
    seen = []

    def slow(number: int) -> None:
        seen.append(("slow", number))
        time.sleep(0.05 if number >= 0 else 0.3)

    timings = interleave_module.interleave({"slow": slow, "quick": lambda number: seen.append(("quick", number))}, 3)
    assert seen == [(name, number) for number in (-1, 0, 1, 2) for name in ("slow", "quick")]
    # 50 ms asleep: wall time and hardly any CPU; far below the 300 ms of the round that warms up
    assert 0.05 <= timings["slow"].wall_s < 0.2 and timings["slow"].cpu_s < 0.04
    assert timings["quick"].rounds == 3


def test_both_ways_read_the_same_pair(tmp_path):
    draw = np.random.default_rng(1)
    image, label = draw.normal(200, 40, (16, 16, 8)).astype(np.float32), np.zeros((16, 16, 8), np.uint8)
    label[4:8, 4:8, 2:4] = 1
    corner = np.zeros((1, 3), np.int64)
    loader._write_as_the_authors(tmp_path / "npy", [(image, label)])
    # all of the volume's range, so that scaling per volume and per patch are one
    dataset = loader._sharded(tmp_path / "shards", [(image, label)], corner, (float(image.min()), float(image.max())))
    theirs, ours = loader.read_as_the_authors(tmp_path / "npy", 0), dataset[0]
    assert theirs.shape == ours.shape and theirs.dtype == ours.dtype
    # half a step of the shards' 65,536 levels over [-1, 1], and float32's rounding
    np.testing.assert_allclose(ours[0], theirs[0], atol=1.6e-5)
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("text", ["name: mine\n", '{"subjects": {}}\n', "[1]\n", '{"target": "step", "load": 1, "rep'])
def test_foreign_files_are_not_appended_to(tmp_path, text):
    out = tmp_path / "file"
    out.write_text(text)
    with pytest.raises(UsageError, match="out="):
        run_module.benchmark(small(f"out={out}"))
    assert out.read_text() == text
    with pytest.raises(UsageError, match="out="):
        run_module.benchmark(small(f"out={tmp_path}"))


def test_the_loader_prints_one_line(capsys, tmp_path):
    out = tmp_path / "deep" / "benchmarks.jsonl"
    run_module.benchmark(small(f"out={out}"))
    (line,) = capsys.readouterr().out.splitlines()
    assert out.read_text() == line + "\n"
    run_module._check_out(out)  # another line may follow
    facts = json.loads(line)
    for content in ("counts", "preprocessed"):
        assert facts[content]["ratio_cpu"] > 0
        # 2 x 32 x 32 x 16 voxels of 3 bytes, and the tables
        assert 2 * 32 * 32 * 16 * 3 < facts[content]["shards"]["bytes"]
        assert set(facts[content]["authors"]) == {"cpu_ms", "wall_ms", "bytes"}
    assert facts["target"] == "loader" and facts["repeats"] == 2 and len(facts["load"]["before"]) == 3
    assert facts["hardware"]["cores"] and facts["packages"]["h5py"] and facts["time"].startswith("20")


@pytest.mark.soak
def test_prepare_compares_one_rank_with_two(capsys):
    pytest.importorskip("mpi4py")
    config = small("target=prepare", "num_subjects=2", "repeats=1", "num_patches=4")
    run_module.benchmark(replace(config, shape=[64, 64, 32]))
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["ranks"]) == {"1", "2"} and facts["ratio_wall"] > 0
    assert set(facts["stages_ms"]["whole"]) == {"read image", "read label", "hash", "limits", "scale", "cut", "write"}
    assert facts["patches_per_subject"] == 2 * 4 + 2 * 2 * 2 and facts["small_shape"] == [32, 32, 16]
