"""What is asked: the four kinds of question, their options, capability vectors and reference descriptions.

Floor 1, because two floors ask: the synthetic world knows the truth and asks dev and test questions with answers;
`explore.questions` asks about pool images whose truth nobody knows. Wording is ours; kinds are MedQ-Bench's.
"""

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from medq_ray.schema import DEGRADATIONS, EVERYDAY, GRADES, MODALITIES, SEVERITIES

LETTERS = "ABCDEF"
NOTHING = "none of these"
"""Last resort of a 'what' question: right for a clean image and where the true degradation is not offered."""
COMPARED = ("the first", "the second", "both alike")
"""Options of a comparison."""

MODALITY_NAMES = {
    "mri": "MRI",
    "ct": "CT",
    "endoscopy": "endoscopy",
    "fundus": "fundus",
    "histopathology": "histopathology",
}
DEGRADATION_NAMES = {
    name: name.replace("_", " ")
    for name in sorted({degradation for names in DEGRADATIONS.values() for degradation in names})
}


def article(text: str) -> str:
    return f"an {text}" if text[0] in "aeiouM" else f"a {text}"  # 'an MRI'


def yes_no(modality: str, degradation: str | None) -> tuple[str, list[str]]:
    """(text, options). General when `degradation` is None, else specific to it."""
    name = MODALITY_NAMES[modality]
    if degradation is None:
        return f"Is the quality of this {name} image impaired?", ["Yes", "No"]
    return f"Does this {name} image show {DEGRADATION_NAMES[degradation]}?", ["Yes", "No"]


def what(modality: str, offered: Sequence[str], rng: np.random.Generator) -> tuple[str, list[str]]:
    """(text, options): the `offered` degradations and NOTHING, in an order drawn from `rng`."""
    options = [DEGRADATION_NAMES[name] for name in offered] + [NOTHING]
    return (
        f"What is the main degradation of this {MODALITY_NAMES[modality]} image?",
        [options[i] for i in rng.permutation(len(options))],
    )


def how(modality: str, general: bool, rng: np.random.Generator) -> tuple[str, list[str]]:
    """(text, options): severity of the degradation, or overall grade when `general`; order drawn from `rng`."""
    name = MODALITY_NAMES[modality]
    levels = GRADES if general else SEVERITIES
    asked = "How good is the quality" if general else "How severe is the degradation"
    text = f"{asked} of this {name} image?"
    return text, [levels[i] for i in rng.permutation(len(levels))]


def comparison(modality: str, rng: np.random.Generator) -> tuple[str, list[str]]:
    """(text, options) about two images; order drawn from `rng`."""
    text = f"Which of these two {MODALITY_NAMES[modality]} images is of better quality?"
    return text, [COMPARED[i] for i in rng.permutation(len(COMPARED))]


def description(modality: str) -> str:
    return f"Describe the quality of this {MODALITY_NAMES[modality]} image."


def offered_with(modality: str, include: str, rng: np.random.Generator, count: int = 3) -> list[str]:
    """`count` degradations of the modality to offer in a 'what' question, `include` among them unless it is 'none'."""
    names = list(DEGRADATIONS[modality])
    if include not in names:
        return [names[i] for i in rng.choice(len(names), count, replace=False)]
    others = [name for name in names if name != include]
    return [include, *(others[i] for i in rng.choice(len(others), count - 1, replace=False))]


@cache
def wordings(kind: str, modality: str, general: bool | None = None) -> tuple[str, ...]:
    """The texts that a question of a kind may have; general: only those about quality in general, or the others."""
    rng = np.random.default_rng(0)  # of the options' order, which is not asked for here
    if kind == "yes_no":
        texts = yes_no(modality, None)[0], *(yes_no(modality, name)[0] for name in DEGRADATIONS[modality])
    elif kind == "how":
        texts = how(modality, True, rng)[0], how(modality, False, rng)[0]
    else:
        return ({"what": what(modality, (), rng)[0], "comparison": comparison(modality, rng)[0],
                 "description": description(modality)}[kind],)  # fmt: skip
    return texts if general is None else texts[:1] if general else texts[1:]


