"""The audit for copies, through the command's own function, on shards: replayed, partly replayed and new patches."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vesselgan.config.compose import compose
from vesselgan.core.errors import DataError, PrivacyError, UsageError, exit_on_error
from vesselgan.evaluation import reference
from vesselgan.evaluation.run import evaluate
from vesselgan.formats.shards import ShardSet, content_hash, read_manifest, write_manifest

NUM_TRAINING, NUM_HELD_OUT = 100, 850
ENOUGH = 1000  # beside which 850 held-out patches are
PEOPLE = [f"sub-held{i}" for i in range(6)]
Patch = tuple[np.ndarray, np.ndarray]
Write = Callable[..., Path]


@functools.cache
def make_patch(seed: int) -> Patch:
    """Noise with a bar as label, no two alike."""
    image = np.random.default_rng(seed).normal(size=(8, 8, 8))
    label = np.zeros(image.shape, np.uint8)
    label[:, 4:6, 3:5] = 1
    return np.clip(110 + 22 * image + 40 * label, 0, 255).astype(np.float32), label


def replay(seed: int) -> Patch:
    """A training patch: turned, darker, and under noise of a tenth of its standard deviation."""
    source = np.random.default_rng(10_000 + seed)
    image, label = make_patch(seed % NUM_TRAINING)
    image = image + 0.1 * image.std() * source.normal(size=image.shape)
    axes = [axis for axis in range(3) if source.integers(2)]
    image, label = (np.flip(array, axes).swapaxes(0, int(source.integers(2))) for array in (image, label))
    return np.clip(0.6 * image + 20, 0, 255).astype(np.float32), np.ascontiguousarray(label)


@pytest.fixture(scope="session")
def real_shards(tmp_path_factory: pytest.TempPathFactory, write_set: Write) -> Path:
    """100 training patches of 40 people, 850 held-out ones of six others; read, not changed."""
    shards = tmp_path_factory.mktemp("audit") / "shards"
    write_set(shards / "gan" / "train", range(NUM_TRAINING), [f"sub-{i}" for i in range(40)], make=make_patch)
    write_set(shards / "unet" / "validation", range(5000, 5000 + NUM_HELD_OUT), PEOPLE, make=make_patch)
    return shards


@pytest.fixture
def road(tmp_path: Path, real_shards: Path) -> Path:
    """A work folder with them, where either set may be replaced: unlink it first."""
    for name in ("gan/train", "unet/validation"):
        (tmp_path / "phantom" / "shards" / name).parent.mkdir(parents=True)
        (tmp_path / "phantom" / "shards" / name).symlink_to(real_shards / name)
    return tmp_path


@pytest.fixture
def make_synthetic(road: Path, write_set: Write) -> Callable[..., Path]:
    def make(seeds: range | list[int], patch: Callable[[int], Patch]) -> Path:
        names = [f"synthetic-{i}" for i in range(len(seeds))]
        return write_set(road / "synthetic", seeds, names, origin="synthetic", kind="synthetic", make=patch)

    return make


def run(road: Path, *words: str) -> dict:
    out = road / "results" / "audit.json"
    fixed = ["evaluate=memorisation", "name=tiny", f"work_dir={road}", f"out={out}"]
    evaluate(compose("evaluate", [*fixed, f"memorisation.synthetic={road / 'synthetic'}", *words]))
    return json.loads(out.read_text())


def mixed(seed: int) -> Patch:
    """Copies for seeds below 1000, else new."""
    return replay(seed) if seed < 1000 else make_patch(seed)


def test_new_patches_open_the_gate(road: Path, make_synthetic: Callable[..., Path]):
    made = make_synthetic(range(20_000, 20_000 + ENOUGH), make_patch)
    result = run(road, "memorisation.require_open=true")
    assert (result["job"], result["verdict"], result["verbatim"]) == ("memorisation", "open", 0)
    count = {"synthetic": ENOUGH, "held_out": NUM_HELD_OUT, "held_out_people": 6, "training": NUM_TRAINING}
    assert result["count"] == count | {"held_out_kinds": {"vessel": NUM_HELD_OUT}, "without_content": 0}
    shards = road / "phantom" / "shards"
    folders = {"synthetic": made, "reference": shards / "unet/validation", "training": shards / "gan/train"}
    assert result["inputs"] == {f"{name} shards": content_hash(folder) for name, folder in folders.items()}
    assert result["distances"]["held_out"]["0"] == pytest.approx(result["threshold"])
    assert len(result["nearest"]) == 20 and result["nearest"][0]["distance"] == result["distances"]["synthetic"]["0"]
    assert "is not checked" in result["notes"][0]


def test_a_replaying_generator_closes_the_gate(road: Path, make_synthetic: Callable[..., Path]):
    make_synthetic(range(60), make_patch)
    exact = run(road)
    assert (exact["verdict"], exact["verbatim"], exact["below"]) == ("closed", 60, 60)
    assert {pair["synthetic"] == pair["training"] for pair in exact["nearest"]} == {True}
    make_synthetic(range(200), replay)
    disguised = run(road)
    assert (disguised["verdict"], disguised["verbatim"], disguised["below"]) == ("closed", 0, 200)
    assert all(pair["synthetic"] % NUM_TRAINING == pair["training"] for pair in disguised["nearest"])
    assert disguised["chance"] < 1e-6 and disguised["share_at_most"] > 0.98


def test_one_percent_of_disguised_copies_is_found(road: Path, make_synthetic: Callable[..., Path]):
    make_synthetic([*range(10), *range(20_000, 20_990)], mixed)
    result = run(road)
    assert result["power"] >= 0.95 and (result["verdict"], result["verbatim"]) == ("closed", 0)
    assert result["below"] >= 10 and {pair["synthetic"] for pair in result["nearest"][:10]} == set(range(10))
    # One of 200 lies below the smallest of 850 with chance 200 / 1050: not distinguished from a copy, so never open.
    make_synthetic([0, *range(20_000, 20_199)], mixed)
    result = run(road)
    assert (result["verdict"], result["below"]) == ("inconclusive", 1)
    assert result["power"] < 0.95 and result["chance"] == pytest.approx(200 / 1050)


def test_too_few_held_out_patches_cannot_conclude(road: Path, make_synthetic: Callable[..., Path], write_set: Write):
    make_synthetic(range(20_000, 20_000 + ENOUGH), make_patch)
    held_out = road / "phantom" / "shards" / "unet" / "validation"
    held_out.unlink()
    write_set(held_out, range(5000, 5060), PEOPLE, make=make_patch)
    with pytest.raises(PrivacyError, match="inconclusive"):
        run(road, "memorisation.require_open=true")
    few = json.loads((road / "results" / "audit.json").read_text())
    assert few["verdict"] == "inconclusive" and 700 < few["held_out_needed"] <= NUM_HELD_OUT
    assert f"{-(-few['held_out_needed'] // 10)} people" in few["reason"]
    write_set(held_out, range(5000, 5000 + NUM_HELD_OUT), PEOPLE[:2], make=make_patch)
    two = run(road)
    assert two["verdict"] == "inconclusive" and "2 held-out people" in two["reason"]


def test_a_closed_gate_exits_7_unless_overridden(
    road: Path, make_synthetic: Callable[..., Path], capsys: pytest.CaptureFixture
):
    make_synthetic(range(40), replay)
    assert run(road)["override_privacy_gate"] is None  # measured, not asked: no error
    with pytest.raises(SystemExit) as stopped:
        exit_on_error(lambda: run(road, "memorisation.require_open=true"))
    assert stopped.value.code == 7 and "40 of 40" in capsys.readouterr().err
    assert json.loads((road / "results" / "audit.json").read_text())["verdict"] == "closed"
    reason = "phantoms, nobody's data"
    overridden = run(road, "memorisation.require_open=true", f'memorisation.override_privacy_gate="{reason}"')
    assert (overridden["verdict"], overridden["override_privacy_gate"]) == ("closed", reason)
    assert reason in capsys.readouterr().out
    with pytest.raises(UsageError, match="memorisation.override_privacy_gate"):
        run(road, 'memorisation.override_privacy_gate=" "')


def test_patches_of_air_do_not_count(road: Path, make_synthetic: Callable[..., Path], write_set: Write):
    def make(seed: int) -> Patch:
        """Air where the seed is 0."""
        image, label = make_patch(seed)
        return (image if seed else np.zeros_like(image)), label

    shards = road / "phantom" / "shards"
    for name, seeds, people in (
        ("gan/train", range(1000, 1300), ["sub-1"]),
        ("unet/validation", range(5000, 5850), PEOPLE),
    ):
        (shards / name).unlink()
        write_set(shards / name, [0, *seeds], people, make=make)
    make_synthetic([0, 0, *range(20_000, 20_000 + ENOUGH)], make)
    result = run(road)
    assert (result["verdict"], result["count"]["without_content"]) == ("open", 3)
    make_synthetic([0, 0], make)
    with pytest.raises(DataError, match="one value"):
        run(road)


def test_what_cannot_be_audited_is_refused(
    road: Path, make_synthetic: Callable[..., Path], write_set: Write, capsys: pytest.CaptureFixture
):
    made = make_synthetic(range(20_000, 20_010), make_patch)
    manifest = read_manifest(made)
    facts = {key: getattr(manifest, key) for key in ("shards", "patch_shape", "origin", "subjects", "spacing_mm")}

    def trained_on(digest: str) -> None:
        write_manifest(made, **facts, percentiles=(0.0, 99.99), extra={"trained_on": digest})

    trained_on("ab" * 32)
    with pytest.raises(DataError, match="GAN was trained on other shards"):
        run(road)
    trained_on(content_hash(road / "phantom/shards/gan/train"))
    assert run(road)["notes"] == []
    with pytest.raises(UsageError, match="memorisation.synthetic"):
        run(road, "memorisation.synthetic=null")
    with pytest.raises(UsageError, match="holds real patches"):
        run(road, f"memorisation.synthetic={road}/phantom/shards/gan/train")
    with pytest.raises(DataError, match="split test"):
        run(road, "memorisation.reference=test")
    with pytest.raises(UsageError, match="validation, test"):
        run(road, "memorisation.reference=train")
    (road / "phantom/shards/unet/validation").unlink()
    write_set(road / "phantom/shards/unet/validation", range(5000, 5010), ["sub-3"], make=make_patch)
    with pytest.raises(SystemExit) as stopped:
        exit_on_error(lambda: run(road))
    assert stopped.value.code == 3 and "sub-3" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", "[]", '{"sha256": "x", "hashes": {}}', '{"a": ["x"]}', ""])
def test_a_damaged_cache_hides_no_overlap(real_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, text):
    shards = ShardSet(real_shards / "gan/train")
    hashes = reference._cached_hashes(shards, tmp_path)
    assert len(hashes) > 1 and reference._cached_hashes(shards, tmp_path) == hashes
    next(tmp_path.iterdir()).write_text(text)
    assert reference._cached_hashes(shards, tmp_path) == hashes
    assert "damaged" in caplog.text
