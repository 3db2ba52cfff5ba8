"""Duplicates agree in hash, thumbnail and quality; groups have one owner each, whatever the order of rows; likenesses
keep scenes together."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_hamming import flipped, hashes_of

from medq_ray.pool import dedup, hamming
from medq_ray.pool.hashing import phash, quality, thumb
from medq_ray.synthetic.world import make_image

FLAT = bytes(256)


def table(rows: list[tuple]) -> pa.Table:
    """Of (image_id, phash, sharpness, noise) or the same with a thumbnail."""
    ids, hashes, sharpness, noise, thumbs = zip(*((*row, FLAT)[:5] for row in rows), strict=True)
    return pa.table(
        {
            "image_id": pa.array(ids, pa.string()),
            "phash": pa.array(hashes, pa.uint64()),
            "sharpness": pa.array(sharpness, pa.float32()),
            "noise": pa.array(noise, pa.float32()),
            "thumb": pa.array(thumbs, pa.binary(256)),
        }
    )


def groups(rows, radius=4, tolerance=0.1):
    return dedup.duplicate_groups(table(rows), radius=radius, tolerance=tolerance)


def measured(images: dict[str, np.ndarray]) -> list[tuple]:
    return [(name, phash(pixels), *quality(pixels), thumb(pixels)) for name, pixels in images.items()]


# --- duplicates ---


def test_the_smallest_id_owns_the_group():
    assert groups([("c", 0, 1, 1), ("a", 1, 1, 1), ("b", 3, 1, 1)]) == {"a": "a", "b": "a", "c": "a"}


def test_quality_must_agree():
    twins = [("clean", 5, 10.0, 1.0), ("blurred", 5, 4.0, 1.0), ("noisy", 5, 10.0, 3.0), ("copy", 5, 10.5, 1.05)]
    assert groups(twins) == {"clean": "clean", "blurred": "blurred", "noisy": "noisy", "copy": "clean"}


def test_noise_may_differ_by_three_times_the_tolerance():
    assert groups([("a", 0, 10, 1.0), ("b", 0, 10, 0.75)]) == {"a": "a", "b": "a"}
    assert groups([("a", 0, 10, 1.0), ("b", 0, 10, 0.65)]) == {"a": "a", "b": "b"}
    assert groups([("a", 0, 10, 1.0), ("b", 0, 8.5, 1.0)]) == {"a": "a", "b": "b"}


def test_thumbnails_must_agree():
    half = bytes([1] * 64 + [0] * 192)  # a quarter of the pixels differs by one level: 0.5 in the root mean square
    more = bytes([1] * 65 + [0] * 191)
    assert groups([("a", 0, 1, 1), ("b", 0, 1, 1, half)]) == {"a": "a", "b": "a"}
    assert groups([("a", 0, 1, 1), ("b", 0, 1, 1, more)]) == {"a": "a", "b": "b"}
    balanced = bytes([9] * 128 + [11] * 128)  # of the same mean as the other
    assert groups([("a", 0, 1, 1, bytes([10] * 256)), ("b", 0, 1, 1, balanced)]) == {"a": "a", "b": "b"}


def test_the_radius_counts_bits_and_includes_itself():
    rows = [("a", 0, 1, 1), ("b", 0b1111, 1, 1), ("c", 2**63 | 0b1111, 1, 1)]
    assert groups(rows) == {"a": "a", "b": "a", "c": "c"}


def test_members_are_compared_with_the_owner_not_chained():
    chain = [("a", 0, 1, 1), ("b", 0b1111, 1, 1), ("c", 0b11111111, 1, 1), ("d", 0b111111111111, 1, 1)]
    assert groups(chain) == {"a": "a", "b": "a", "c": "c", "d": "c"}


def test_no_quality_at_all_agrees_with_itself():
    assert groups([("a", 0, 0, 0), ("b", 0, 0, 0)]) == {"a": "a", "b": "a"}


def test_no_images_have_no_groups():
    assert dedup.duplicate_groups(table([("a", 0, 1, 1)]).slice(1), radius=4, tolerance=0.1) == {}


def crowd(count: int, seed: int) -> list[tuple]:
    """Images of which many are duplicates of many, in all measures, by random ids."""
    rng = np.random.default_rng(seed)
    hashes = flipped(rng.integers(0, 3, count, np.uint64) << np.uint64(40), 6, rng)
    ids = [f"{number:015x}" for number in rng.choice(2**50, count, replace=False)]
    thumbs = (100 + (rng.random((count, 256)) < 0.05) + rng.integers(0, 3, (count, 1))).astype(np.uint8)
    quality = np.exp(rng.normal(0, 0.2, (2, count))).astype(np.float32)
    return list(zip(ids, hashes.tolist(), *quality.tolist(), map(bytes, thumbs), strict=True))


def test_pairs_between_two_sets_are_those_that_would_share_a_group(monkeypatch):
    """Two images alone are one group exactly where they are a pair."""
    rows = sorted(crowd(60, 5))
    images = dedup.Images.of(table(rows), 0.3)
    left, right = np.arange(0, 30), np.arange(20, 60)
    monkeypatch.setattr(dedup, "BETWEEN", 100)
    found = set(zip(*(side.tolist() for side in dedup.between(images, left, right, 4)), strict=True))
    expected = {
        (i, j)
        for i, one in enumerate(left)
        for j, other in enumerate(right)
        if one == other or len(set(groups([rows[one], rows[other]], tolerance=0.3).values())) == 1
    }
    assert found == expected and 20 < len(found) < 1_000


def by_the_definition(rows: list[tuple], radius: int, tolerance: float) -> dict[str, str]:
    """Each id in ascending order joins the smallest owner that it is a duplicate of."""

    def same(one: tuple, other: tuple) -> bool:
        (_, a, *measures, here), (_, b, *others, there) = one, other
        close = all(
            abs(x - y) <= limit * max(x, y)
            for x, y, limit in zip(measures, others, (tolerance, 3 * tolerance), strict=True)
        )
        apart = sum((x - y) ** 2 for x, y in zip(here, there, strict=True)) / 256
        return close and (a ^ b).bit_count() <= radius and apart <= 0.25

    owners: list[tuple] = []
    result = {}
    for row in sorted(rows):
        owner = next((other for other in owners if same(row, other)), row)
        result[row[0]] = owner[0]
        owners += [row] if owner is row else []
    return result


@pytest.mark.parametrize("first_ids", [3, 50, 1_024])
@pytest.mark.parametrize("tolerance", [0.1, 1.0])
def test_groups_are_those_of_the_definition(monkeypatch, first_ids, tolerance):
    rows = crowd(250, 1)
    monkeypatch.setattr(dedup, "FIRST_IDS", first_ids)
    expected = by_the_definition(rows, 4, tolerance)
    assert groups(rows, 4, tolerance) == expected
    assert 5 < len(set(expected.values())) < 245  # neither all alone nor all in one


@pytest.mark.parametrize("block", [7, 1_000])
def test_order_shards_and_block_size_change_nothing(monkeypatch, block):
    rows = crowd(300, 2)
    reference = groups(rows)
    monkeypatch.setattr(dedup, "BLOCK", block)
    monkeypatch.setattr(hamming, "BLOCK", block)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(300)
        cuts = np.split(order, [40, 41, 200])
        shards = pa.concat_tables([table([rows[i] for i in shard]) for shard in cuts])
        assert dedup.duplicate_groups(shards, radius=4, tolerance=0.1) == reference


def test_owners_alone_own_themselves_again():
    """What is left after duplicates are dropped has no duplicates, so a second pass or a retry drops nothing more."""
    rows = crowd(300, 3)
    owners = set(groups(rows).values())
    assert groups([row for row in rows if row[0] in owners]) == {name: name for name in owners}


def test_larger_ids_never_change_the_groups_of_smaller_ones():
    rows = sorted(crowd(300, 4))
    whole = groups(rows)
    for count in (1, 100, 250):
        assert groups(rows[:count]) == {name: whole[name] for name, *_ in rows[:count]}


def test_a_hundred_thousand_images_of_one_hash():
    """They would make five thousand million pairs. Half of them are alike, the others are sharper by 1 % each."""
    count = 100_000
    sharpness = np.full(count, 5.0, np.float32)
    sharpness[1::2] *= 1.01 ** (np.arange(count // 2) % 400)
    many = pa.table(
        {
            "image_id": [f"{i:06d}" for i in range(count)],
            "phash": pa.array(np.zeros(count, np.uint64)),
            "sharpness": sharpness,
            "noise": pa.array(np.ones(count, np.float32)),
            "thumb": pa.array([FLAT] * count, pa.binary(256)),
        }
    )
    owners = dedup.duplicate_groups(many, radius=4, tolerance=0.1)
    assert all(owners[f"{i:06d}"] == "000000" for i in range(0, count, 2))
    # 400 steps of 1 %; an owner takes the 10 that follow it: what is at most 10 % below the larger one.
    assert len(set(owners.values())) == 400 // 11 + 1


# --- what the limits are for ---


@pytest.mark.parametrize(
    ("modality", "degradation"),
    [
        ("mri", "blur"),
        ("mri", "motion"),
        ("ct", "noise"),
        ("ct", "metal"),
        ("endoscopy", "blur"),
        ("fundus", "haze"),
        ("histopathology", "stain"),
    ],
)
def test_a_degraded_twin_stays_apart(modality, degradation):
    images = {"clean": make_image(modality, "none", "none", 7, 112)[0]}
    images |= {level: make_image(modality, degradation, level, 7, 112)[0] for level in ("mild", "severe")}
    assert groups(measured(images)) == {name: name for name in images}


@pytest.mark.parametrize("modality", ["mri", "ct", "endoscopy", "fundus", "histopathology"])
def test_a_copy_merges(modality):
    image = Image.fromarray(make_image(modality, "none", "none", 7, 384)[0])
    images = {"0": np.asarray(image)}
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 85})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        images[kind] = np.asarray(Image.open(buffer).convert("RGB"))
    for side in (288, 576, 768):
        images[f"{side}"] = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
    assert set(groups(measured(images)).values()) == {"0"}


# --- likenesses ---


def scene(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC))


def test_likenesses_hold_a_scene_together_whatever_its_quality():
    images = {}
    for seed in range(8):
        clean = scene(seed)
        images[f"{seed} clean"] = clean
        images[f"{seed} dark"] = clean // 2
        grain = np.random.default_rng(1).normal(0, 20, clean.shape)
        images[f"{seed} noisy"] = np.clip(clean + grain, 0, 255).astype(np.uint8)
    expected = {name: f"{name[0]} clean" for name in images}
    rows = measured(images)
    assert dedup.likeness_groups(table(rows), 8) == expected
    assert dedup.likeness_groups(table(rows[::-1]), 8) == expected
    assert len(set(groups(rows).values())) == len(images)


def test_likenesses_chain_near_hashes_but_only_where_thumbnails_correlate():
    ramp, steps = np.arange(256, dtype=np.uint8), np.repeat(np.arange(16, dtype=np.uint8), 16) * 16
    noise = np.random.default_rng(0).integers(0, 256, 256).astype(np.uint8)
    film = [("a", 0, 1, 1, bytes(ramp)), ("b", 0xFF, 9, 1, bytes(steps)), ("c", 0xFFFF, 1, 5, bytes(ramp // 2))]
    other = [("d", 0xFFFF0, 1, 1, bytes(noise)), ("e", 0xFFFFFF, 1, 1, bytes(ramp[::-1])), ("f", 0xFF000, 1, 1, FLAT)]
    result = dedup.likeness_groups(table([*film, *other]), 8)
    assert result == {"a": "a", "b": "a", "c": "a", "d": "d", "e": "e", "f": "f"}


def test_equal_hashes_are_likenesses():
    rows = [("a", 7, 1, 1, bytes(range(256))), ("b", 7, 1, 1, FLAT)]
    assert dedup.likeness_groups(table(rows), 4) == {"a": "a", "b": "a"}


def test_likenesses_are_the_same_however_often_they_are_merged(monkeypatch):
    rng = np.random.default_rng(5)
    hashes = flipped(hashes_of("random", 20)[rng.integers(0, 20, 400)], 4, rng)
    rows = [(f"{i:03d}", int(value), 1, 1, bytes(range(256))) for i, value in enumerate(hashes)]
    reference = dedup.likeness_groups(table(rows), 6)
    assert 15 <= len(set(reference.values())) < 60
    monkeypatch.setattr(dedup, "BLOCK", 5)
    monkeypatch.setattr(hamming, "BLOCK", 5)
    assert dedup.likeness_groups(table(rows), 6) == reference
