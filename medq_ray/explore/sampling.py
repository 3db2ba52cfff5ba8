"""Adaptive sampling: the annotation budget is spent where the model is weak (paper Sec. 2.3), and the exploring phase.

Our reading of the paper's w_k ~ e_k^alpha: the dimensions that share the budget are the cells modality x degradation,
since errors concentrate in such intersections (Sec. 1). An unlabelled image inherits the capability mixture of the
prototypes that retrieved it. Taking the nearest look-alikes loses to random sampling, since they are alike; a share
is therefore drawn from a broader set of the best, without near-duplicates and over many patients.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import write_table
from medq_ray.config import Config
from medq_ray.console import say
from medq_ray.explore.questions import questions
from medq_ray.explore.retrieve import Search, retrieve
from medq_ray.pool.dedup import duplicate_groups
from medq_ray.schema import HIT, QUESTION, SELECTION


Fetch = Callable[[list[str], Path], dict[str, str]]
"""fetch(image ids, folder) -> image id -> path of the PNG that it wrote there."""


def weights(rates: dict[str, dict], alpha: float) -> dict[str, float]:
    """w_k ~ e_k^alpha of each 'cell:' capability (unnormalised); alpha = 0 weighs all cells alike, failing or not.

    rates: eq. 1 as {capability: {"e": ...}}.
    """
    return {name: rates[name]["e"] ** alpha for name in sorted(rates) if name.startswith("cell:")}


def quotas(weight: dict[str, float], total: int) -> dict[str, int]:
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
class Candidate:
    """A pool image as a look-alike for one cell."""

    score: float
    """Largest (share of the cell in the prototype's mixture) x (similarity to it) over prototypes."""
    image_id: str
    prototype_id: int
    similarity: float

    @property
    def rank(self) -> tuple:
        return (-self.score, self.image_id, self.prototype_id)


def candidates(hits: pa.Table, prototypes: pa.Table, modality: dict[str, str]) -> dict[str, list[Candidate]]:
    """cell capability -> its look-alikes, best first. A cell only takes images of its own modality, which is known.

    hits: schema.HIT; prototypes: schema.PROTOTYPE; modality: image_id -> modality.
    """
    mixtures = {
        prototype: [(name, share) for name, share in mixture if name.startswith("cell:")]
        for prototype, mixture in zip(
            prototypes["prototype_id"].to_pylist(), prototypes["capabilities"].to_pylist(), strict=True
        )
    }
    best: dict[str, dict[str, Candidate]] = defaultdict(dict)
    for image_id, prototype, similarity in zip(*(hits[name].to_pylist() for name in HIT.names), strict=True):
        for cell, share in mixtures[prototype]:
            if cell.startswith(f"cell:{modality[image_id]}/"):
                candidate = Candidate(share * similarity, image_id, prototype, similarity)
                known = best[cell].get(image_id)
                if known is None or candidate.rank < known.rank:
                    best[cell][image_id] = candidate
    return {cell: sorted(found.values(), key=lambda candidate: candidate.rank) for cell, found in sorted(best.items())}


@dataclass
class Chosen:
    """What is selected so far, and therefore closed to later draws."""

    patient: dict[str, str]
    """image_id -> patient, of the whole pool."""
    group: dict[str, str]
    """image_id -> owner of its group of near-duplicates, of the whole pool."""
    closed: set[str] = field(default_factory=set)
    """Groups that have an image in this selection or in an earlier one."""
    patients: Counter = field(default_factory=Counter)
    rows: dict[str, dict] = field(default_factory=dict)
    """image_id -> the SELECTION fields that say why."""

    def open(self, names: list[str]) -> list[str]:
        """Those of `names` that may be taken, in order, one of each group of near-duplicates."""
        first: dict[str, str] = {}
        for name in names:
            if self.group[name] not in self.closed:
                first.setdefault(self.group[name], name)
        return list(first.values())

    def take(self, name: str, why: dict) -> None:
        self.rows[name] = why
        self.closed.add(self.group[name])
        self.patients[self.patient[name]] += 1

    def draw(self, names: list[str], count: int, rng: np.random.Generator) -> list[str]:
        """At most `count` of `names` (all open), at random, patients with the fewest selected images first."""
        queue = defaultdict(list)
        for i in rng.permutation(len(names)):
            queue[self.patient[names[i]]].append(names[i])
        turns = [
            (self.patients[patient] + turn, name) for patient, own in queue.items() for turn, name in enumerate(own)
        ]
        return [name for _, name in sorted(turns, key=lambda item: item[0])[:count]]


def targeted(
    chosen: Chosen,
    ranked: dict[str, list[Candidate]],
    weight: dict[str, float],
    budget: int,
    breadth: float,
    rng: np.random.Generator,
) -> int:
    """Spend `budget` over the cells by weight and return what could not be spent.

    A share of b images is drawn from its ceil(breadth x b) best open look-alikes. Scarce cells draw first, so that
    plentiful ones do not take what they share; what a cell cannot use goes back and is split again by weight.
    """
    left = budget
    while left:
        pools = {}
        for cell in weight:
            found = {candidate.image_id: candidate for candidate in ranked.get(cell, ())}
            pools[cell] = [found[name] for name in chosen.open(list(found))]
        share = quotas({cell: value for cell, value in weight.items() if pools[cell]}, left)
        before = left
        for cell in sorted(share, key=lambda cell: (len(pools[cell]), cell)):
            names = chosen.open([candidate.image_id for candidate in pools[cell]])
            by_name = {candidate.image_id: candidate for candidate in pools[cell]}
            for name in chosen.draw(names[: math.ceil(breadth * share[cell])], share[cell], rng):
                hit = by_name[name]
                why = {"strategy": "failure_driven", "capability": cell, "prototype_id": hit.prototype_id}
                chosen.take(name, why | {"similarity": hit.similarity})
                left -= 1
        if left == before:
            break
    return left


def select(
    pool: pa.Table,
    hits: pa.Table,
    prototypes: pa.Table,
    rates: dict[str, dict],
    *,
    config: Config,
    iteration: int,
    taken: set[str],
) -> pa.Table:
    """schema.SELECTION of config.explore.budget images (fewer only where the pool has no more), sorted by image_id.

    pool: schema.POOL_IMAGE; hits: of `retrieve`; rates: eq. 1; taken: ids selected in earlier iterations. Neither they
    nor their near-duplicates are selected. random_fraction of the budget, and what the look-alikes cannot fill, is
    drawn uniformly from the rest of the pool; with strategy 'random' all of it is.
    """
    settings = config.explore
    pool = pool.sort_by("image_id")
    names = pool["image_id"].to_pylist()
    modality = dict(zip(names, pool["modality"].to_pylist(), strict=True))
    group = duplicate_groups(pool, radius=config.evolve.phash_radius, tolerance=config.evolve.quality_tolerance)
    chosen = Chosen(dict(zip(names, pool["patient"].to_pylist(), strict=True)), group)
    chosen.closed |= {group[name] for name in taken if name in group}
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, iteration]))

    if settings.strategy == "failure_driven":
        aimed = settings.budget - round(settings.random_fraction * settings.budget)
        ranked = candidates(hits, prototypes, modality)
        unspent = targeted(chosen, ranked, weights(rates, settings.alpha), aimed, settings.breadth, rng)
        if unspent:
            say(f"  look-alikes fill {aimed - unspent} of {aimed} targeted images; {unspent} are drawn at random")
    order = [names[i] for i in rng.permutation(len(names))]
    for name in chosen.open(order)[: settings.budget - len(chosen.rows)]:
        chosen.take(name, {"strategy": "random", "capability": "", "prototype_id": None, "similarity": None})
    if len(chosen.rows) < settings.budget:
        say(f"  the pool has only {len(chosen.rows)} images left for a budget of {settings.budget}")
    rows = pool.filter(pc.is_in(pool["image_id"], pa.array(sorted(chosen.rows), pa.string())))
    return pa.Table.from_pylist(
        [row | chosen.rows[row["image_id"]] for row in rows.select(SELECTION.names[:4]).to_pylist()], schema=SELECTION
    )


