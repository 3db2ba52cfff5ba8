"""Near-duplicates that keep the training signal: hash and quality must agree before two images count as one."""

import numpy as np
import pyarrow as pa

BLOCK = 2_048
"""Rows compared with all others at once: 2,048 x 8,000 hashes are 131 MB of XOR."""


def agree(left: np.ndarray, right: np.ndarray, tolerance: float) -> np.ndarray:
    """Whether two measures differ by at most `tolerance` times the larger one, elementwise after broadcasting."""
    return np.abs(left - right) <= tolerance * np.maximum(np.abs(left), np.abs(right))


def duplicate_pairs(
    phash: np.ndarray, sharpness: np.ndarray, noise: np.ndarray, radius: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j) of rows with i < j that agree in hash and in both quality measures, as two index arrays."""
    left, right = [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    for start in range(0, len(phash), BLOCK):
        block = slice(start, start + BLOCK)
        near = np.bitwise_count(phash[block, None] ^ phash[None, start:]) <= radius
        i, j = np.nonzero(near)
        i, j = i + start, j + start
        keep = (i < j) & agree(sharpness[i], sharpness[j], tolerance) & agree(noise[i], noise[j], tolerance)
        left.append(i[keep])
        right.append(j[keep])
    return np.concatenate(left), np.concatenate(right)


def duplicate_groups(table: pa.Table, *, radius: int, tolerance: float) -> dict[str, str]:
    """image_id -> id of its group's owner; an image without duplicates owns itself.

    Two images are duplicates if their pHashes differ by at most `radius` bits and sharpness and noise each differ by
    at most the relative `tolerance`: pHash hardly sees blur, noise or mild motion (our choice, DESIGN). Ids are
    taken in ascending order; each joins the smallest owner that it is a duplicate of, or owns a new group. Members
    are compared with the owner, never chained, so a group spans at most 2 x radius bits. The order of rows does not
    matter.

    table: columns image_id, phash (uint64), sharpness, noise; ids unique.
    """
    table = table.select(["image_id", "phash", "sharpness", "noise"]).sort_by("image_id")
    ids = table["image_id"].to_pylist()
    measures = [table[name].to_numpy().astype(np.float64) for name in ("sharpness", "noise")]
    left, right = duplicate_pairs(table["phash"].to_numpy(), *measures, radius, tolerance)
    smaller: dict[int, list[int]] = {}
    for i, j in sorted(zip(left.tolist(), right.tolist(), strict=True)):
        smaller.setdefault(j, []).append(i)
    owner = list(range(len(ids)))
    for j in range(len(ids)):
        owner[j] = next((i for i in smaller.get(j, ()) if owner[i] == i), j)
    return {name: ids[i] for name, i in zip(ids, owner, strict=True)}
