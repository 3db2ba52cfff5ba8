"""Near-duplicates that keep the training signal, and likenesses that keep unknown patients together.

An exact self-join of 64-bit hashes finds what could be alike; what is alike is decided by thumbnails and quality.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from medq_ray.pool.hamming import BLOCK, Pairs, distinct_pairs, spans

FIRST_IDS = 1 << 10
"""Images that are grouped first; each later block of ids is as many as all before it."""
BETWEEN = 1 << 20
"""Pairs of hashes that `between` holds at one time: 8 MB."""
THUMB_LIMIT = 0.5
"""Largest root mean square difference of duplicates' thumbnails, in grey levels. At 256 pixels, JPEG 75 to 95 and other
sizes stay below it for 99 % of images, 7 % of mildly degraded twins do."""
NOISE_FACTOR = 3
"""The noise measure may differ by this many times the tolerance: a JPEG of quality 75 moves noise by up to 30 % where
it moves sharpness by less than 10 %."""
LIKENESS = 0.97
"""Likenesses have thumbnails that correlate above this, as CT slices of one patient do in their pixels (29 public
CT-MAR images)."""


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


def between(images: Images, left: np.ndarray, right: np.ndarray, radius: int) -> Pairs:
    """All (i, j) such that images left[i] and right[j] are duplicates, as `duplicate_groups` defines them, or the same.

    Every pair is looked at, at half a nanosecond each core: for thousands beside thousands, not for a pool.
    """
    left_hashes, right_hashes = (images.hashes[images.slot[side]] for side in (left, right))
    found = [np.empty((2, 0), np.intp)]
    for low in range(0, len(left), rows := max(1, BETWEEN // max(1, len(right)))):
        part = left[low : low + rows]
        i, j = np.nonzero(np.bitwise_count(left_hashes[low : low + rows, None] ^ right_hashes) <= radius)
        keep = images.same(part[i], right[j])
        found.append(np.stack([i[keep] + low, j[keep]]))
    i, j = np.concatenate(found, axis=1)
    return i, j


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