def gold_letter(
    kind: str, text: str, options: Sequence[str], degradation: str, severity: str, second: str | None = None
) -> str:
    """The right letter of a question for an image whose truth is known; second: severity of a comparison's image B, the
    milder of the two being the better. Raises ValueError for a question in other words than `wordings`, whose meaning
    is unknown, and where no option is right."""
    if kind == "description" or not any(text in wordings(kind, modality) for modality in MODALITIES):
        raise ValueError(f"{text!r} is in no words of a {kind!r} question with a letter: what is right is unknown")
    if kind == "yes_no":
        asked = re.fullmatch(r"Does this .+ image show (.+)\?", text)
        impaired = severity != "none"
        right = "Yes" if impaired and (asked is None or asked[1] == DEGRADATION_NAMES[degradation]) else "No"
    elif kind == "what":
        right = DEGRADATION_NAMES.get(degradation, NOTHING)
        right = right if right in options else NOTHING
    elif kind == "how":
        level = SEVERITIES.index(severity)
        right = SEVERITIES[level] if SEVERITIES[level] in options else GRADES[level]
    elif kind == "comparison" and second is not None:
        worse = SEVERITIES.index(severity) - SEVERITIES.index(second)
        right = COMPARED[0 if worse < 0 else 1 if worse > 0 else 2]
    else:
        raise ValueError(f"{kind!r} questions have no letter")
    return LETTERS[list(options).index(right)]


def opening(modality: str) -> str:
    """The first sentence of a description."""
    name = MODALITY_NAMES[modality]
    subject = article(name).capitalize() if name != "MRI" else "An MRI"
    return f"{subject} image."


def finding(degradation: str, severity: str) -> str:
    """The sentence of a description about one degradation, or about there being none."""
    if severity == "none":
        return "No visible degradation."
    return f"{severity.capitalize()} {DEGRADATION_NAMES[degradation]}."


def closing(grade: str) -> str:
    """The last sentence of a description (MedQ-Bench's form)."""
    return f"Overall, the quality of this image is {grade}."


def describe(modality: str, degradation: str, severity: str) -> str:
    """The reference description: modality, degradation with severity, overall judgement."""
    grade = GRADES[SEVERITIES.index(severity)]
    return f"{opening(modality)} {finding(degradation, severity)} {closing(grade)}"


def read_description(text: str) -> dict[str, str] | None:
    """Fields {modality, degradation, severity, grade} of a description in the form of `describe`, None if it has
    another form. Never guesses: an unreadable description is its own outcome."""
    form = r"An? (\S+) image\. (.+?)\. Overall, the quality of this image is (\w+)\.?"
    match = re.fullmatch(form, text.strip(), re.IGNORECASE)
    if match is None:
        return None
    names = {name.lower(): key for key, name in MODALITY_NAMES.items()}
    modality, grade = names.get(match[1].lower()), match[3].lower()
    if modality not in MODALITIES or grade not in GRADES:
        return None
    finding = match[2].lower()
    if finding == "no visible degradation":
        return {"modality": modality, "degradation": "none", "severity": "none", "grade": grade}
    severity, _, name = finding.partition(" ")
    degradation = name.replace(" ", "_")
    if severity not in SEVERITIES[1:] or degradation not in DEGRADATION_NAMES:
        return None
    return {"modality": modality, "degradation": degradation, "severity": severity, "grade": grade}


def severity_in(kind: str, answer: str) -> str | None:
    """The severity that an answer in words states, None where it states none."""
    if kind == "description":
        return (read_description(answer) or {}).get("severity")
    if kind == "how":
        return answer if answer in SEVERITIES else SEVERITIES[GRADES.index(answer)]
    return None


def capabilities(kind: str, modality: str, degradation: str, severity: str) -> list[str]:
    """The multi-hot capability vector c of eq. 1, as sorted names of its ones: question kind, modality, degradation,
    severity, scope of the degradation (general | specific), and the cell modality/degradation, since errors
    concentrate in capability-modality intersections (paper Sec. 1)."""
    scope = "general" if degradation == "none" or degradation in EVERYDAY else "specific"
    return sorted(
        [
            f"kind:{kind}",
            f"modality:{modality}",
            f"degradation:{degradation}",
            f"severity:{severity}",
            f"scope:{scope}",
            f"cell:{modality}/{degradation}",
        ]
    )


def cell_of(capabilities: Sequence[str]) -> str:
    """The first cell among capability names, '' where there is none."""
    return next((name for name in capabilities if name.startswith("cell:")), "")
