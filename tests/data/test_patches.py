"""What training reads: the right pairs, the same batches however they are spread, and no waiting for the dead."""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vesselgan.core.errors import DataError, ResourceError, UsageError, exit_on_error
from vesselgan.data.patches import ShardDataset, stream
from vesselgan.formats.shards import ShardSet

from ..conftest import flip_bit

MakeSet = Callable[..., ShardSet]


@pytest.fixture
def keep_signal_handler() -> Iterator[None]:
    """A DataLoader of torch's own leaves a handler behind that raises wherever a later worker dies."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("keep_signal_handler")
@pytest.mark.parametrize("start_method", [None, "fork", "spawn", "forkserver"])
def test_a_plain_loader_reads_a_folder(make_set, start_method):
    shards = make_set("made", range(6), "synthetic")
    patches = ShardDataset(str(shards.folder))
    expected = torch.stack(list(patches))
    assert torch.equal(patches[-6:], expected) and torch.equal(patches[-1], expected[5])
    assert torch.equal(expected[3, 1], torch.from_numpy(shards.label(3)).float())
    assert expected[:, 0].amin() == -1 and expected[:, 0].amax() == 1
    how = {} if start_method is None else {"num_workers": 1, "multiprocessing_context": start_method}
    assert torch.equal(torch.cat(list(DataLoader(patches, batch_size=4, **how))), expected)


def test_choices_out_of_range_are_refused(make_set):
    shards = make_set()
    for wrong in ({"intensity": "float"}, {"scaling": "slice"}):
        with pytest.raises(UsageError, match=next(iter(wrong.values()))):
            ShardDataset(shards, **wrong)
    with pytest.raises(UsageError):
        ShardDataset([])


def dataset(*shard_sets: ShardSet, intensity: str = "byte", **options: object) -> ShardDataset:
    settings = {"scaling": "volume", "label_threshold": 0.5, "intensity": intensity, **options}
    return ShardDataset(list(shard_sets), **settings)


def image_number(patch_CXYZ: Tensor) -> int:
    return int(patch_CXYZ[0, 1, 1, 1])


def label_number(patch_CXYZ: Tensor) -> int:
    return int(sum(patch_CXYZ[1].flatten()[bit] * 2**bit for bit in range(8)))


def batches(data: ShardDataset, start: int = 3, stop: int = 11, **options: object) -> list[Tensor]:
    return list(stream(data, batch_size=4, seed=7, start=start, stop=stop, **options))


def test_the_tissue_map_is_a_third_channel(make_set):
    shards = make_set(has_tissue=True)
    data = dataset(shards, with_tissue=True)
    for _ in range(2):  # read, then cached
        assert data[3].shape == (3, 4, 4, 2) and torch.equal(data[3][:2], dataset(shards)[3])
        assert torch.equal(data[3][2], torch.from_numpy(shards.tissue(3)) / 2)
    (turned,) = data.read([3], [1])
    assert torch.equal(turned, data[3].flip(1))
    with pytest.raises(DataError, match="masks"):
        dataset(make_set("without"), with_tissue=True)[0]


def test_images_span_the_range_of_their_network(make_set):
    shards = make_set(numbers=range(51, 55))
    for intensity, low, middle, high in (("byte", 0, 51, 255), ("signed", -1, -0.6, 1)):
        patch = dataset(shards, intensity=intensity)[0]
        assert patch.shape == (2, 4, 4, 2) and patch.dtype == torch.float32
        assert patch[0].min() == low and patch[0].max() == high
        assert patch[0, 1, 1, 1].item() == pytest.approx(middle, abs=1e-6)
        assert set(patch[1].unique().tolist()) == {0, 1}
        assert label_number(patch) == 51


def test_every_stored_intensity_has_its_exact_value(make_set):
    shards = make_set(numbers=range(0, 2), shape=(64, 64, 16))
    data = dataset(shards, intensity="signed")
    data._cache[0] = (np.arange(65536, dtype=np.uint16).reshape(64, 64, 16), np.zeros((64, 64, 16), np.uint8))
    image = data[0][0].double().flatten()
    assert image[0] == -1 and image[-1] == 1
    # half a unit in the last place of float32 below 1, 2^-25, and the rounding of 2 / 65535
    assert (image - (2 * torch.arange(65536).double() / 65535 - 1)).abs().max() < 2**-24
    assert (image.diff() > 0).all()


def test_patch_scaling_makes_a_constant_minus_one(make_set):
    shards = make_set(numbers=range(0, 2))
    data = dataset(shards, intensity="signed", scaling="patch")
    data._cache[0] = (np.full((4, 4, 2), 77, np.uint16), np.zeros((4, 4, 2), np.uint8))
    assert (data[0][0] == -1).all()


def test_real_and_synthetic_mix_and_thresholds_apply(make_set):
    real, synthetic = make_set(), make_set("synthetic", range(100, 106), "synthetic")
    data = dataset(real, synthetic)
    assert len(data) == 16
    numbers = [(image_number(data[i]), label_number(data[i])) for i in range(16)]
    assert sorted(numbers) == [(n, n) for n in [*range(10), *range(100, 106)]]
    strict = dataset(real, synthetic, label_threshold=0.51)
    assert [label_number(strict[i]) for i in range(16)] == [n for n, _ in numbers[:10]] + [0] * 6
    for outside in (-17, 16):
        with pytest.raises(IndexError):
            data[outside]


def test_sets_that_do_not_fit_are_refused(make_set):
    real = make_set()
    with pytest.raises(DataError, match=r"real.*\[4, 4, 2\].*wide.*\[4, 4, 4\]"):
        dataset(real, make_set("wide", shape=(4, 4, 4)))
    with pytest.raises(UsageError, match="data.scaling"):
        dataset(real, scaling="slice")
    with pytest.raises(UsageError, match="batch_size=11"):
        stream(dataset(real), batch_size=11, seed=7, start=0, stop=1)


def test_shuffled_labels_are_a_derangement_of_all(make_set):
    data = dataset(make_set(), shuffle_labels_seed=3)
    pairs = [(image_number(data[i]), label_number(data[i])) for i in range(10)]
    assert all(image != label for image, label in pairs)
    assert sorted(image for image, _ in pairs) == sorted(label for _, label in pairs) == list(range(10))
    again = dataset(make_set(), shuffle_labels_seed=3)
    assert all(torch.equal(data[i], again[i]) for i in range(10))


def test_ranks_share_the_global_batches(make_set):
    data = dataset(make_set())
    whole = batches(data)
    assert len(whole) == 8 and whole[0].shape == (4, 2, 4, 4, 2)
    for world_size in (2, 4):
        shares = [
            batches(data, of_rank=slice(4 * r // world_size, 4 * (r + 1) // world_size)) for r in range(world_size)
        ]
        assert torch.equal(torch.stack(whole), torch.cat([torch.stack(share) for share in shares], dim=1))


def test_a_stream_resumes_within_an_epoch(make_set):
    data = dataset(make_set())
    whole, later = batches(data, 0, 9), batches(data, 5, 9)
    assert torch.equal(torch.stack(whole[5:]), torch.stack(later))
    assert batches(data, 5, 5) == []
    epoch = [image_number(patch) for batch in whole[2:4] for patch in batch]  # 10 patches: two batches of 4 an epoch
    assert len(set(epoch)) == 8


@pytest.mark.parametrize(
    ("num_workers", "start_method"),
    [(3, "fork"), pytest.param(2, "spawn", marks=pytest.mark.soak)],
)
def test_workers_give_the_same_bytes_as_none(make_set, num_workers, start_method):
    shards = make_set()
    shards[0]  # a handle that is open before the fork
    data = dataset(shards, cache_bytes=0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    got = batches(data, num_workers=num_workers, start_method=start_method)
    assert torch.equal(torch.stack(got), torch.stack(batches(data)))
    assert torch.equal(torch.get_rng_state(), state)  # else a resumed run would draw other latents


def test_the_cache_holds_all_or_nothing(make_set):
    shards = make_set()
    size = 10 * 3 * 4 * 4 * 2
    cached, uncached = dataset(shards, cache_bytes=size), dataset(shards, cache_bytes=size - 1)
    first = torch.stack(batches(cached))
    batches(uncached)
    assert len(cached._cache) == 10 and uncached._cache == {}
    for shard in shards.folder.glob("*.h5"):
        shard.write_bytes(b"")
    shards.close()
    assert torch.equal(torch.stack(batches(cached)), first)
    with pytest.raises(DataError):
        batches(uncached)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_shard_is_named_from_workers_too(make_set, num_workers):
    shards = make_set()
    shards[9]
    offset = shards._open[1].voxels["image"].id.get_chunk_info(2).byte_offset
    shards.close()
    flip_bit(shards.folder / "shard-1.h5", offset)
    with pytest.raises(DataError, match=r"shard-1\.h5: patch 2 of data set image"):
        batches(dataset(shards), 0, 10, num_workers=num_workers)


class Trouble(ShardDataset):
    """A data set that strikes whichever worker reads it."""

    strike: Callable[[], object]

    def read(self, indices: list[int], words: list[int] | None = None) -> Tensor:
        self.strike()
        return super().read(indices, words)


def troubled(make_set: MakeSet, strike: Callable[[], object]) -> Trouble:
    data = Trouble(make_set(), scaling="volume", label_threshold=0.5, intensity="byte")
    data.strike = strike
    return data


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("strike", "named"),
    [
        (kill_self, r"worker \d+ was killed by SIGKILL"),
        (lambda: os._exit(9), r"worker \d+ exited with code 9"),
        (lambda: os.kill(os.getpid(), signal.SIGSTOP), r"workers \d+"),
    ],
)
def test_a_lost_worker_is_named_and_not_awaited(make_set, strike, named, capsys):
    handler, data = signal.getsignal(signal.SIGCHLD), troubled(make_set, strike)
    with pytest.raises(SystemExit) as ended:
        exit_on_error(lambda: batches(data, num_workers=1, start_method="fork", timeout_s=1))
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 6
    assert re.search(rf"{named}.*shard-\d\.h5.*train\.num_workers=0", line), line
    for child in multiprocessing.active_children():  # killed a moment ago: else Python would wait for it when it exits
        child.join(60)
        assert child.exitcode is not None
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_a_death_between_batches_spares_the_step(make_set):
    reads, arrived = iter(range(100)), multiprocessing.get_context("fork").Event()

    def strike() -> None:
        if next(reads) == 1:
            arrived.wait(60)  # a batch on its way needs its worker alive
            kill_self()

    running = stream(
        troubled(make_set, strike), batch_size=4, seed=7, start=0, stop=9, num_workers=1, start_method="fork"
    )
    assert next(running).shape[0] == 4
    arrived.set()
    time.sleep(0.5)  # it is dead by now; DataLoader's own handler would have raised here
    with pytest.raises(ResourceError, match="SIGKILL"):
        next(running)


def test_a_bug_in_a_worker_stays_a_bug(make_set):
    def strike() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug") as caught:
        batches(troubled(make_set, strike), num_workers=1, start_method="fork")
    assert not isinstance(caught.value, ResourceError)


def test_leaving_a_stream_early_ends_its_workers(make_set, tmp_path):
    before = set(multiprocessing.active_children())
    running = stream(dataset(make_set()), batch_size=4, seed=7, start=0, stop=10**6, num_workers=2)
    next(running)
    assert len(set(multiprocessing.active_children()) - before) == 2
    running.close()
    deadline = time.monotonic() + 10
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(multiprocessing.active_children()) <= before
