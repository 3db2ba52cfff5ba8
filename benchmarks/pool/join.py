"""Exact self-join of 64-bit hashes at radius 6, beside FAISS IndexBinaryFlat on the same cores.

FAISS answers 2,000 queries; its time for all is extrapolated, and its answers must be ours. Clustered hashes are
100,000 centres with ten copies each, of which up to three bits are flipped. Needs 1 GB of memory.
"""

import time

import numpy as np
from joblib import cpu_count

from benchmarks.pool.rows import peak_gb, row
from medq_ray.pool.hamming import near_pairs

RADIUS, QUERIES = 6, 2_000


def random_hashes(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2**64 - 1, count, np.uint64, endpoint=True)


def clustered_hashes(count: int, rng: np.random.Generator) -> np.ndarray:
    hashes = np.repeat(random_hashes(count // 10, rng), 10)
    for _ in range(3):
        bit = np.uint64(1) << rng.integers(0, 64, count, np.uint64)
        hashes ^= np.where(rng.random(count) < 0.8, bit, np.uint64(0))
    return rng.permutation(hashes)


def join(hashes: np.ndarray) -> tuple[float, int, int]:
    """(seconds, pairs, how many of the first QUERIES hashes' neighbours were found, each of a pair's ends counted)."""
    start, pairs, asked = time.perf_counter(), 0, 0
    for left, right in near_pairs(hashes, RADIUS):
        pairs += len(left)
        asked += int((left < QUERIES).sum() + (right < QUERIES).sum())
    return time.perf_counter() - start, pairs, asked


def by_faiss(hashes: np.ndarray) -> tuple[float, int]:
    """(seconds for all, extrapolated; neighbours of the first QUERIES hashes, themselves not counted)."""
    import faiss

    faiss.omp_set_num_threads(cpu_count())
    codes = hashes.view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryFlat(64)
    index.add(codes)
    start = time.perf_counter()
    bounds, _, _ = index.range_search(codes[:QUERIES], RADIUS + 1)  # finds what is below, strictly
    return (time.perf_counter() - start) * len(hashes) / QUERIES, int(bounds[-1]) - QUERIES


def measure(quick: bool) -> list[dict]:
    count, rows, rng = 100_000 if quick else 1_000_000, [], np.random.default_rng(0)
    for kind, draw in (("random", random_hashes), ("clustered", clustered_hashes)):
        hashes = draw(count, rng)
        join(hashes[: count // 10])  # the first threads and memory
        seconds, pairs, found = join(hashes)
        peer, theirs = by_faiss(hashes)
        assert found == theirs, f"{kind}: {found} neighbours of the first {QUERIES}, FAISS finds {theirs}"
        note = f"{pairs:,} pairs; same neighbours of {QUERIES:,}; peer extrapolated from them"
        rows.append(row(f"join of {count:,} {kind} hashes, radius {RADIUS}", seconds, peer, peer / seconds, "s", note))
    small = rows[0]["ours"]
    seconds, pairs, _ = join(random_hashes(10 * count, rng))
    note = f"{pairs:,} pairs; growth over {count:,}; peak memory {peak_gb():.2f} GB"
    name = f"join of {10 * count:,} random hashes, radius {RADIUS}"
    rows.append(row(name, seconds, small, seconds / small, "s", note))
    return rows
