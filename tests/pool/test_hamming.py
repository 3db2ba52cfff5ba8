"""The join finds every pair once, in bounded blocks, however the bits are cut."""

import numpy as np
import pytest

from medq_ray.pool import hamming


def flipped(hashes: np.ndarray, times: int, rng: np.random.Generator) -> np.ndarray:
    for _ in range(times):
        bit = np.uint64(1) << rng.integers(0, 64, len(hashes), np.uint64)
        hashes = hashes ^ np.where(rng.random(len(hashes)) < 0.6, bit, np.uint64(0))
    return hashes


def hashes_of(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """random: all 64 bits; clustered: 20 near each of some centres, some of them equal."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64 - 1, count, np.uint64, endpoint=True)
    return hashes if kind == "random" else flipped(hashes[rng.integers(0, count // 20, count)], 5, rng)


def found(hashes: np.ndarray, radius: int) -> list[tuple[int, int]]:
    blocks = list(hamming.near_pairs(hashes, radius))
    return [pair for left, right in blocks for pair in zip(left.tolist(), right.tolist(), strict=True)]


def by_brute_force(hashes: np.ndarray, radius: int) -> list[tuple[int, int]]:
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= radius
    return [tuple(pair) for pair in np.argwhere(np.triu(near, 1)).tolist()]


@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("radius", [*range(11), 20, 63, 64])
def test_the_join_finds_every_pair_once(kind, radius):
    hashes = hashes_of(kind, 400 if radius <= 10 else 100)
    assert sorted(found(hashes, radius)) == by_brute_force(hashes, radius)


@pytest.mark.parametrize("count", range(4, 10))
def test_the_join_is_exact_however_the_bits_are_cut(monkeypatch, count):
    monkeypatch.setattr(hamming, "chunk_count", lambda hashes, radius: max(count, radius))
    monkeypatch.setattr(hamming, "BLOCK", 128)
    hashes = hashes_of("clustered", 500)
    for radius in (count - 3, count - 1, count):
        if radius >= 0:
            assert sorted(found(hashes, radius)) == by_brute_force(hashes, radius)


def test_the_join_bounds_its_blocks(monkeypatch):
    monkeypatch.setattr(hamming, "BLOCK", 100)
    assert max(len(left) for left, _ in hamming.near_pairs(hashes_of("clustered", 1_000), 6)) <= 100


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_hashes_have_no_pairs(count):
    assert found(np.zeros(count, np.uint64), 4) == []


def test_equal_hashes_are_paired_only_as_far_as_anybody_asks():
    pairs = hamming.near_pairs(np.zeros(100_000, np.uint64), 4)  # five thousand million of them
    left, right = next(pairs)
    assert 0 < len(left) <= hamming.BLOCK and (left < right).all()
    pairs.close()
