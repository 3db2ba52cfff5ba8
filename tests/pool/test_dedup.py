"""Duplicates need both hash and quality; groups have one owner each, whatever the order of rows."""

import numpy as np
import pyarrow as pa
import pytest

from medq_ray.pool import dedup


def table(rows: list[tuple[str, int, float, float]]) -> pa.Table:
    ids, hashes, sharpness, noise = zip(*rows, strict=True)
    return pa.table(
        {
            "image_id": pa.array(ids),
            "phash": pa.array(hashes, pa.uint64()),
            "sharpness": pa.array(sharpness, pa.float32()),
            "noise": pa.array(noise, pa.float32()),
        }
    )


def groups(rows, radius=4, tolerance=0.1):
    return dedup.duplicate_groups(table(rows), radius=radius, tolerance=tolerance)


def test_the_smallest_id_owns_the_group():
    assert groups([("c", 0, 1, 1), ("a", 1, 1, 1), ("b", 3, 1, 1)]) == {"a": "a", "b": "a", "c": "a"}


def test_a_degraded_twin_with_the_same_hash_stays_apart():
    twins = [("clean", 5, 10.0, 1.0), ("blurred", 5, 4.0, 1.0), ("noisy", 5, 10.0, 3.0), ("copy", 5, 10.5, 1.05)]
    assert groups(twins) == {"clean": "clean", "blurred": "blurred", "noisy": "noisy", "copy": "clean"}


def test_the_radius_counts_bits_and_includes_itself():
    rows = [("a", 0, 1, 1), ("b", 0b1111, 1, 1), ("c", 2**63 | 0b1111, 1, 1)]
    assert groups(rows) == {"a": "a", "b": "a", "c": "c"}


def test_members_are_compared_with_the_owner_not_chained():
    chain = [("a", 0, 1, 1), ("b", 0b1111, 1, 1), ("c", 0b11111111, 1, 1), ("d", 0b111111111111, 1, 1)]
    assert groups(chain) == {"a": "a", "b": "a", "c": "c", "d": "c"}


def test_no_quality_at_all_agrees_with_itself():
    assert groups([("a", 0, 0, 0), ("b", 0, 0, 0)]) == {"a": "a", "b": "a"}


@pytest.mark.parametrize("block", [3, 50, 2_048])
def test_order_and_block_size_change_nothing_and_owners_are_near(monkeypatch, block):
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**63, 20, np.uint64)
    rows = []
    for i in range(200):
        flips = sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 4), replace=False))
        rows.append((f"{rng.integers(2**60):015x}", int(centres[i % 20]) ^ flips, 1 + 0.1 * rng.random(), 2.0))
    reference = groups(rows)
    monkeypatch.setattr(dedup, "BLOCK", block)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(200)
        assert groups([rows[i] for i in order]) == reference
    hashes = {name: value for name, value, _, _ in rows}
    for name, owner in reference.items():
        assert owner <= name and reference[owner] == owner
        assert (hashes[name] ^ hashes[owner]).bit_count() <= 4
    assert 20 <= len(set(reference.values())) < 100
