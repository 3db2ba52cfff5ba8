"""The questions of a world's dev and test images, answered from their truth: four an image, one of each kind."""

from collections.abc import Iterable, Mapping

import numpy as np

from medq_ray import questions
from medq_ray.schema import DEGRADATIONS, KINDS


def _wording(kind: str, truth: Mapping[str, str], rng: np.random.Generator) -> tuple[str, list[str], str]:
    """(text, options, scope). Half of the yes/no and how questions are general. A specific yes/no question about a
    degraded image asks about its degradation half the time, else about another of the modality; about a clean image
    it asks about any."""
    modality, degradation = truth["modality"], truth["degradation"]
    general = bool(rng.random() < 0.5)
    if kind == "yes_no":
        others = [name for name in DEGRADATIONS[modality] if name != degradation]
        asked = others[rng.integers(len(others))]
        if degradation != "none" and rng.random() < 0.5:
            asked = degradation
        text, options = questions.yes_no(modality, None if general else asked)
    elif kind == "what":
        general = False
        text, options = questions.what(modality, questions.offered_with(modality, degradation, rng), rng)
    elif kind == "how":
        text, options = questions.how(modality, general, rng)
    else:
        general = True
        text, options = questions.description(modality), []
    return text, options, "general" if general else "specific"


def ask_all(truths: Iterable[Mapping[str, str]], uris: Iterable[str], seed: int) -> list[dict]:
    """Rows of schema.QUESTION for rows of schema.TRUTH (dev and test) at `uris`, in order."""
    rows = []
    for number, (truth, uri) in enumerate(zip(truths, uris, strict=True)):
        rng = np.random.default_rng([seed, 17, number])
        cell = truth["modality"], truth["degradation"], truth["severity"]
        for kind in KINDS:
            text, options, scope = _wording(kind, truth, rng)
            answer = questions.gold_letter(kind, text, options, *cell[1:]) if options else questions.describe(*cell)
            rows.append(
                {
                    "question_id": f"{truth['image_id']}-{kind}",
                    "image_id": truth["image_id"],
                    "uri": uri,
                    "kind": kind,
                    "scope": scope,
                    "modality": truth["modality"],
                    "text": text,
                    "options": options,
                    "answer": answer,
                    "capabilities": questions.capabilities(kind, *cell),
                }
            )
    return rows
