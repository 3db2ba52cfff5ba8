"""Near-duplicates that keep the training signal, and likenesses that keep unknown patients together.

An exact self-join of 64-bit hashes finds what could be alike; what is alike is decided by thumbnails and quality.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise

import numpy as np
import pyarrow as pa

BLOCK = 1 << 15
"""Rows, pairs or candidates handled at once: the arrays of a block of hashes stay in a core's cache, two blocks of
thumbnails are 16 MB."""
SAMPLE = 1 << 18
"""Hashes from which the cost of a join is estimated."""
FIRST_IDS = 1 << 10
"""Images that are grouped first; each later block of ids is as many as all before it."""
THUMB_LIMIT = 0.5
"""Largest root mean square difference of duplicates' thumbnails, in grey levels. At 256 pixels, JPEG 75 to 95 and other
sizes stay below it for 99 % of images, 7 % of mildly degraded twins do."""
NOISE_FACTOR = 3
"""The noise measure may differ by this many times the tolerance: a JPEG of quality 75 moves noise by up to 30 % where
it moves sharpness by less than 10 %."""
LIKENESS = 0.97
"""Likenesses have thumbnails that correlate above this, as CT slices of one patient do in their pixels (29 public
CT-MAR images)."""

Pairs = tuple[np.ndarray, np.ndarray]
"""Two index arrays of one length: the left and the right ends of pairs."""


# --- the join: all pairs of hashes within a Hamming radius ---


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


# --- duplicates: hash, thumbnail and quality agree ---


@dataclass(frozen=True)
class Images:
    """What images are compared by, one row an image, by ascending id."""

    ids: list[str]
    hashes: np.ndarray
    """The distinct pHashes, ascending; each is a slot for the images that have it."""
    slot: np.ndarray
    """Slot of each image."""
    thumb: np.ndarray
    measures: dict[str, np.ndarray]
    """grey (mean of the thumbnail), sharpness and noise of each image."""
    tolerance: float

    @classmethod
    def of(cls, table: pa.Table, tolerance: float) -> "Images":
        """table: as `duplicate_groups` takes it."""
        table = table.select(["image_id", "phash", "thumb", "sharpness", "noise"]).sort_by("image_id")
        hashes, slot = np.unique(table["phash"].to_numpy(), return_inverse=True)
        thumb = thumbs(table)
        measures = {name: table[name].to_numpy().astype(np.float64) for name in ("sharpness", "noise")}
        measures["grey"] = thumb.mean(axis=1)  # thumbnails differ by no less than their means do
        return cls(table["image_id"].to_pylist(), hashes, slot, thumb, measures, tolerance)

    def agree(self, measure: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether values of a measure are those of duplicates, elementwise."""
        if measure == "grey":
            return np.abs(left - right) <= THUMB_LIMIT
        tolerance = self.tolerance * (NOISE_FACTOR if measure == "noise" else 1)
        return np.abs(left - right) <= tolerance * np.maximum(left, right)

    def same(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether thumbnails and quality of rows agree, elementwise."""
        result = np.ones(len(left), bool)
        for name, values in self.measures.items():
            result &= self.agree(name, values[left], values[right])
        some = np.flatnonzero(result)
        difference = self.thumb[left[some]].astype(np.int32) - self.thumb[right[some]]
        result[some] = np.einsum("ij,ij->i", difference, difference) <= THUMB_LIMIT**2 * self.thumb.shape[1]
        return result

    def near(self, radius: int) -> Pairs:
        """Slots within `radius` of each slot, itself among them, as (slots, bounds): those of slot s are
        slots[bounds[s] : bounds[s + 1]]. Slots none of whose images agree in some measure are left out."""
        order = np.argsort(self.slot, kind="stable")
        starts = np.searchsorted(self.slot[order], np.arange(len(self.hashes)))
        ranges = {
            name: (np.minimum.reduceat(values[order], starts), np.maximum.reduceat(values[order], starts))
            for name, values in self.measures.items()
        }
        every = np.arange(len(self.hashes), dtype=np.int32)
        left, right = [every], [every]
        for a, b in distinct_pairs(self.hashes, radius):
            for name, (lowest, highest) in ranges.items():
                top, bottom = np.minimum(highest[a], highest[b]), np.maximum(lowest[a], lowest[b])
                keep = (top >= bottom) | self.agree(name, top, bottom)
                a, b = a[keep], b[keep]
            left += [a.astype(np.int32), b.astype(np.int32)]
            right += [b.astype(np.int32), a.astype(np.int32)]
        left, right = np.concatenate(left), np.concatenate(right)
        bounds = np.concatenate([[0], np.cumsum(np.bincount(left, minlength=len(every)))])
        return right[np.argsort(left, kind="stable")], bounds


def thumbs(table: pa.Table) -> np.ndarray:
    """The thumbnails of a table, uint8 (N, 256), without a copy where they lie in one piece."""
    column = table["thumb"].combine_chunks()
    width = column.type.byte_width
    return np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, width)[column.offset :][: len(column)]


def agreeing(images: Images, near: Pairs, rows: np.ndarray, among: np.ndarray) -> Iterator[Pairs]:
    """All (i, j) with i of `among`, j of `rows` and i < j that are duplicates of each other.

    near: of `images.near`. Of the images of a slot only those of about the same grey are looked at.
    """
    slots, bounds = near
    grey = images.measures["grey"]
    place = images.slot * 1_000.0 + grey  # sorts by slot, then by grey
    among = among[np.argsort(place[among])]
    places, own = place[among], images.slot[rows]
    for row, position in spans(bounds[own], bounds[own + 1] - bounds[own]):
        j = rows[row]
        centre = slots[position] * 1_000.0 + grey[j]
        low = np.searchsorted(places, centre - THUMB_LIMIT)
        high = np.searchsorted(places, centre + THUMB_LIMIT, side="right")
        for pair, place_of in spans(low, high - low):
            left, right = among[place_of], j[pair]
            left, right = left[left < right], right[left < right]
            keep = images.same(left, right)
            yield left[keep], right[keep]


def duplicate_groups(table: pa.Table, *, radius: int, tolerance: float) -> dict[str, str]:
    """image_id -> id of its group's owner; an image without duplicates owns itself.

    Two images are duplicates if their pHashes differ by at most `radius` bits, their thumbnails by THUMB_LIMIT grey
    levels, and sharpness and noise by the relative `tolerance`, noise by NOISE_FACTOR times it: pHash hardly sees blur,
    noise, mild motion or the next slice (our choice, DESIGN). Ids are taken in ascending order; each joins the smallest
    owner that it is a duplicate of, or owns a new group. Members are compared with the owner, never chained, so a group
    spans at most 2 x radius bits. Neither the order of rows nor the blocks matter, nor which larger ids are there.

    Merged at radius 4 and tolerance 0.1, by side (`benchmarks.duplicates`, synthetic seeds that chose nothing):

                                          256 px    512 px    real files
        JPEG 75, 85, 95               96 to 100 %    100 %    88 to 91 %    must merge
        other size, 75 to 200 %        76 to 88 %    100 %          94 %    must merge
        half the size                         0 %     98 %          64 %    must merge
        JPEG 85 of degraded ones             75 %     83 %                  must merge
        mildly degraded twins               1.4 %    8.0 %                  must not
        severely degraded twins             0.2 %    1.6 %                  must not
        next slices, other patients           0 %      0 %           0 %    must not

    The twins that merge are MRI (motion, undersampling, at 512 blur by less than a pixel) and one CT with metal. At 112
    pixels no twin merges, but of copies few but lossless ones do: such images are compared by their own pixels.

    table: columns image_id, phash (uint64), thumb (256 bytes), sharpness, noise; ids unique. A million images take
    seconds and 1.5 GB, a hundred thousand of one hash one to three seconds, whatever their quality.
    """
    images = Images.of(table, tolerance)
    near = images.near(radius)
    owner = np.arange(len(images.ids))
    company = (near[1][1:] - near[1][:-1] > 1) | (np.bincount(images.slot) > 1)
    todo = np.flatnonzero(company[images.slot])
    done, size = 0, FIRST_IDS
    while done < len(todo):
        block, earlier = todo[done : done + size], todo[:done]
        for i, j in agreeing(images, near, block, earlier[owner[earlier] == earlier]):
            np.minimum.at(owner, j, i)
        block = block[owner[block] == block]
        found = [np.stack(pairs) for pairs in agreeing(images, near, block, block)]
        found = np.concatenate([np.empty((2, 0), np.intp), *found], axis=1)
        for i, j in found[:, np.lexsort(found)].T.tolist():  # by j, then i
            if owner[j] == j and owner[i] == i:
                owner[j] = i
        done += size
        size = done
    ids = images.ids
    return {name: ids[i] for name, i in zip(ids, owner.tolist(), strict=True)}


# --- likenesses: one scene, whatever its quality ---


def likeness_groups(table: pa.Table, radius: int) -> dict[str, str]:
    """image_id -> smallest id of its group of likenesses, for images whose source does not say whose they are.

    Two images are alike if their pHashes are equal, or differ by at most `radius` bits and their thumbnails correlate
    above LIKENESS; of images with one hash, the smallest id's thumbnail counts. Quality plays no part and groups chain,
    as frames of a film do. Groups are clusters, not proof: at radius 6 they join 77 % of mildly and 64 % of severely
    degraded twins with their clean image, and 2 to 3 % of images are in a group of two or more patients; at radius 8 it
    is 78 %, 65 % and 7 %, since synthetic CT heads are alike (`benchmarks.duplicates`). Exposure, smoke and bubbles
    change the hash by more.

    table: columns image_id, phash (uint64), thumb (256 bytes); ids unique. The order of rows does not matter.
    """
    table = table.select(["image_id", "phash", "thumb"]).sort_by("image_id")
    ids, pixels = table["image_id"].to_pylist(), thumbs(table)
    hashes, first, slot = np.unique(table["phash"].to_numpy(), return_index=True, return_inverse=True)
    group = np.arange(len(hashes))
    held, size = [], 0
    for left, right in distinct_pairs(hashes, radius):
        for low in range(0, len(left), BLOCK):
            a, b = left[low : low + BLOCK], right[low : low + BLOCK]
            keep = correlation(pixels[first[a]], pixels[first[b]]) > LIKENESS
            held.append(np.stack([a[keep], b[keep]]))
            size += int(keep.sum())
        if size > max(len(hashes), BLOCK):
            group, held, size = connected(group, held), [], 0
    _, smallest, group = np.unique(connected(group, held)[slot], return_index=True, return_inverse=True)
    return {name: ids[i] for name, i in zip(ids, smallest[group].tolist(), strict=True)}


def correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pearson's, of rows of uint8 (N, 256); 0 where a row is flat."""
    left, right = (rows - rows.mean(axis=1, dtype=np.float32, keepdims=True) for rows in (left, right))
    scale = np.sqrt(np.einsum("ij,ij->i", left, left) * np.einsum("ij,ij->i", right, right))
    return np.einsum("ij,ij->i", left, right) / np.maximum(scale, 1e-6)


def connected(group: np.ndarray, pairs: list[np.ndarray]) -> np.ndarray:
    """Groups (a number for each row) merged along pairs of rows, as numbers again."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = group[np.concatenate([np.empty((2, 0), np.intp), *pairs], axis=1).astype(np.intp)]
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(group), len(group)))
    return connected_components(graph, directed=False)[1][group]
