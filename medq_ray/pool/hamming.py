"""The exact self-join of 64-bit hashes: all pairs within a Hamming radius, for millions of them on a few cores."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise

import numpy as np

BLOCK = 1 << 15
"""Rows, pairs or candidates handled at once: the arrays of a block of hashes stay in a core's cache, two blocks of
thumbnails are 16 MB."""
SAMPLE = 1 << 18
"""Hashes from which the cost of a join is estimated."""

Pairs = tuple[np.ndarray, np.ndarray]
"""Two index arrays of one length: the left and the right ends of pairs."""


@dataclass(frozen=True)
class Chunk:
    """Neighbouring bits of a hash, at most 16."""

    shift: np.uint64
    ones: np.uint64

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """Their values, uint16, which numpy sorts by counting: 3 ns a row where 64 bits take 50."""
        return (hashes >> self.shift & self.ones).astype(np.uint16)

    @property
    def mask(self) -> np.uint64:
        return self.ones << self.shift


def chunks(count: int) -> list[Chunk]:
    """The 64 bits cut into `count` (4 to 64) chunks of about equal length."""
    edges = [64 * i // count for i in range(count + 1)]
    return [Chunk(np.uint64(low), np.uint64((1 << (high - low)) - 1)) for low, high in pairwise(edges)]


def joined(parts: list[Chunk]) -> np.uint64:
    """The mask of several chunks."""
    return np.bitwise_or.reduce(np.array([part.mask for part in parts], np.uint64), initial=np.uint64(0))


def chunk_count(hashes: np.ndarray, radius: int) -> int:
    """How many chunks make the join cheapest: few leave too many pairs to compare, many leave too many choices.

    A choice costs about five comparisons a row, to bring equal chunks together. How many pairs have equal chunks is
    counted in the data, of which medical images make anything but random bits.
    """
    sample = hashes[:: -(-len(hashes) // SAMPLE)]
    scale = (len(hashes) / len(sample)) ** 2
    costs = {}
    for count in range(max(radius, 4), min(radius + 6, 64) + 1):
        equal = np.sort(sample & joined(chunks(count)[: count - radius]))
        pairs = float(followers(equal, ~np.uint64(0)).sum()) * scale
        costs[count] = math.comb(count, radius) * (5 * len(hashes) + pairs)
    return min(costs, key=costs.__getitem__)


def followers(hashes: np.ndarray, mask: np.uint64) -> np.ndarray:
    """For each row, how many rows after it equal it in the bits of `mask`; equal rows must be neighbours."""
    ends = np.append(np.flatnonzero((hashes[1:] ^ hashes[:-1]) & mask != 0), len(hashes) - 1)
    return np.repeat(ends, np.diff(ends, prepend=-1)) - np.arange(len(hashes))


def compare(hashes: np.ndarray, mask: np.uint64, earlier: list[np.uint64], radius: int) -> Iterator[Pairs]:
    """Pairs of rows within `radius` that are equal in `mask` and differ in each of the `earlier` masks; rows equal in
    `mask` must be neighbours."""
    follow = followers(hashes, mask)
    left, rows = len(hashes) - np.cumsum(np.bincount(follow)), None
    for step in range(1, len(left)):  # left[step - 1] rows have an equal one `step` rows on
        if 4 * left[step - 1] > len(hashes):  # all rows in order are faster than picking some
            near = np.flatnonzero(np.bitwise_count(hashes[step:] ^ hashes[:-step]) <= radius)
            near = near[follow[near] >= step]
        else:
            rows = np.flatnonzero(follow >= step) if rows is None else rows[follow[rows] >= step]
            near = rows[np.bitwise_count(hashes[rows] ^ hashes[rows + step]) <= radius]
        for other in earlier:
            near = near[(hashes[near] ^ hashes[near + step]) & other != 0]
        if near.size:
            yield near, near + step


def descend(hashes: np.ndarray, parts: list[Chunk], chosen: tuple, depth: int, radius: int) -> Iterator[Pairs]:
    """Pairs of rows within `radius` whose first `depth` equal chunks start with the `chosen` ones; rows that are
    equal in those must be neighbours."""
    if len(chosen) == depth:
        earlier = [parts[i].mask for i in range(max(chosen, default=0)) if i not in chosen]
        yield from compare(hashes, joined([parts[i] for i in chosen]), earlier, radius)
        return
    for i in range(chosen[-1] + 1, len(parts) - depth + len(chosen) + 1):
        order = np.argsort(parts[i].of(hashes), kind="stable")  # stable: the chosen chunks stay in order within
        for left, right in descend(hashes[order], parts, (*chosen, i), depth, radius):
            yield order[left], order[right]


def batches(pairs: Iterator[Pairs], rows: np.ndarray) -> Iterator[Pairs]:
    """The same pairs as indices of `rows`, in few arrays of about BLOCK."""
    held, size = [], 0
    for block in chain(pairs, [None]):
        if block is not None:
            held.append(block)
            size += len(block[0])
        if size >= BLOCK or (block is None and held):
            yield tuple(rows[np.concatenate(side)] for side in zip(*held, strict=True))
            held, size = [], 0


def tasks(hashes: np.ndarray, radius: int) -> Iterator[Iterator[Pairs]]:
    """The join in independent parts that together yield each pair once."""
    count = chunk_count(hashes, radius)
    parts, depth = chunks(count), count - radius
    if depth == 0:  # nothing need be equal: all with all
        yield batches(descend(hashes, parts, (), 0, radius), np.arange(len(hashes)))
        return
    for first in range(radius + 1):
        keys = parts[first].of(hashes)
        order = np.argsort(keys, kind="stable")
        keys, ordered = keys[order], hashes[order]
        starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
        cuts = starts[np.minimum(np.searchsorted(starts, np.arange(0, len(keys), BLOCK)), len(starts) - 1)]
        cuts = [*np.unique(cuts).tolist(), len(keys)]
        for low, high in pairwise(cuts):
            yield batches(descend(ordered[low:high], parts, (first,), depth, radius), order[low:high])


def on_all_cores(tasks: Iterator[Iterator[Pairs]]) -> Iterator[Pairs]:
    """The items of all iterators, one of each at a time, computed a few ahead: numpy lets go of the interpreter."""
    from concurrent.futures import ThreadPoolExecutor

    from joblib import cpu_count

    workers = min(cpu_count(), 8)
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque((task, pool.submit(next, task, None)) for task in islice(tasks, workers + 1))
        while ahead:
            task, future = ahead.popleft()
            pairs = future.result()
            if pairs is None:
                task = next(tasks, None)
            else:
                yield pairs
            if task is not None:
                ahead.append((task, pool.submit(next, task, None)))


def distinct_pairs(hashes: np.ndarray, radius: int) -> Iterator[Pairs]:
    """All pairs of rows of distinct hashes that differ by at most `radius` bits, each once, in either order.

    With the 64 bits in k chunks, two hashes within r bits are equal in k - r chunks or more. For each choice of k - r
    chunks, equal ones are brought together and compared. A pair counts for the first choice that finds it.
    """
    if len(hashes) > 1:
        yield from on_all_cores(tasks(hashes, radius))


def spans(starts: np.ndarray, lengths: np.ndarray) -> Iterator[Pairs]:
    """All (i, starts[i] + n) with n < lengths[i], in blocks of at most BLOCK."""
    ends = np.cumsum(lengths, dtype=np.int64)
    for low in range(0, int(ends[-1]) if len(ends) else 0, BLOCK):
        flat = np.arange(low, min(low + BLOCK, int(ends[-1])))
        i = np.searchsorted(ends, flat, side="right")
        yield i, starts[i] + flat - (ends[i] - lengths[i])


def near_pairs(hashes: np.ndarray, radius: int) -> Iterator[Pairs]:
    """All pairs (i, j) of rows with i < j whose hashes differ by at most `radius` (0 to 64) bits, each once, exact.

    hashes: uint64 (N,), equal ones allowed. Yields index arrays in bounded blocks, in an order that depends on the
    hashes alone. Ten million hashes take well below 4 GB beside the pairs.
    """
    rows = np.argsort(hashes)
    ordered = hashes[rows]
    starts = np.flatnonzero(np.diff(ordered, prepend=~ordered[:1]))
    counts = np.diff(starts, append=len(rows))
    repeated = np.flatnonzero(counts > 1)
    for left, right in chain([(repeated, repeated)], distinct_pairs(ordered[starts], radius)):
        for pair, n in spans(np.zeros(len(left), np.int64), counts[left] * counts[right]):
            a, b = left[pair], right[pair]
            i, j = rows[starts[a] + n // counts[b]], rows[starts[b] + n % counts[b]]
            keep = (a != b) | (i < j)
            if keep.any():
                yield np.minimum(i, j)[keep], np.maximum(i, j)[keep]
