"""Ways to spend a budget of annotations: ours, the paper's baseline, and what the field would try instead.

Each takes the state `Chosen`, spends what it can of a budget and returns what is left, which is drawn at random.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from medq_ray.config import Config
from medq_ray.explore.chosen import Chosen
from medq_ray.explore.sampling import Embedded, Evidence, Hits, Ranked, quotas, spend, weights
from medq_ray.model.ask import Answer
from medq_ray.model.chat import Sampling
from medq_ray.model.prompts import prompt_of
from medq_ray.questions import cell_of, description
from medq_ray.schema import PROMPT

DEPTH = 10
"""Look-alikes that dev images are asked about, for each that can be drawn: embeddings are read for so many only."""
Fetch = Callable[[list[str]], dict[str, str]]
"""fetch(image ids) -> image id -> path of a picture file."""


@dataclass(frozen=True)
class Means:
    """What strategies choose by."""

    config: Config
    hits: Hits
    rates: Mapping[str, dict]
    """Eq. 1."""
    evidence: Evidence
    rng: np.random.Generator
    embedded: Embedded
    fetch: Fetch
    ask_self: Answer
    """Asks the model under training."""
    taken: list[str]
    """Ids of images that were selected in earlier iterations."""


def failure_driven(chosen: Chosen, budget: int, means: Means) -> tuple[int, list[dict]]:
    """The paper's: look-alikes of failures, shared out by the error rates of the cells (Sec. 2.3)."""
    settings = means.config.explore
    weight = weights(means.rates, settings.alpha)
    ranked = {name: means.hits.of_cell(name) for name in weight}
    if settings.neighbours:
        ranked = weighed(ranked, quotas(weight, math.ceil(DEPTH * settings.breadth * budget)), chosen, means)
    return shared(chosen, budget, means, ranked, weight, {name: name for name in weight})


def weighed(
    ranked: Mapping[str, Ranked], depth: Mapping[str, int], chosen: Chosen, means: Means
) -> dict[str, Ranked]:
    """The best look-alikes for each cell, so many, ranked anew by what their nearest dev images say."""
    tops = [np.empty(0, np.intp), *(found.rows[: depth[cell]] for cell, found in ranked.items())]
    rows, neighbours = np.unique(np.concatenate(tops)), means.config.explore.neighbours
    if not len(rows):
        return dict(ranked)
    names, dev = chosen.images["image_id"].take(pa.array(rows)).to_pylist(), means.evidence.names
    vectors = means.embedded([*names, *dev])  # once: it reads all shards
    vectors, known = vectors[: len(rows)], vectors[len(rows) :]

    def likelihood(cell: str, own: np.ndarray) -> np.ndarray:
        return means.evidence.likelihood(cell, known, vectors[np.searchsorted(rows, own)], neighbours)

    return {cell: found.weighed(depth[cell], partial(likelihood, cell)) for cell, found in ranked.items()}


def uniform_over_prototypes(chosen: Chosen, budget: int, means: Means) -> tuple[int, list[dict]]:
    """Look-alikes of failures, as many of each prototype, whatever the error rates: w/o adaptive sampling (Table 2)."""
    numbers = {f"prototype {number}": number for number in sorted(means.hits.mixtures)}
    mixture = {name: means.hits.mixtures[number] for name, number in numbers.items()}
    main = {name: cell_of(sorted(own, key=lambda key: (-own[key], key))) for name, own in mixture.items()}
    ranked = {name: means.hits.of_prototype(number) for name, number in numbers.items()}
    return shared(chosen, budget, means, ranked, dict.fromkeys(numbers, 1.0), main)


def shared(
    chosen: Chosen,
    budget: int,
    means: Means,
    ranked: Mapping[str, Ranked],
    weight: Mapping[str, float],
    capability: Mapping[str, str],
) -> tuple[int, list[dict]]:
    """`spend`, and rows of schema.SHARE that say what became of it."""
    before = set(chosen.rows)
    supply = {name: len(chosen.free(found.rows)) for name, found in ranked.items()}
    settings = means.config.explore
    left = spend(chosen, ranked, weight, budget, breadth=settings.breadth, rng=means.rng, strategy=settings.strategy,
                 capability=capability)  # fmt: skip
    quota, whole = quotas(weight, budget), math.fsum(weight.values())
    owner = (lambda why: f"prototype {why['prototype_id']}") if settings.strategy == "uniform_over_prototypes" else (
        lambda why: why["capability"])  # fmt: skip
    drawn = [owner(why) for row, why in chosen.rows.items() if row not in before]
    shares = [
        {"name": name, "error_rate": means.rates[name]["e"] if name in means.rates else None,
         "weight": value / whole if whole else 0.0, "quota": quota[name], "look_alikes": supply[name],
         "drawn": drawn.count(name)}
        for name, value in weight.items()
    ]  # fmt: skip
    return left, shares


