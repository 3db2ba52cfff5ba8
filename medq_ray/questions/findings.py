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
    "mild": r"(?:mild|slight|minor|minimal|subtle)(?:ly)?",
    "severe": r"(?:severe|strong|heavy|marked|pronounced|substantial)(?:ly)?",
}
DEGREE = "|".join(LEVELS.values())
NAMES = rf"(?:{ANY})(?:(?:,| and|, and) (?:(?:{DEGREE}) )?(?:{ANY}))*"
LEAD = r"\W*(?:(?:and|with|there (?:is|are)|it has|it shows|the image has|the image shows)\W+)*"
TAIL = r"(?: arte?facts?)?(?: (?:is|are))?(?: (?:visible|seen|present))?\W*"
FOUND = re.compile(rf"{LEAD}(?:{DEGREE}) {NAMES}{TAIL}", re.IGNORECASE)
"""A statement that degradations are there, each with a degree, and nothing else."""
DENIED = re.compile(
    rf"{LEAD}(?:no|without(?: any)?)(?: (?:visible|obvious|apparent|clear))?"
    rf" (?:{ANY}|degradations?|arte?facts?)(?:(?:,| or| nor| and|, or|, nor|, and) (?:{ANY}))*{TAIL}",
    re.IGNORECASE,
)
"""A statement that degradations are not there, and nothing else."""
WATCHED = re.compile(
    rf"\b(?:{ANY}|{DEGREE}|arte?facts?|degrad\w+)\b|n't\b"
    r"|\b(?:no|not|none|nor|never|neither|without|absen\w+|nothing|zero|free|lack\w*|hardly|barely|cannot|negative"
    r"|deni\w+|unlikely|doubt\w*|fail\w*|ruled)\b|[?:]",
    re.IGNORECASE,
)
"""What makes any other statement one that leaves a doubt."""
VERDICT = re.compile(
    r"(?:overall,? )?the (?:overall )?quality of (?:this|the)(?: [\w-]+){1,3} is "
    rf"['\"*]*({'|'.join(GRADES)})['\"*]*\.?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Findings:
    """What a description commits itself to."""

    degrees: frozenset[tuple[str, str]]
    """(degradation, mild | severe)"""
    grade: str
    modality: str | None
    """None where it names none, or several."""

    @property
    def degradations(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.degrees)

    @property
    def severity(self) -> str:
        """Of the worst degradation; 'none' without any."""
        return max((degree for _, degree in self.degrees), key=SEVERITIES.index, default="none")

    def same(self, other: "Findings") -> bool:
        """Whether both call the image the same; a modality that one does not name is no difference."""
        return (self.degrees, self.grade) == (other.degrees, other.grade) and not self.contradicts(other)

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

    It must end in a verdict (`verdict_of`). Before that each clause must deny degradations (DENIED) and nothing else,
    or each of its parts between commas state that some are there (FOUND) and nothing else, or have nothing to do with
    either: of a text in which any other part has one of the words of WATCHED, nothing is read. Nor is it where verdict
    and findings do not go together: severe findings and 'good', none and another grade than 'good', one degradation in
    two degrees.
    """
    last, grade = verdict_of(text)
    if grade is None:
        return None
    found: set[tuple[str, str]] = set()
    for clause in re.split(r"[.;!\n]|\bbut\b", text.strip().removesuffix(last)):
        for part in () if DENIED.fullmatch(clause) else clause.split(","):
            if FOUND.fullmatch(part):
                found |= stated(part)
            elif WATCHED.search(part):  # a denial too: nobody knows how far down a list it reaches
                return None
    named = [name for name, words in NAMED.items() if words.search(text)]
    findings = Findings(frozenset(found), grade, named[0] if len(named) == 1 else None)
    contrary = (findings.severity == "severe" and grade == GRADES[0]) or (not found and grade != GRADES[0])
    return None if contrary or len(findings.degradations) < len(found) else findings


def stated(part: str) -> set[tuple[str, str]]:
    """(degradation, degree) of each that a FOUND statement names; one without a degree of its own has that before."""
    found, degree = set(), ""
    for word in re.finditer(rf"\b(?:{DEGREE})\b|\b(?:{ANY})\b", part, re.IGNORECASE):
        level = next((name for name, words in LEVELS.items() if re.fullmatch(words, word[0], re.IGNORECASE)), "")
        degree = level or degree
        found |= {(name, degree) for name, words in SAID.items() if not level and words.fullmatch(word[0])}
    return found


def overlap(first: str, second: str) -> float:
    """Similarity of two texts in [0, 1], symmetric: F1 of the words that they share, each as often as it is there."""
    words, others = (Counter(re.findall(r"\w+", text.lower())) for text in (first, second))
    total = words.total() + others.total()
    return 2 * (words & others).total() / total if total else 0.0
