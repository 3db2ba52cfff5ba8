"""The agreement R(., .) of two annotations (paper Sec. 2.3; the function itself is not in the paper: our choice)."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean

from medq_ray.config import Judge
from medq_ray.judging.judge import judge_descriptions
from medq_ray.judging.wording import AXES
from medq_ray.labels import says_same
from medq_ray.model.ask import Answer
from medq_ray.questions.findings import overlap, read_findings

WEIGHTS = {"degradations": 0.55, "severity": 0.2, "grade": 0.2, "words": 0.05}
"""Shares in R of two descriptions; they add up to 1. Degradations, severity and grade are equal or not, words count by
the F1 of those that both use. With tau_ann = 0.7, or 0.5, another degradation, one too many or one missed is a
disagreement (at most 0.45); so is, with 0.7, mild against severe, which moves the grade too (at most 0.6)."""
JUDGED = tuple(axis for axis in AXES if axis != "consistency")
"""Axes whose mean score is a judge's R. Consistency is a text's with itself, and costs nothing to be wrong about."""


def agreement(kind: str, first: str, second: str, options: int) -> float:
    """R in [0, 1], symmetric: letters are equal (1) or not (0); descriptions get the WEIGHTS of what they share. 0 if
    either cannot be read: what cannot be read confirms nothing, not even itself; and if they name two modalities."""
    if kind != "description":
        return float(says_same(kind, first, second, options))
    found, other = read_findings(first), read_findings(second)
    if found is None or other is None or found.contradicts(other):
        return 0.0
    fields = ("degradations", "severity", "grade")
    shares = {name: float(getattr(found, name) == getattr(other, name)) for name in fields}
    shares["words"] = overlap(first, second)
    return round(sum(weight * shares[name] for name, weight in WEIGHTS.items()), 9)


def judged(pairs: Sequence[tuple[str, str, str]], settings: Judge, ask_judge: Answer) -> dict[str, float]:
    """Name -> R of two descriptions by the judge, for (name, the model's, the oracle's, which counts as the expert's):
    the mean over JUDGED and rounds of its scores, 0 to 2, over 2. One with an axis that got no score is not in it.

    The same text twice is 1, and not asked about. Not symmetric, as the judge's rubrics are not.
    """
    found = {name: 1.0 for name, mine, theirs in pairs if mine.strip() == theirs.strip()}
    rows = [{"question_id": name, "golden": theirs, "prediction": mine}
            for name, mine, theirs in pairs if name not in found]  # fmt: skip
    scores = defaultdict(list)
    for row in judge_descriptions(rows, ask_judge, settings, axes=JUDGED).to_pylist() if rows else ():
        scores[row["question_id"]].append(row["score"])
    return found | {name: min(mean(own) / 2, 1.0) for name, own in scores.items() if None not in own}
