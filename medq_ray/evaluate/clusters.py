"""Agglomerative clustering whose number of clusters the silhouette criterion chooses (paper Sec. 2.2).

One tree is built and cut many times. Cuts are nested: from one to the next coarser, two clusters become one. So what
the silhouette needs of the distances, each point's sum to each cluster, is read once, for the finest cut; of every
coarser one it is a sum of two columns. That is one pass over n^2 / 2 distances where a fit for each number of clusters
makes two passes for each (`benchmarks.explore`).
"""

from dataclasses import dataclass

import numpy as np

EXACT = 20_000
"""Most points that are put into the tree, which takes 8 n^2 bytes: 3.2 GB. Of more, an even sample is, and each other
point joins the cluster with the nearest mean (our choice)."""
ROWS = 1024
"""Rows of a product of points with points: 8 MB for each thousand points."""
EQUAL = 1e-6
"""Distances as close as this are equal: it is what rounding leaves of the distance of equal points of length 1."""


@dataclass(frozen=True)
class Clusters:
    """A flat clustering of n points."""

    labels: np.ndarray
    """int (n,), from 0."""
    silhouettes: np.ndarray
    """float64 (n,), of each point; NaN where there was nothing to choose."""

    @property
    def count(self) -> int:
        return int(self.labels.max()) + 1 if len(self.labels) else 0

    @property
    def silhouette(self) -> float:
        """Mean over the points."""
        return float(self.silhouettes.mean())


def cluster(points: np.ndarray, most: int) -> Clusters:
    """Clusters of the points, float64 (n, d): Ward's linkage, and of the cuts into 2 ... `most` clusters the one with
    the highest mean silhouette, the coarsest among equals.

    Ward's, since a few odd failures become clusters of their own by average linkage, and the silhouette then likes to
    tell them from all the rest: planted weaknesses were found with an adjusted Rand index of 0.82 to 1.00 instead of
    0.64 to 1.00 (16 sets of them in two worlds). All points alike, or fewer than three, leave nothing to choose: each
    distinct one is a cluster. Points that are all as far from one another are one cluster: no cut of them is better
    than another.
    """
    _, distinct = np.unique(points.round(6), axis=0, return_inverse=True)
    if (count := int(distinct.max()) + 1 if len(points) else 0) < 2 or len(points) < 3:
        return Clusters(distinct.ravel(), np.full(len(points), np.nan))
    if len(points) > EXACT:
        return sampled(points, most)
    condensed = distances(points)
    cuts = list(silhouettes(condensed, linkage(condensed), min(most, count, len(points) - 1)))
    if not cuts:
        return Clusters(np.zeros(len(points), int), np.full(len(points), np.nan))
    best = max(found.silhouette for found in cuts)
    return next(found for found in reversed(cuts) if found.silhouette > best - 1e-9)


def sampled(points: np.ndarray, most: int) -> Clusters:
    """`cluster` of EXACT points at even places, and the others with the nearest mean; silhouettes of the latter are
    those of the cluster that they join."""
    rows = np.linspace(0, len(points) - 1, EXACT).round().astype(int)
    found = cluster(points[rows], most)
    means = np.stack([points[rows[found.labels == label]].mean(axis=0) for label in range(found.count)])
    usual = np.array([found.silhouettes[found.labels == label].mean() for label in range(found.count)])
    labels = np.concatenate([
        ((means**2).sum(axis=1) - 2 * points[low : low + ROWS] @ means.T).argmin(axis=1)
        for low in range(0, len(points), ROWS)
    ])  # fmt: skip
    values = usual[labels]
    labels[rows], values[rows] = found.labels, found.silhouettes
    return Clusters(labels, values)


def distances(points: np.ndarray) -> np.ndarray:
    """float64 (n (n - 1) / 2,): the Euclidean distances in scipy's condensed order, by matrix products."""
    n, squares = len(points), (points**2).sum(axis=1)
    found = np.empty(n * (n - 1) // 2)
    done = 0
    for low in range(0, n, ROWS):
        block = squares[low : low + ROWS, None] + squares[low:] - 2 * (points[low : low + ROWS] @ points[low:].T)
        np.sqrt(np.maximum(block, 0, out=block), out=block)
        for row in range(len(block)):
            right = block[row, row + 1 :]
            found[done : done + len(right)] = right
            done += len(right)
    return found


def linkage(condensed: np.ndarray) -> np.ndarray:
    """scipy's tree of Ward's linkage."""
    from scipy.cluster import hierarchy

    return hierarchy.linkage(condensed, method="ward")


def cut(tree: np.ndarray, clusters: int) -> np.ndarray:
    """int (n,): the node of the tree that each point belongs to when all but the last `clusters` - 1 merges are
    done."""
    n = len(tree) + 1
    top = np.arange(2 * n - clusters)
    for node in range(2 * n - clusters - 1, n - 1, -1):  # from the top: a node's own top is known before its parts'
        top[tree[node - n, :2].astype(int)] = top[node]
    return top[:n]


def silhouettes(condensed: np.ndarray, tree: np.ndarray, most: int):
    """Clusters of each cut into `most` ... 2, the finest first. Cuts through merges of equal height are left out:
    which of them comes first is chance."""
    n = len(tree) + 1
    nodes, labels = np.unique(cut(tree, most), return_inverse=True)
    sums, sizes = sums_to(condensed, labels, most), np.bincount(labels)
    place = {int(node): i for i, node in enumerate(nodes)}
    for clusters in range(most, 1, -1):
        merge = n - clusters  # the next merge
        if tree[merge, 2] - tree[merge - 1, 2] > EQUAL:
            used = np.array(sorted(place.values()))
            number = np.zeros(most, int)
            number[used] = np.arange(clusters)
            yield Clusters(number[labels], values(sums[used], sizes[used], number[labels]))
        left, right = (place.pop(int(node)) for node in tree[merge, :2])
        sums[left] += sums[right]
        sizes[left] += sizes[right]
        labels[labels == right] = left
        place[n + merge] = left


def sums_to(condensed: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """float64 (count, n): the sum of each point's distances to the points of each cluster."""
    n, done = len(labels), 0
    sums = np.zeros((count, n))
    for i in range(n - 1):
        right = condensed[done : done + n - 1 - i]
        sums[labels[i], i + 1 :] += right
        sums[:, i] += np.bincount(labels[i + 1 :], right, count)
        done += len(right)
    return sums


def values(sums: np.ndarray, sizes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 (n,): the silhouette of each point (Rousseeuw 1987), 0 in a cluster of one."""
    points, own = np.arange(len(labels)), sizes[labels]
    inside = sums[labels, points] / np.maximum(own - 1, 1)
    means = sums / sizes[:, None]
    means[labels, points] = np.inf
    outside = means.min(axis=0)
    found = (outside - inside) / np.maximum(np.maximum(inside, outside), np.finfo(float).tiny)
    return np.where(own > 1, found, 0.0)
