"""One tree cut many times says what a fit for each number of clusters says."""

import numpy as np
import pytest

from medq_ray.evaluate import clusters
from medq_ray.evaluate.clusters import cluster, distances, linkage, silhouettes


def blobs(count: int, groups: int, spread: float = 1.0, dim: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return spread * rng.standard_normal((count, dim)) + 4 * rng.standard_normal((groups, dim))[np.arange(count) % groups]


def test_every_cut_has_the_labels_and_silhouettes_of_a_fit_of_its_own():
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score, silhouette_samples

    points = blobs(300, 7)
    condensed = distances(points)
    cuts = list(silhouettes(condensed, linkage(condensed), 40))
    assert [found.count for found in cuts] == list(range(40, 1, -1))
    for found in cuts:
        fit = AgglomerativeClustering(found.count, linkage="ward").fit(points)
        assert adjusted_rand_score(fit.labels_, found.labels) == 1
        assert found.silhouettes == pytest.approx(silhouette_samples(points, fit.labels_), abs=1e-9)
    best = max(cuts, key=lambda found: found.silhouette)
    assert np.array_equal(cluster(points, 40).labels, best.labels)


def test_distances_are_scipys(monkeypatch):
    from scipy.spatial.distance import pdist

    monkeypatch.setattr(clusters, "ROWS", 7)
    points = blobs(40, 3)
    assert distances(points) == pytest.approx(pdist(points), abs=1e-9)
    assert distances(np.ones((3, 4))) == pytest.approx(np.zeros(3), abs=clusters.EQUAL)


def test_the_order_of_the_points_changes_no_cluster():
    points = blobs(200, 5)
    order = np.random.default_rng(1).permutation(200)
    first, second = cluster(points, 12).labels[order], cluster(points[order], 12).labels
    assert len(set(zip(first, second, strict=True))) == len(set(first)) == len(set(second)) == 5


def test_repeated_points_stay_together_and_equal_merges_are_not_cut_apart():
    for points in (blobs(6, 6), np.eye(4), blobs(3, 3), blobs(2, 2)):
        found = cluster(np.repeat(points, 10, axis=0), 30)
        labels = found.labels.reshape(len(points), 10)
        assert (labels == labels[:, :1]).all() and found.count == len(np.unique(labels)) == len(points)
        assert found.silhouette == pytest.approx(1)
    square = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]) * 3
    assert {found.count for found in silhouettes(distances(square), linkage(distances(square)), 4)} <= {2, 4}


def test_more_points_than_fit_into_a_tree_are_sampled(monkeypatch):
    points = blobs(900, 6, spread=0.5)
    whole = cluster(points, 12)
    monkeypatch.setattr(clusters, "EXACT", 200)
    some = cluster(points, 12)
    assert len(some.labels) == len(some.silhouettes) == 900
    assert len(set(zip(whole.labels, some.labels, strict=True))) == whole.count == some.count == 6
    assert some.silhouette == pytest.approx(whole.silhouette, abs=0.02)