def uncertainty(chosen: Chosen, budget: int, means: Means) -> tuple[int, list[dict]]:
    """The images that the model is least sure about: of `candidates` random ones for each wanted, those with the
    highest trajectory entropy (eq. 3) of a greedy description. Raises ValueError when the model gives no logprobs."""
    rows = at_random(chosen, means.config.explore.candidates * budget, means.rng)
    images = chosen.images.select(["image_id", "uri", "modality"]).take(pa.array(rows)).to_pylist()
    paths = means.fetch([image["image_id"] for image in images if not image["uri"]])
    asked = [
        prompt_of({"question_id": image["image_id"], "uri": image["uri"] or paths[image["image_id"]],
                   "text": description(image["modality"]), "options": []})
        for image in images
    ]  # fmt: skip
    sampling = Sampling(n=1, temperature=0.0, max_tokens=means.config.evaluate.max_tokens, seed=means.config.seed,
                        logprobs=True)  # fmt: skip
    answers = means.ask_self(pa.Table.from_pylist(asked, schema=PROMPT), sampling, "uncertainty")
    entropy = dict(zip(answers["question_id"].to_pylist(), answers["entropy"].to_pylist(), strict=True))
    if images and not any(value is not None for value in entropy.values()):
        raise ValueError("explore.strategy=uncertainty needs an endpoint with logprobs, and this one gives none")
    score = np.array([entropy[image["image_id"]] or 0.0 for image in images])
    order = np.lexsort([rows, -score])
    found = dict(zip(rows.tolist(), score.tolist(), strict=True))
    for row in chosen.open(rows[order], budget):
        chosen.take(row, strategy="uncertainty", capability="", score=found[int(row)])
    return budget - min(budget, len(rows)), []


def coreset(chosen: Chosen, budget: int, means: Means) -> tuple[int, list[dict]]:
    """The images that leave none far from a selected one: greedy k-centres (Sener and Savarese 2018) of cosine
    distance, over `candidates` random ones for each wanted, beside those of earlier iterations."""
    rows = at_random(chosen, means.config.explore.candidates * budget, means.rng)
    names = chosen.images["image_id"].take(pa.array(rows)).to_pylist()
    if not names:
        return budget, []
    vectors, far = means.embedded(names), np.full(len(rows), np.inf)
    for vector in means.embedded(means.taken) if means.taken else ():
        far = np.minimum(far, 1 - vectors @ vector)
    for _ in range(min(budget, len(rows))):
        best = int(far.argmax())  # the first of equals: where nothing was taken yet, the first at random
        chosen.take(rows[best], strategy="coreset", capability="", score=min(float(far[best]), 2.0))
        far = np.minimum(far, 1 - vectors @ vectors[best])
        far[best] = -np.inf
    return budget - min(budget, len(rows)), []


def at_random(chosen: Chosen, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` open images, in random order."""
    return chosen.open(rng.permutation(len(chosen.images)), count)


STRATEGIES = {
    "failure_driven": failure_driven,
    "random": lambda chosen, budget, means: (budget, []),
    "uniform_over_prototypes": uniform_over_prototypes,
    "uncertainty": uncertainty,
    "coreset": coreset,
}
"""config.Explore.strategy -> strategy(chosen, budget, means) -> (what is left, rows of schema.SHARE)."""


def select(chosen: Chosen, means: Means) -> tuple[int, list[dict]]:
    """Spend config.explore.budget: `random_fraction` of it, and what the strategy leaves, at random. Returns what the
    pool could not fill, and rows of schema.SHARE."""
    settings = means.config.explore
    aimed = settings.budget - round(settings.random_fraction * settings.budget)
    left, shares = STRATEGIES[settings.strategy](chosen, aimed, means)
    rest = settings.budget - aimed + left
    for row in at_random(chosen, rest, means.rng):
        chosen.take(row, strategy="random", capability="")
    return settings.budget - len(chosen.rows), shares
