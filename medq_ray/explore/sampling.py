"""Adaptive sampling: the annotation budget is spent where the model is weak (paper Sec. 2.3).

Our reading of the paper's w_k ~ e_k^alpha: the dimensions that share the budget are the cells modality x degradation,
since errors concentrate in such intersections (Sec. 1). An unlabelled image inherits the capability mixture of the
prototypes that retrieved it. Taking the nearest look-alikes loses to random sampling, since they are alike; a share
is therefore drawn from a broader set of the best, without near-duplicates and over many patients and sessions. And a
prototype knows only failures: whether a look-alike has the weakness is weighed by its nearest dev images, those that
were answered right among them.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.explore.chosen import Chosen
from medq_ray.explore.questions import by_prototype
from medq_ray.questions import cell_of
from medq_ray.schema import HIT

Embedded = Callable[[list[str]], np.ndarray]
"""embedded(n image ids) -> float32 (n, d), unit vectors."""
ROWS = 4096
"""Look-alikes that are compared with dev images at one time."""


def weights(rates: Mapping[str, dict], alpha: float) -> dict[str, float]:
    """w_k ~ e_k^alpha of each 'cell:' capability (unnormalised); alpha = 0 weighs all cells alike, failing or not.

    rates: eq. 1 as {capability: {"e": ...}}.
    """
    return {name: rates[name]["e"] ** alpha for name in sorted(rates) if name.startswith("cell:")}


def quotas(weight: Mapping[str, float], total: int) -> dict[str, int]:
    """Split `total` in proportion to the weights by largest remainder: sums to `total` exactly, and a larger weight
    never gets less. Equal remainders go by name. All zero if no weight is positive."""
    exact = {name: Fraction(value) for name, value in weight.items()}  # floats could round a share away
    whole = sum(exact.values())
    if whole == 0:
        return dict.fromkeys(weight, 0)
    ideal = {name: total * value / whole for name, value in exact.items()}
    share = {name: math.floor(value) for name, value in ideal.items()}
    rest = sorted((name for name in ideal if exact[name]), key=lambda name: (share[name] - ideal[name], name))
    for name in rest[: total - sum(share.values())]:
        share[name] += 1
    return share


@dataclass(frozen=True)
class Ranked:
    """The look-alikes that one share can be drawn from, the best first."""

    rows: np.ndarray
    """int (n,): images, as rows of `Chosen.images`, each once."""
    prototype: np.ndarray
    """int32 (n,): id of the prototype that each is a look-alike of."""
    similarity: np.ndarray
    """float32 (n,): cosine to it."""
    score: np.ndarray
    """float64 (n,): what ranks them."""

    @classmethod
    def of(cls, rows: np.ndarray, prototype: np.ndarray, similarity: np.ndarray, score: np.ndarray) -> "Ranked":
        """Of retrieved pairs in any order: each image with the prototype of its highest score, the first of equals."""
        order = np.lexsort([prototype, -score, rows])
        order = order[np.diff(rows[order], prepend=-1) != 0]
        order = order[np.lexsort([rows[order], -score[order]])]
        return cls(rows[order], prototype[order], similarity[order], score[order])

    def weighed(self, count: int, likelihood: Callable[[np.ndarray], np.ndarray]) -> "Ranked":
        """The best `count` ranked anew by score x likelihood(rows), before the others, whose scores stay."""
        score = self.score.copy()
        score[:count] *= likelihood(self.rows[:count])
        order = np.concatenate([np.lexsort([self.rows[:count], -score[:count]]), np.arange(count, len(score))])
        return Ranked(self.rows[order], self.prototype[order], self.similarity[order], score[order])

    def at(self, chosen: np.ndarray) -> np.ndarray:
        """Places of some of the rows."""
        order = np.argsort(self.rows)
        return order[np.searchsorted(self.rows, chosen, sorter=order)]


@dataclass(frozen=True)
class Evidence:
    """What the evaluation says of dev images, for weighing look-alikes."""

    names: list[str]
    """The n dev images."""
    modality: np.ndarray
    failed: dict[str, np.ndarray]
    """Cell -> float (n,): share of each image's questions on the cell that failed."""

    @classmethod
    def of(cls, questions: pa.Table, failures: pa.Table) -> "Evidence":
        """questions: schema.QUESTION that were answered; failures: schema.FAILURE, those that failed."""
        total, failed = Counter(keys_of(questions)), Counter(keys_of(failures))
        modality = dict(zip(questions["image_id"].to_pylist(), questions["modality"].to_pylist(), strict=True))
        names = sorted(modality)
        place = {name: i for i, name in enumerate(names)}
        shares: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(names)))
        for (name, cell), count in total.items():
            shares[cell][place[name]] = failed[name, cell] / count
        return cls(names, np.array([modality[name] for name in names], str), dict(shares))

    def likelihood(self, cell: str, known: np.ndarray, vectors: np.ndarray, neighbours: int) -> np.ndarray:
        """float64 (m,): how likely images have the weakness `cell`: the share that failed of what the nearest dev
        images of the modality were asked, with a tenth of one image's questions added, so that none is impossible.

        known: float32 (n, d), embeddings of the dev images; vectors: (m, d); all of length 1.
        """
        own = np.flatnonzero(self.modality == modality_of(cell))
        k = min(neighbours, len(own))
        if k == 0:
            return np.ones(len(vectors))
        failed, found = self.failed.get(cell, np.zeros(len(self.modality)))[own], np.empty(len(vectors))
        for low in range(0, len(vectors), ROWS):
            near = np.argpartition(-(vectors[low : low + ROWS] @ known[own].T), k - 1, axis=1)[:, :k]
            found[low : low + ROWS] = (failed[near].sum(axis=1) + 0.1) / (k + 0.1)
        return found


