"""What a description says about an image's quality, where its words leave no doubt: degradations, severity, grade.

Floor 1. `questions.read_description` reads the closed form that the embedded world writes; models and people write
sentences that end as MedQ-Bench asks: "Overall, the quality of this image is good / usable / reject". Rules are ours,
and rather leave a text unread, which sends it to an expert or the judge, than take a denial for a finding.
"""

import re
from collections import Counter
from dataclasses import dataclass

from medq_ray.questions import DEGRADATION_NAMES, MODALITY_NAMES
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
ANY = "|".join(f"(?:{words.pattern})" for words in SAID.values())
MODALITIES = {
    "mri": r"mri?|magnetic resonance", "ct": r"ct|tomogra\w+", "endoscopy": r"endoscop\w+", "fundus": r"fundus\w*",
    "histopathology": r"histo(?:patho)?log\w+",
}  # fmt: skip
NAMED = {name: re.compile(rf"\b(?:{MODALITIES[name]})\b", re.IGNORECASE) for name in MODALITY_NAMES}
LEVELS = {
    "mild": re.compile(r"\b(?:mild|slight|minor|minimal|subtle)(?:ly)?\b", re.IGNORECASE),
    "severe": re.compile(r"\b(?:severe|strong|heavy|marked|pronounced|substantial)(?:ly)?\b", re.IGNORECASE),
}
DOUBTED = re.compile(
    r"n't\b|\b(?:no|not|none|nor|never|neither|without|absen\w+|free|lack\w*|hardly|barely|cannot|instead|rather|unlike"
    r"|exclu\w+|remov\w+|correct\w*|avoid\w*|prevent\w*|suppress\w*|reduc\w+|less|low|little|if|may|might|could|would"
    r"|possib\w+|question\w*|almost|nearly|previous\w*|earlier|other)\b",
    re.IGNORECASE,
)
"""Words beside which a degradation may be anything but a finding."""
DENIED = re.compile(
    r"\W*(?:(?:and|but|there (?:is|are)|it has|with)\W+)?(?:no|without(?: any)?)"
    rf"(?: (?:visible|obvious|apparent|clear))? (?:{ANY})(?:(?:,| or| nor| and|, or|, nor|, and) (?:{ANY}))*"
    r"(?: arte?facts?)?(?: (?:is|are))?"
    r"(?: (?:visible|seen|present))?\W*",
    re.IGNORECASE,
)
"""A clause that denies degradations and says nothing else."""
CLAUSES = re.compile(r"[.;:!?\n]|\b(?:but|however|although|though|despite|while|yet|whereas)\b", re.IGNORECASE)
VERDICT = re.compile(
    r"(?:overall,? )?the (?:overall )?quality of (?:this|the)(?: [\w-]+){1,3} is "
    rf"['\"*]*({'|'.join(GRADES)})['\"*]*\.?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Findings:
    """What a description commits itself to."""

    degradations: frozenset[str]
    severity: str
    """Of the worst degradation; 'none' without any."""
    grade: str
    modality: str | None
    """None where it names none, or several."""

    def same(self, other: "Findings") -> bool:
        """Whether both call the image the same; a modality that one does not name is no difference."""
        return (self.degradations, self.severity, self.grade) == (
            other.degradations, other.severity, other.grade
        ) and not self.contradicts(other)  # fmt: skip

    def contradicts(self, other: "Findings") -> bool:
        """Whether they speak of images of different modalities."""
        return None not in (self.modality, other.modality) and self.modality != other.modality


def verdict_of(text: str) -> tuple[str, str | None]:
    """The last sentence of a description and the grade that it gives, None where it is no VERDICT."""
    *_, last = re.split(r"(?<=[.!?])\s+|\n+", text.strip())
    verdict = VERDICT.fullmatch(last)
    return last, None if verdict is None else verdict[1].lower()


def read_findings(text: str) -> Findings | None:
    """The findings of a description, None where it cannot be read.

    It must end in a verdict (`verdict_of`). Each clause or part between commas that names a degradation must either
    give its degree and have none of the words of DOUBTED in it, which makes it a finding, or deny it in one of the
    forms of DENIED; of a text with any other mention nothing is read. Nor is it where verdict and findings do not go
    together: severe findings and 'good', none and another grade than 'good'.
    """
    last, grade = verdict_of(text)
    if grade is None:
        return None
    said = text.strip().removesuffix(last)
    found: dict[str, str] = {}
    for clause in CLAUSES.split(said):
        if DENIED.fullmatch(clause):
            continue
        for part in clause.split(","):
            names = [name for name, words in SAID.items() if words.search(part)]
            degrees = [level for level, words in LEVELS.items() if words.search(part)]
            if names and not DENIED.fullmatch(part):
                if len(degrees) != 1 or DOUBTED.search(part):
                    return None
                found |= dict.fromkeys(names, degrees[0])
    severity = max(found.values(), key=SEVERITIES.index, default="none")
    if (severity == "severe" and grade == GRADES[0]) or (not found and grade != GRADES[0]):
        return None
    named = [name for name, words in NAMED.items() if words.search(text)]
    return Findings(frozenset(found), severity, grade, named[0] if len(named) == 1 else None)


def overlap(first: str, second: str) -> float:
    """Similarity of two texts in [0, 1], symmetric: F1 of the words that they share, each as often as it is there."""
    words, others = (Counter(re.findall(r"\w+", text.lower())) for text in (first, second))
    total = words.total() + others.total()
    return 2 * (words & others).total() / total if total else 0.0
