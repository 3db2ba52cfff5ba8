"""The agreement R(., .) of two annotations (paper Sec. 2.3; the function itself is not in the paper: our choice)."""

from collections.abc import Sequence
from statistics import mean

from medq_ray.config import Judge
from medq_ray.judging.judge import judge_descriptions
from medq_ray.judging.wording import AXES
from medq_ray.model.ask import Answer
from medq_ray.model.prompts import parse_letter
from medq_ray.questions.findings import overlap, read_findings

WEIGHTS = {"degradations": 0.55, "severity": 0.2, "grade": 0.2, "words": 0.05}
"""Shares in R of two descriptions; they add up to 1. Degradations count by the share that both name of those that
either names (Jaccard), words by the F1 of those that both use. With tau_ann = 0.7, or 0.5, another degradation alone
is a disagreement (at most 0.45), and so is a missed one (at most 0.05); mild against severe, which moves the grade
too, has 0.55 and what the words share: at most 0.6."""
JUDGED = tuple(axis for axis in AXES if axis != "consistency")
"""Axes whose mean score is a judge's R. Consistency is a text's with itself, and costs nothing to be wrong about."""


def readable(kind: str, text: str, options: int) -> str | None:
    """An annotation in the form that is trained on: the bare letter, or the description without outer blanks.
    None when it cannot be read, which is its own outcome."""
    if kind == "description":
        return text.strip() if read_findings(text) else None
    return parse_letter(text, options)


def agreement(kind: str, first: str, second: str, options: int) -> float:
    """R in [0, 1], symmetric: letters are equal (1) or not (0); descriptions get the WEIGHTS of what they share.
    0 if either cannot be read: what cannot be read confirms nothing, not even itself."""
    if kind != "description":
        return float(says_same(kind, first, second, options))
    found, other = read_findings(first), read_findings(second)
    if found is None or other is None:
        return 0.0
    either = found.degradations | other.degradations
    shares = {
        "degradations": len(found.degradations & other.degradations) / len(either) if either else 1.0,
        "severity": float(found.severity == other.severity),
        "grade": float(found.grade == other.grade),
        "words": overlap(first, second),
    }
    return round(sum(weight * shares[name] for name, weight in WEIGHTS.items()), 9)


def says_same(kind: str, first: str, second: str, options: int) -> bool:
    """Whether two annotations are one label: the same letter, or the same findings in whatever words. False if either
    cannot be read."""
    read = read_findings if kind == "description" else lambda text: parse_letter(text, options)
    found = read(first)
    return found is not None and found == read(second)


def judged(pairs: Sequence[tuple[str, str, str]], settings: Judge, ask_judge: Answer) -> dict[str, float]:
    """Name -> R of two descriptions by the judge, for (name, the model's, the oracle's, which counts as the expert's):
    the mean over JUDGED and rounds of its scores, 0 to 2, over 2. What it gave no score is not in it.

    Not symmetric, as the judge's rubrics are not.
    """
    rows = [{"question_id": name, "golden": theirs, "prediction": mine} for name, mine, theirs in pairs]
    scores = judge_descriptions(rows, ask_judge, settings)
    found: dict[str, list[float]] = {}
    for row in scores.to_pylist():
        if row["axis"] in JUDGED and row["score"] is not None:
            found.setdefault(row["question_id"], []).append(row["score"])
    return {name: min(mean(values) / 2, 1.0) for name, values in found.items()}
