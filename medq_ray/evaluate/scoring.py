"""Right or wrong, and how often: correctness of single answers, accuracy with intervals (MedQ-Bench's protocol)."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

import pyarrow as pa

from medq_ray.intervals import wilson
from medq_ray.questions import LETTERS, read_description
from medq_ray.schema import PERCEPTION_KINDS, SCORE
from medq_ray.tables import rows_of, table_of

AXES = ("kind", "modality", "severity", "scope", "cell")
"""Capability axes that accuracy is broken down by."""
READ_FIELDS = ("modality", "degradation", "grade")
"""Fields in which a description must agree with its reference. Severity is left out: the grade says it again."""
OFFICIAL_LETTERS = 4
"""MedQ-Bench knows A to D, however few options a question has."""

Outcome = tuple[bool | None, str]
"""Whether a run is right, None when it failed; and why: 'right', 'wrong: ...', 'unparsed' or 'failed: ...'."""


def matched(reply: str, letters: str) -> str:
    """The letter that MedQ-Bench's evaluator reads out of a reply, else the reply itself, stripped.

    Its rules, in its order and with its quirks: option texts mean nothing, and the article in 'This is a CT image, so
    B' is an A. `letters`: 'ABCD' there, 'ABCDE' in MedQ-Deg.
    """
    text = reply.strip()
    upper = text.upper()
    # 1. The whole reply is a letter.
    if len(upper) == 1 and upper in letters:
        return upper
    # 2. It begins with a letter and a full stop, bracket or space.
    if match := re.match(rf"([{letters}])[.)\s]", upper):
        return match[1]
    # 3. 'answer is X' or 'option X'. Never fires: the pattern is in lower case and the text in upper case.
    if match := re.search(rf"(?:answer is|option) ([{letters}])\b", upper):
        return match[1]
    # 4. It begins with a letter and a dash or colon.
    if match := re.match(rf"([{letters}])\s*[-:]", upper):
        return match[1]
    # 5. The first letter with no other letter beside it, anywhere.
    if match := re.search(rf"(?<![A-Z])([{letters}])(?![A-Z])", upper):
        return match[1]
    return text


def letter_in(reply: str, question: dict) -> str | None:
    """The letter in a reply to a question of schema.QUESTION, None where `matched` finds none."""
    letters = LETTERS[: max(OFFICIAL_LETTERS, len(question["options"]))]
    given = matched(reply, letters)
    return given if given in tuple(letters) else None


def correctness(question: dict, completion: dict) -> Outcome:
    """The outcome of one completion.

    Multiple choice: what `matched` finds must be the answer. Descriptions: modality, degradation and grade of the reply
    must agree with the reference (our choice for the embedded world, whose descriptions have one form; free text needs
    a judge). What cannot be parsed is wrong, and counted apart from wrong answers.
    """
    if completion["error"]:
        return None, f"failed: {completion['error']}"
    if question["kind"] != "description":
        letter, expected = letter_in(completion["text"], question), question["answer"]
        if letter is None:  # official: a reply in words is right where the answer is in the same words
            return (True, "right") if completion["text"].strip().upper() == expected.upper() else (False, "unparsed")
        return (True, "right") if letter == expected else (False, f"wrong: {letter}, not {expected}")
    given, reference = read_description(completion["text"]), read_description(question["answer"])
    if reference is None:
        raise ValueError(f"question {question['question_id']}: unreadable reference {question['answer']!r}")
    if given is None:
        return False, "unparsed"
    differing = [name for name in READ_FIELDS if given[name] != reference[name]]
    return not differing, "wrong: " + ", ".join(differing) if differing else "right"


def score(
    questions: pa.Table,
    completions: pa.Table,
    gamma: float,
    *,
    patient_of: Mapping[str, str] | None = None,
    judged: Mapping[tuple[str, int], Outcome] | None = None,
) -> pa.Table:
    """schema.SCORE, one row for each question, sorted by question_id; failure means error rate > gamma, strictly.

    questions: schema.QUESTION with answers; completions: schema.COMPLETION as `answered` takes them; patient_of:
    image id -> patient, as far as known; judged: outcomes by (question_id, run) that a judge decided, in place of
    `correctness`. Raises ValueError naming a question without any completion.
    """
    judged, patient_of = judged or {}, patient_of or {}
    rows = (
        scored(
            question,
            [judged.get((question["question_id"], run["run"])) or correctness(question, run) for run in runs],
            gamma,
            patient_of.get(question["image_id"]),
        )
        for question, runs in answered(questions, completions)
    )
    return table_of(rows, SCORE)


def answered(questions: pa.Table, completions: pa.Table) -> Iterator[tuple[dict, list[dict]]]:
    """Each question (schema.QUESTION) with its completions (question_id, run, text, error).

    questions: sorted by question_id; completions: sorted by question_id and run, as `ask` returns them. A sorted copy
    would cost more memory than all else that is done with them. Raises ValueError naming a question without any
    completion, or the first that does not lie where it should.
    """
    given = ascending(rows_of(completions.select(["question_id", "run", "text", "error"])), "question_id", "run")
    runs = groupby(given, key=lambda row: row["question_id"])
    name, own = next(runs, ("", iter(())))
    for question in ascending(rows_of(questions), "question_id"):
        while name < question["question_id"] and (more := next(runs, None)):
            name, own = more
        if name != question["question_id"]:
            raise ValueError(f"question {question['question_id']} has no completion, not even a failed one")
        yield question, list(own)


def ascending(rows: Iterable[dict], *columns: str) -> Iterator[dict]:
    """The same rows. Raises ValueError at one that does not lie above the last one by these columns."""
    last: tuple = ()
    for row in rows:
        place = tuple(row[column] for column in columns)
        if place <= last:
            raise ValueError(f"rows are not sorted by {' and '.join(columns)}: {place} comes after {last}")
        yield row
        last = place


def scored(question: dict, outcomes: list[Outcome], gamma: float, patient: str | None) -> dict:
    """The row of schema.SCORE of a question with these outcomes of its runs."""
    right = [run for run, _ in outcomes]
    wrong, failed = right.count(False), right.count(None)
    error_rate = wrong / (len(right) - failed) if failed < len(right) else None
    return {
        **{name: question[name] for name in ("question_id", "kind", "modality", "capabilities")},
        "patient": patient or question["image_id"],
        "right": right,
        "wrong": wrong,
        "unparsed": sum(why == "unparsed" for _, why in outcomes),
        "failed": failed,
        "error_rate": error_rate,
        "failure": error_rate is not None and error_rate > gamma,
    }


def share_right(row: dict) -> float:
    """Right runs of a row of schema.SCORE over all its runs: a run without an answer is not right (official)."""
    return row["right"].count(True) / len(row["right"])


def rated(shares: Mapping[float, int]) -> dict:
    """{accuracy, n, ci95} of so many questions with each share of right runs; accuracy is null for none."""
    n = sum(shares.values())
    accuracy = math.fsum(share * count for share, count in shares.items()) / n if n else None
    low, high = wilson(accuracy or 0.0, n)
    return {
        "accuracy": None if accuracy is None else round(accuracy, 6),
        "n": n,
        "ci95": [round(low, 6), round(high, 6)],
    }


def accuracy(scores: pa.Table) -> dict:
    """Perception accuracy and its break-down: {accuracy, n, ci95, unparsed, failed, by_kind: {name: {accuracy, n,
    ci95}}, by_modality, by_severity, by_scope, by_cell}.

    scores: schema.SCORE. Accuracy is the micro average of correctness over questions (and runs). Descriptions appear
    in by_kind only: they are another task (Sec. 2.1). `unparsed` and `failed` are the shares of perception runs without
    a readable letter and without an answer.
    """
    groups: dict[str, dict[str, Counter]] = {axis: defaultdict(Counter) for axis in AXES}
    perception: Counter = Counter()
    count: Counter = Counter()
    for row in rows_of(scores):
        share, is_perception = share_right(row), row["kind"] in PERCEPTION_KINDS
        for capability in row["capabilities"]:
            axis, _, value = capability.partition(":")
            if axis == "kind" or (axis in groups and is_perception):
                groups[axis][value][share] += 1
        if is_perception:
            perception[share] += 1
            count.update(runs=len(row["right"]), unparsed=row["unparsed"], failed=row["failed"])
    tables = {
        f"by_{axis}": {value: rated(own) for value, own in sorted(values.items())} for axis, values in groups.items()
    }
    lost = {name: round(count[name] / count["runs"], 6) if perception else None for name in ("unparsed", "failed")}
    return rated(perception) | lost | tables
