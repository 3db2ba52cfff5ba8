"""Questions from templates, the seed rule: the other arm of the ablation (Table 2), which needs no oracle to write.

Each image gets a hypothesis: a degradation and a severity drawn from its prototype's capability mixture. It decides
what is asked and which capabilities the question counts for; the annotators decide what is true.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from medq_ray import questions as ask
from medq_ray.schema import DEGRADATIONS, EVERYDAY, QUESTION, SEVERITIES


def drawn(mixture: dict[str, float], axis: str, values: Sequence[str], rng: np.random.Generator) -> str:
    """One of `values`, by the mixture's shares of '{axis}:{value}', uniformly where it has none of them."""
    shares = np.array([mixture.get(f"{axis}:{value}", 0.0) for value in values])
    total = shares.sum()
    return values[rng.choice(len(values), p=shares / total if total > 0 else None)]


def hypothesis(
    mixture: dict[str, float], modality: str, rng: np.random.Generator, known: str | None = None
) -> tuple[str, str]:
    """(degradation, severity) to ask about; an empty mixture (a random draw) makes all of the modality as likely.
    known: the degradation, where it is not to be drawn."""
    degradation = known or drawn(mixture, "degradation", ("none", *DEGRADATIONS[modality]), rng)
    return degradation, "none" if degradation == "none" else drawn(mixture, "severity", SEVERITIES[1:], rng)


def question(kind: str, modality: str, degradation: str, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """(scope, text, options) of one question under a hypothesis.

    Half of the yes/no questions and half of the how questions are general. A specific yes/no question asks about
    the hypothesis or, as often, about another degradation of the modality: 'Yes' must not always be right. A what
    question offers every degradation of the modality: with three of them on offer, as on dev, the hypothesis decides
    whether the truth is there, and 60 % of the answers that the model trained on were "none of these".
    """
    others = [name for name in DEGRADATIONS[modality] if name != degradation]
    general = bool(rng.random() < 0.5)
    if kind == "yes_no":
        other = degradation == "none" or rng.random() < 0.5
        asked = others[rng.integers(len(others))] if other else degradation
        text, options = ask.yes_no(modality, None if general else asked)
        return scope_of("none" if general else asked), text, options
    if kind == "what":
        text, options = ask.what(modality, DEGRADATIONS[modality], rng)
        return scope_of(degradation), text, options
    if kind == "how":
        return scope_of(degradation), *ask.how(modality, general, rng)
    if kind == "comparison":
        return scope_of(degradation), *ask.comparison(modality, rng)
    assert kind == "description", kind
    return scope_of(degradation), ask.description(modality), []


def scope_of(degradation: str) -> str:
    return "general" if degradation == "none" or degradation in EVERYDAY else "specific"


def questions(
    selection: pa.Table,
    prototypes: pa.Table,
    *,
    kinds: Sequence[str],
    seed: int,
    partners: Mapping[str, dict] = MappingProxyType({}),
) -> pa.Table:
    """schema.QUESTION, one of each kind for each selected image, answers empty; sorted by question_id.

    selection: schema.SELECTION; prototypes: schema.PROTOTYPE; partners: of `explore.pairs`, for comparisons. Draws
    depend on the seed and the image only, so the order of rows does not matter.
    """
    mixtures, rows = by_prototype(prototypes), []
    for image in selection.to_pylist():
        modality, rng = image["modality"], generator(image["image_id"], seed)
        degradation, severity = hypothesis(mixtures.get(image["prototype_id"], {}), modality, rng)
        for kind, subject in subjects(image, kinds, partners):
            capabilities = ask.capabilities(kind, modality, degradation, severity)
            scope, text, options = question(kind, modality, degradation, rng)
            rows.append(row_of(subject, kind, scope, text, options, "", capabilities))
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["question_id"]), schema=QUESTION)


def subjects(image: dict, kinds: Sequence[str], partners: Mapping[str, dict]) -> Iterator[tuple[str, dict]]:
    """(kind, the image with image B, null where there is none) of each question about a selected image; no comparison
    where it has no partner."""
    other = partners.get(image["image_id"])
    for kind in kinds:
        if kind != "comparison":
            yield kind, image | {"second_id": None, "second_uri": None}
        elif other is not None:
            yield kind, image | {"second_id": other["image_id"], "second_uri": other["uri"]}


def row_of(
    image: dict, kind: str, scope: str, text: str, options: list[str], answer: str, capabilities: list[str]
) -> dict:
    """The row of schema.QUESTION about an image of `subjects`."""
    return {
        "question_id": f"{image['image_id']}-{kind}",
        **{name: image[name] for name in ("image_id", "uri", "modality", "second_id", "second_uri")},
        "kind": kind,
        "scope": scope,
        "text": text,
        "options": options,
        "answer": answer,
        "capabilities": capabilities,
    }


def generator(image_id: str, seed: int) -> np.random.Generator:
    """Draws for one image, whatever others there are."""
    return np.random.default_rng(np.random.SeedSequence([seed, int(image_id[:8], 16), int(image_id[8:], 16)]))


def by_prototype(prototypes: pa.Table) -> dict[int, dict[str, float]]:
    """prototype id -> share of its failures that have each capability."""
    numbers, mixtures = prototypes["prototype_id"].to_pylist(), prototypes["capabilities"].to_pylist()
    return {number: dict(mixture) for number, mixture in zip(numbers, mixtures, strict=True)}
