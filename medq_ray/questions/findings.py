"""What a description says about an image's quality, in whatever words: degradations, severity, grade.

Floor 1. `questions.read_description` reads the closed form that the embedded world writes; models and people write free
sentences that end as MedQ-Bench asks: "Overall, the quality of this image is good / usable / reject". Rules are ours.
"""

import re
from collections import Counter
from dataclasses import dataclass

from medq_ray.questions import DEGRADATION_NAMES
from medq_ray.schema import GRADES, SEVERITIES

WORDS = {
    "blur": r"blur\w*|out[- ]of[- ]focus|unsharp\w*|defocus\w*",
    "noise": r"nois(?:e|y)|grain(?:y|iness)",
    "motion": r"motion|movement|ghosting",
    "bias_field": r"bias[- ]field",
    "ring": r"rings?",
    "sparse_view": r"sparse[- ]views?",
    "exposure": r"exposure|(?:over|under)-?exposed",
    "specular": r"specular\w*|glare",
    "fold": r"fold(?:s|ed)?",
    "air_bubble": r"air[- ]bubbles?",
    "bubbles": r"(?<!air[- ])bubbles?",
    "color_distortion": r"colou?r[- ]distortions?",
}
"""Degradation -> words for it, where these are more than its name."""
SAID = {
    name: re.compile(rf"\b(?:{WORDS.get(name, text.replace(' ', '[- ]'))})\b", re.IGNORECASE)
    for name, text in DEGRADATION_NAMES.items()
}
LEVELS = {
    "mild": re.compile(r"\b(?:mild|slight|minor|minimal|subtle)(?:ly)?\b", re.IGNORECASE),
    "severe": re.compile(r"\b(?:severe|strong|heavy|marked|pronounced|substantial)(?:ly)?\b", re.IGNORECASE),
}
CLAUSES = re.compile(r"[.;:!?\n]|\b(?:but|however|although|though|despite|while|yet|whereas|except)\b", re.IGNORECASE)
DENIED = re.compile(r"\b(?:no|not|without|free (?:of|from)|absence of|neither|nor|lacks?|never)\b", re.IGNORECASE)
PRAISED = re.compile(r"\b(?:low|little|acceptable|adequate|even|good|well|normal|correct|balanced)\b", re.IGNORECASE)
GRADE = re.compile(rf"\bquality\b[^.;\n]*?\bis ['\"*]*({'|'.join(GRADES)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Findings:
    """What a description commits itself to."""

    degradations: frozenset[str]
    severity: str | None
    """Of the worst degradation, None where no word says how bad it is; 'none' without degradations."""
    grade: str


def read_findings(text: str) -> Findings | None:
    """The findings of a description, None where it cannot be read: it must give a grade, and one that is not good needs
    a degradation that we know, since a verdict without a reason teaches nothing.

    A degradation counts where it is named in a clause that neither denies nor praises ("no visible noise, motion or
    haze; even exposure"). The last grade counts: free texts weigh before they judge. A heuristic; for texts that are
    free indeed there is the judge (`annotate.agreement`).
    """
    grades = GRADE.findall(text)
    if not grades:
        return None
    grade = grades[-1].lower()
    claims = [claim for clause in CLAUSES.split(text) for claim in claimed(clause)]
    found = frozenset(name for claim in claims for name, said in SAID.items() if said.search(claim))
    if not found and grade != GRADES[0]:
        return None
    blamed = [claim for claim in claims if any(SAID[name].search(claim) for name in found)]
    levels = [level for level, words in LEVELS.items() if any(words.search(claim) for claim in blamed)]
    return Findings(found, max(levels, key=SEVERITIES.index, default=None) if found else "none", grade)


def claimed(clause: str) -> list[str]:
    """What a clause says is there: its parts between commas up to the first denial, which holds for those after it
    until one has a degree of its own ("no noise, motion or haze, severe blur")."""
    claims, denied = [], False
    for part in clause.split(","):
        denial = DENIED.search(part)
        denied = denial is not None or (denied and not any(words.search(part) for words in LEVELS.values()))
        said = part[: denial.start()] if denial else "" if denied else part
        if said and not PRAISED.search(said):
            claims.append(said)
    return claims


def overlap(first: str, second: str) -> float:
    """Similarity of two texts in [0, 1], symmetric: F1 of the words that they share, each as often as it is there."""
    words, others = (Counter(re.findall(r"\w+", text.lower())) for text in (first, second))
    total = words.total() + others.total()
    return 2 * (words & others).total() / total if total else 0.0
