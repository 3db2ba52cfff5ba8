"""Threshold search is exact, strict and independent of the order of rows."""

import numpy as np
import pytest

from medq_ray.pool import search
from medq_ray.schema import HIT


def units(n: int, d: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ids(n: int) -> list[str]:
    return [f"{(i * 7919) % 65521:016x}" for i in range(n)]


@pytest.mark.parametrize("block", [7, 64, 65_536])
def test_finds_exactly_the_pairs_above_tau(monkeypatch, block):
    monkeypatch.setattr(search, "BLOCK", block)
    anchors, images, names = units(5, 16, 0), units(300, 16, 1), ids(300)
    hits = search.within(anchors, names, images, 0.3)
    assert hits.schema == HIT
    expected = {
        (names[i], j) for i in range(300) for j in range(5) if float(images[i].astype(float) @ anchors[j]) > 0.3
    }
    found = list(zip(hits["image_id"].to_pylist(), hits["prototype_id"].to_pylist(), strict=True))
    assert set(found) == expected and len(found) == len(expected)
    assert found == sorted(found)


def test_the_threshold_itself_is_not_a_hit():
    axes = np.eye(2, dtype=np.float32)
    assert search.within(axes[:1], ["a", "b"], axes, 0.0)["image_id"].to_pylist() == ["a"]
    assert search.within(axes[:1], ["a", "b"], axes, 1.0).num_rows == 0


def test_permuting_rows_changes_nothing():
    anchors, images, names = units(4, 32, 2), units(500, 32, 3), ids(500)
    order = np.random.default_rng(0).permutation(500)
    straight = search.within(anchors, names, images, 0.1)
    assert straight.equals(search.within(anchors, [names[i] for i in order], images[order], 0.1))


def test_no_prototypes_and_no_images():
    assert search.within(np.empty((0, 8), np.float32), ids(3), units(3, 8, 0), -1).num_rows == 0
    assert search.within(units(2, 8, 0), [], np.empty((0, 8), np.float32), -1).num_rows == 0
