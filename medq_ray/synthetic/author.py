"""What the simulated oracle writes when it is commissioned: a question about an image whose truth it knows.

Its wording is the world's own, that dev and test questions have too.
"""

import json

import numpy as np

from medq_ray import questions
from medq_ray.questions.commission import Commission
from medq_ray.schema import DEGRADATIONS


def write(commission: Commission, truth: dict, second: dict | None, rng: np.random.Generator) -> dict:
    """{question, options, answer} about an image with this row of schema.TRUTH, or two; the answer is right."""
    modality, true = truth["modality"], truth["degradation"]
    names = DEGRADATIONS[modality]
    general = commission.aim == "none"
    if commission.kind == "yes_no":
        asked = None if general else commission.aim
        if not general and commission.wanted == ("No" if true == commission.aim else "Yes"):
            others = [name for name in names if name != commission.aim]
            asked = true if commission.wanted == "Yes" and true != "none" else others[rng.integers(len(others))]
        text, options = questions.yes_no(modality, asked)
    elif commission.kind == "what":
        offered = questions.offered_with(modality, true, rng)
        if not general and commission.aim not in offered:
            offered[-1] = commission.aim
        text, options = questions.what(modality, offered, rng)
    elif commission.kind == "how":
        text, options = questions.how(modality, general, rng)
    elif commission.kind == "comparison":
        text, options = questions.comparison(modality, rng)
    else:
        described = questions.describe(modality, true, truth["severity"])
        return {"question": questions.description(modality), "options": [], "answer": described}
    letter = questions.gold_letter(commission.kind, text, options, true, truth["severity"],
                                   None if second is None else second["severity"])  # fmt: skip
    return {"question": text, "options": options, "answer": options[questions.LETTERS.index(letter)]}


def garbage(piece: dict, modality: str, rng: np.random.Generator) -> str:
    """A reply that breaks a rule of `commission.read_reply`, in one of the ways that models do."""
    other = "CT" if modality != "ct" else "MRI"
    broken = (
        "I cannot judge this image.",
        json.dumps(piece)[:-9],  # cut at the token limit
        "Here is a question: " + json.dumps(piece),
        json.dumps([piece]),
        json.dumps(piece | {"answer": "maybe"}),
        json.dumps(piece | {"options": [*piece["options"], *piece["options"][:1]] or ["Yes", "No"]}),
        json.dumps(piece | {"question": piece["question"].replace("image", f"{other} image")}),
        json.dumps({"text": piece["question"]}),
        "",
    )
    return broken[rng.integers(len(broken))]
