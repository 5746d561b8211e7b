"""Which patch goes into which shard, at the paper's size."""

from collections import Counter
from pathlib import Path

from data_prep import shard_plan
from data_prep.shard_plan import PatchRange
from vesselgan.formats.cohort import Cohort, Subject


def the_papers_cohort() -> Cohort:
    splits = ["train"] * 47 + ["validation"] * 12 + ["test"] * 13
    facts = {"label": None, "mask": None, "shape": (312, 384, 127), "spacing_mm": (0.5, 0.5, 0.7), "limits": (0.0, 1.0)}
    facts |= {"num_clipped": 0, "image_sha256": "", "label_sha256": None, "image": Path("image.nii.gz")}
    return Cohort(
        "pegasus", (0.0, 99.99), {f"sub-{i:02d}": Subject(split=split, **facts) for i, split in enumerate(splits)}
    )


def test_the_papers_numbers_come_out(cohort):
    prepare = cohort(0).prepare
    prepare.patch_shape, prepare.pairs_per_shard = [128, 128, 64], 256
    prepare.num_vessel_patches_gan, prepare.num_vessel_patches_unet = 32, 250
    shards = shard_plan.plan_shards(the_papers_cohort(), prepare, ["unet", "gan"])
    pairs, files = Counter(), Counter()
    for shard in shards:
        pairs[shard.purpose, shard.split] += shard.count
        files[shard.purpose, shard.split] += 1
    assert pairs == {("gan", "train"): 2350, ("unet", "train"): 11750, ("unet", "validation"): 3000}
    assert files == {("gan", "train"): 10, ("unet", "train"): 46, ("unet", "validation"): 12}  # ceil(pairs / 256)
    assert [shard.count for shard in shards[:10]] == [256] * 9 + [2350 - 9 * 256]
    assert len({shard.name for shard in shards}) == len(shards)


def test_a_shard_holds_neighbours_and_patches_once(cohort):
    prepare = cohort(0).prepare
    prepare.patch_shape, prepare.pairs_per_shard, prepare.num_vessel_patches_unet = [128, 128, 64], 6, 4
    shards = [s for s in shard_plan.plan_shards(the_papers_cohort(), prepare, ["unet"]) if s.split == "validation"]
    assert shards[0].ranges == (PatchRange("sub-47", 0, 4), PatchRange("sub-48", 0, 2))
    assert shards[1].ranges == (PatchRange("sub-48", 2, 4), PatchRange("sub-49", 0, 4))
    patches = [(part.subject, i) for shard in shards for part in shard.ranges for i in range(part.start, part.stop)]
    assert patches == [(f"sub-{n}", i) for n in range(47, 59) for i in range(4)]