def at_hand(selection: pa.Table, folder: Path, fetch: Fetch) -> pa.Table:
    """The selection with a picture file for every image: those that lie inside volumes, archives and tables are
    written as PNG, so that nobody after this has to know about sources."""
    rows = selection.to_pylist()
    absent = [row["image_id"] for row in rows if not row["uri"]]
    paths = fetch(absent, folder) if absent else {}
    return pa.Table.from_pylist([row | {"uri": row["uri"] or paths[row["image_id"]]} for row in rows], schema=SELECTION)


def explore(
    folder: Path,
    *,
    config: Config,
    iteration: int,
    prototypes: pa.Table,
    rates: dict[str, dict],
    pool: pa.Table,
    search: Search,
    fetch: Fetch,
    taken: set[str],
) -> dict:
    """Phase 2 up to annotation (Sec. 2.3): retrieve, select, ask.

    prototypes: schema.PROTOTYPE and rates: eq. 1, of this iteration's evaluation; pool: schema.POOL_IMAGE, of which
    only split 'pool' is used; search: over the pool's embeddings; fetch: see `Fetch`; taken: image ids selected in
    earlier iterations. Writes retrieved, selection and questions (.parquet), images that were nowhere yet as a file
    of their own (images/*.png), and returns counts. Raises ValueError when the pool has no images.
    """
    pool = pool.filter(pc.equal(pool["split"], "pool"))
    if pool.num_rows == 0:
        raise ValueError("the pool has no images of split 'pool' to explore")
    hits = write_table(folder / "retrieved.parquet", retrieve(prototypes, pool, search, config.explore.tau_sim), HIT)
    selection = select(pool, hits, prototypes, rates, config=config, iteration=iteration, taken=taken)
    selection = at_hand(selection, folder / "images", fetch)
    write_table(folder / "selection.parquet", selection, SELECTION)
    asked = write_table(
        folder / "questions.parquet",
        questions(selection, prototypes, kinds=config.explore.kinds, seed=config.seed),
        QUESTION,
    )
    return {
        "hits": hits.num_rows,
        "retrieved": pc.count_distinct(hits["image_id"]).as_py(),
        "selected": selection.num_rows,
        "targeted": pc.sum(pc.equal(selection["strategy"], "failure_driven")).as_py() or 0,
        "questions": asked.num_rows,
    }
