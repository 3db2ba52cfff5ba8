"""Right or wrong, and how often: correctness of single answers, accuracy with intervals, paired comparison."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

import pyarrow as pa

from medq_ray.model.prompts import parse_letter
from medq_ray.questions import read_description
from medq_ray.schema import PERCEPTION_KINDS, SCORE

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""
AXES = ("kind", "modality", "severity", "scope", "cell")
"""Capability axes that accuracy is broken down by."""
READ_FIELDS = ("modality", "degradation", "grade")
"""Fields in which a description must agree with its reference. Severity is left out: the grade says it again."""


def correctness(question: dict, completion: dict) -> tuple[bool, str]:
    """(right, why) of one completion; why is 'right', 'wrong: ...', 'unparsed' or 'failed: ...' (no answer came).

    Multiple choice: the letter must be the answer's. Descriptions: modality, degradation and grade of the reply must
    agree with the reference (our choice; the paper has a judge give 0 to 2 on four axes). What cannot be parsed is
    wrong, and counted apart from wrong answers.
    """
    if completion["error"]:
        return False, f"failed: {completion['error']}"
    if question["kind"] != "description":
        letter = parse_letter(completion["text"], len(question["options"]))
        if letter is None:
            return False, "unparsed"
        expected = question["answer"]
        return (True, "right") if letter == expected else (False, f"wrong: {letter}, not {expected}")
    given, reference = read_description(completion["text"]), read_description(question["answer"])
    if reference is None:
        raise ValueError(f"question {question['question_id']}: unreadable reference {question['answer']!r}")
    if given is None:
        return False, "unparsed"
    differing = [name for name in READ_FIELDS if given[name] != reference[name]]
    return not differing, "wrong: " + ", ".join(differing) if differing else "right"


def score(questions: pa.Table, completions: pa.Table, gamma: float) -> pa.Table:
    """schema.SCORE, one row for each question, sorted by question_id; failure means error rate > gamma, strictly.

    questions: schema.QUESTION with answers; completions: schema.COMPLETION, at least one for each question.
    Raises ValueError naming a question without any.
    """
    answers: dict[str, list[dict]] = defaultdict(list)
    for completion in completions.select(["question_id", "text", "error"]).to_pylist():
        answers[completion["question_id"]].append(completion)
    rows = []
    for question in questions.sort_by("question_id").to_pylist():
        name = question["question_id"]
        if name not in answers:
            raise ValueError(f"question {name} has no completion, not even a failed one")
        outcomes = [correctness(question, completion) for completion in answers[name]]
        wrong = sum(not right for right, _ in outcomes)
        rows.append(
            {
                "question_id": name,
                "kind": question["kind"],
                "modality": question["modality"],
                "runs": len(outcomes),
                "wrong": wrong,
                "unparsed": sum(why == "unparsed" for _, why in outcomes),
                "error_rate": wrong / len(outcomes),
                "failure": wrong / len(outcomes) > gamma,
            }
        )
    return pa.Table.from_pylist(rows, schema=SCORE)


def wilson(rate: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a rate over n questions; (0, 1) for none.

    With several runs a question, `rate` is the mean of the questions' own means, whose variance is at most that of
    one run: the interval then is conservative.
    """
    if n == 0:
        return 0.0, 1.0
    centre = rate + Z95**2 / (2 * n)
    spread = Z95 * math.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def rated(error_rates: Iterable[float]) -> dict:
    """{accuracy, n, ci95} of questions with these error rates; accuracy is null for none."""
    rates = list(error_rates)
    accuracy = 1 - math.fsum(rates) / len(rates) if rates else None
    low, high = wilson(accuracy or 0.0, len(rates))
    return {
        "accuracy": None if accuracy is None else round(accuracy, 6),
        "n": len(rates),
        "ci95": [round(low, 6), round(high, 6)],
    }


def accuracy(questions: pa.Table, scores: pa.Table) -> dict:
    """Perception accuracy and its break-down: {accuracy, n, ci95, unparsed, by_kind: {name: {accuracy, n, ci95}},
    by_modality, by_severity, by_scope, by_cell}.

    Accuracy is the micro average of correctness over questions (and runs). Descriptions appear in by_kind only: they
    are another task (Sec. 2.1). `unparsed` is the share of perception runs without a readable letter.
    """
    vectors = dict(zip(questions["question_id"].to_pylist(), questions["capabilities"].to_pylist(), strict=True))
    rows = scores.to_pylist()
    groups: dict[str, dict[str, list[float]]] = {axis: defaultdict(list) for axis in AXES}
    for row in rows:
        for capability in vectors[row["question_id"]]:
            axis, _, value = capability.partition(":")
            if axis == "kind" or (axis in groups and row["kind"] in PERCEPTION_KINDS):
                groups[axis][value].append(row["error_rate"])
    perception = [row for row in rows if row["kind"] in PERCEPTION_KINDS]
    runs = sum(row["runs"] for row in perception)
    tables = {
        f"by_{axis}": {value: rated(own) for value, own in sorted(values.items())} for axis, values in groups.items()
    }
    unparsed = round(sum(row["unparsed"] for row in perception) / runs, 6) if runs else None
    return rated(row["error_rate"] for row in perception) | {"unparsed": unparsed} | tables


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: of the questions whose outcome changed, `gained` became right and `lost`
    wrong; under no difference each is a fair coin."""
    n, k = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0


def compare(before: pa.Table, after: pa.Table, patient_of: Mapping[str, str]) -> dict:
    """{difference, ci95, p_mcnemar, n, gained, lost} of perception accuracy, after minus before, paired by question.

    before, after: schema.SCORE tables of the same questions, one run each; patient_of: question id -> patient.
    The interval is Wald's for a paired difference with patients as clusters: three questions about one image, or about
    two images of a patient, are not independent observations. McNemar's test, which the field reports, takes them as
    such. Raises ValueError when the tables are of different questions.
    """
    right = [
        {row["question_id"]: row["wrong"] == 0 for row in table.to_pylist() if row["kind"] in PERCEPTION_KINDS}
        for table in (before, after)
    ]
    if right[0].keys() != right[1].keys():
        odd = min(right[0].keys() ^ right[1].keys())
        raise ValueError(f"the two score tables are of different questions; only one has {odd}")
    n = len(right[0])
    if n == 0:
        raise ValueError("the two score tables have no perception questions to compare")
    change = {name: right[1][name] - right[0][name] for name in right[0]}
    gained, lost = (sum(value == sign for value in change.values()) for sign in (1, -1))
    difference = (gained - lost) / n
    deviation: dict[str, float] = defaultdict(float)
    for name, value in change.items():
        deviation[patient_of[name]] += value - difference
    half = Z95 * math.sqrt(math.fsum(value**2 for value in deviation.values())) / n
    return {
        "difference": round(difference, 6),
        "ci95": [round(max(-1.0, difference - half), 6), round(min(1.0, difference + half), 6)],
        "p_mcnemar": mcnemar(gained, lost),
        "n": n,
        "gained": gained,
        "lost": lost,
    }