def keys_of(rows: pa.Table) -> Iterator[tuple[str, str]]:
    """(image id, cell) of questions or failures."""
    cells = map(cell_of, rows["capabilities"].to_pylist())
    return zip(rows["image_id"].to_pylist(), cells, strict=True)


def modality_of(cell: str) -> str:
    return cell.removeprefix("cell:").partition("/")[0]


@dataclass(frozen=True)
class Hits:
    """What retrieval found, as arrays over (image, prototype) pairs."""

    rows: np.ndarray
    prototype: np.ndarray
    similarity: np.ndarray
    modality: np.ndarray
    """The images' own, which are known."""
    mixtures: dict[int, dict[str, float]]
    """prototype id -> share of its failures that have each capability."""

    @classmethod
    def of(cls, hits: pa.Table, prototypes: pa.Table, images: pa.Table) -> "Hits":
        """hits: schema.HIT; prototypes: schema.PROTOTYPE; images: schema.POOL_IMAGE, sorted by id."""
        rows = pc.index_in(hits["image_id"], value_set=images["image_id"].combine_chunks())
        modality = images["modality"].take(rows).to_numpy().astype(str)
        arrays = (hits[name].to_numpy() for name in HIT.names[1:])
        return cls(rows.to_numpy().astype(np.intp), *arrays, modality, by_prototype(prototypes))

    def of_cell(self, cell: str) -> Ranked:
        """Look-alikes for one cell, by (its share of a prototype's mixture) x (similarity to the prototype). A cell
        only takes images of its own modality."""
        share = np.array([self.mixtures[int(number)].get(cell, 0.0) for number in self._numbers])[self._place]
        own = (share > 0) & (self.modality == modality_of(cell))
        return self._ranked(own, share)

    def of_prototype(self, number: int) -> Ranked:
        """Look-alikes of one prototype, by similarity, of modalities that its failures have."""
        has = {name.removeprefix("modality:") for name in self.mixtures[number] if name.startswith("modality:")}
        own = (self.prototype == number) & np.isin(self.modality, sorted(has))
        return self._ranked(own, np.ones(len(self.rows)))

    def _ranked(self, own: np.ndarray, share: np.ndarray) -> Ranked:
        score = share[own] * self.similarity[own]
        return Ranked.of(self.rows[own], self.prototype[own], self.similarity[own], score)

    @cached_property
    def _numbers(self) -> np.ndarray:
        return np.array(sorted(self.mixtures), np.int32)

    @cached_property
    def _place(self) -> np.ndarray:
        return np.searchsorted(self._numbers, self.prototype)


def spend(
    chosen: Chosen,
    ranked: Mapping[str, Ranked],
    weight: Mapping[str, float],
    budget: int,
    *,
    breadth: float,
    rng: np.random.Generator,
    strategy: str,
    capability: Mapping[str, str],
) -> int:
    """Spend `budget` over shares by weight and return what could not be spent.

    ranked, weight, capability (what to write as the image's): by name of the share. A share of b images is drawn from
    its ceil(breadth x b) best open look-alikes. Scarce shares draw first, so that plentiful ones do not take what they
    have in common, and of equally scarce ones that with the best look-alike; what a share cannot use goes back and is
    split again by weight.
    """
    left, exhausted = budget, set()
    while left:
        available = {name: len(chosen.free(found.rows)) for name, found in ranked.items() if name not in exhausted}
        share = quotas({name: weight[name] for name, count in available.items() if count}, left)
        before = left, len(exhausted)
        best = {name: float(found.score.max(initial=0)) for name, found in ranked.items()}
        drawing = (name for name in share if share[name])
        for name in sorted(drawing, key=lambda name: (available[name], -best[name], name)):
            found, wanted = ranked[name], math.ceil(breadth * share[name])
            rows = chosen.open(found.rows, wanted)
            if len(rows) < share[name]:
                exhausted.add(name)
            for place in found.at(chosen.draw(rows, share[name], rng)):
                chosen.take(found.rows[place], strategy=strategy, capability=capability[name],
                            prototype_id=int(found.prototype[place]), similarity=float(found.similarity[place]),
                            score=float(found.score[place]))  # fmt: skip
                left -= 1
        if before == (left, len(exhausted)):
            break
    return left
