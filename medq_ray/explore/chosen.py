"""What is selected so far, and what it closes to later draws: near-duplicates of it, and for a while its patients."""

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.pool.dedup import Images, between
from medq_ray.schema import SELECTION

UNKNOWN, CLEAR, BARRED = 0, 1, 2
BLOCK = 512
"""Images that are looked at together, at least."""


class Chosen:
    """Images are numbers: rows of `self.images`, which is sorted by image_id."""

    def __init__(
        self, images: pa.Table, allowed: pa.Array, taken: Iterable[str], *, radius: int, tolerance: float
    ):
        """images: schema.POOL_IMAGE of all splits; allowed: ids that may be selected; taken: those that were in earlier
        iterations. Neither these, nor dev or test images, nor near-duplicates of any (`pool.dedup`) are selected."""
        self.images = images.sort_by("image_id")
        self.radius, self.measures = radius, Images.of(self.images, tolerance)
        self.patient, self.session = (
            self.images[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("patient", "session")
        )
        self.patients: Counter = Counter()
        self.sessions: Counter = Counter()
        self.rows: dict[int, dict] = {}
        """Row -> the SELECTION fields that say why it was selected."""
        held_out = pc.not_equal(self.images["split"], "pool").to_numpy()
        before = pc.is_in(self.images["image_id"], value_set=pa.array(sorted(taken), pa.string())).to_numpy()
        barred = held_out | before | ~pc.is_in(self.images["image_id"], value_set=allowed).to_numpy()
        self.forbidden = np.flatnonzero(held_out | before)
        self.state = np.where(barred, BARRED, UNKNOWN).astype(np.int8)
        """Of each row, whether it is, or is a near-duplicate of, what was forbidden from the beginning; BARRED also
        where it is one of what has been selected since."""

    def free(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that are not forbidden as far as known, in order; some may be near-duplicates."""
        return rows[self.state[rows] != BARRED]

    def open(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The first `count` of `rows` that may be taken, one of each group of near-duplicates, in order."""
        rows, found, done = self.free(rows), np.empty(0, np.intp), 0
        while len(found) < count and done < len(rows):
            block = rows[done : done + max(2 * count, BLOCK)]
            done += len(block)
            fresh = block[self.state[block] == UNKNOWN]
            self.state[fresh] = CLEAR
            self.state[fresh[self.pairs(fresh, self.forbidden)[0]]] = BARRED
            block = self.free(block)
            taken = np.fromiter(self.rows, np.intp, len(self.rows))
            self.state[block[self.pairs(block, taken)[0]]] = BARRED  # taking is final
            block = self.free(block)
            block = np.delete(block, self.pairs(block, found)[0])
            found = np.concatenate([found, self.distinct(block)])
        return found[:count]

    def distinct(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that are no near-duplicate of one kept before, in order."""
        twins = defaultdict(list)
        for i, j in zip(*self.pairs(rows, rows), strict=True):
            if i < j:
                twins[j].append(i)
        kept = np.ones(len(rows), bool)
        for j in sorted(twins):
            kept[j] = not kept[twins[j]].any()
        return rows[kept]

    def pairs(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return between(self.measures, left, right, self.radius)

    def draw(self, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """At most `count` of `rows` (all open), at random, patients with the fewest selected images first, and of a
        patient sessions with the fewest."""
        seen, visits, turns = self.patients.copy(), self.sessions.copy(), []
        for row in rng.permutation(rows):
            turns.append((visits[self.session[row]], row))
            visits[self.session[row]] += 1
        order = []
        for visit, row in sorted(turns, key=lambda turn: turn[0]):
            order.append((seen[self.patient[row]], visit, row))
            seen[self.patient[row]] += 1
        return np.array([row for _, _, row in sorted(order, key=lambda turn: turn[:2])[:count]], np.intp)

    def take(self, row: int, **why: object) -> None:
        """Select a row; why: fields of schema.SELECTION."""
        self.rows[int(row)] = why
        self.patients[self.patient[row]] += 1
        self.sessions[self.session[row]] += 1

    def table(self) -> pa.Table:
        """schema.SELECTION, sorted by image_id."""
        rows = sorted(self.rows)
        own = self.images.select(["image_id", "uri", "modality", "patient"]).take(pa.array(rows, pa.int64()))
        found = [row | self.rows[i] for i, row in zip(rows, own.to_pylist(), strict=True)]
        return pa.Table.from_pylist(found, schema=SELECTION)
