"""The failure pool B and the error rate of each capability (paper Sec. 2.2, eq. 1)."""

from collections import Counter, defaultdict

import pyarrow as pa

from medq_ray.model.prompts import parse_letter
from medq_ray.questions import LETTERS
from medq_ray.schema import FAILURE


def in_words(question: dict, answer: str) -> str:
    """An answer as text: the option of its letter, or the reply itself where it has none."""
    letter = parse_letter(answer, len(question["options"])) if question["options"] else None
    return question["options"][LETTERS.index(letter)] if letter else answer


def failures(questions: pa.Table, completions: pa.Table, scores: pa.Table) -> pa.Table:
    """The failure pool as schema.FAILURE, sorted by question_id: failed questions with expected and given answer.

    `given` is the most frequent reply of the runs, the alphabetically first among equals; letters appear as the
    options that they stand for, since a letter means nothing outside its question.
    """
    error_rate = {row["question_id"]: row["error_rate"] for row in scores.to_pylist() if row["failure"]}
    replies: dict[str, Counter] = defaultdict(Counter)
    for row in completions.select(["question_id", "text"]).to_pylist():
        replies[row["question_id"]][row["text"]] += 1
    rows = []
    for question in questions.sort_by("question_id").to_pylist():
        name = question["question_id"]
        if name in error_rate:
            given = min(replies[name].items(), key=lambda item: (-item[1], item[0]))[0]
            row = {field: question[field] for field in FAILURE.names if field in question}
            row |= {"expected": in_words(question, question["answer"]), "given": in_words(question, given)}
            rows.append(row | {"error_rate": error_rate[name]})
    return pa.Table.from_pylist(rows, schema=FAILURE)


def rates(questions: pa.Table, scores: pa.Table) -> dict[str, dict]:
    """Eq. 1: capability -> {e, failures, questions}, where e = failures / questions, over all capabilities of D_dev."""
    failed = dict(zip(scores["question_id"].to_pylist(), scores["failure"].to_pylist(), strict=True))
    asked, lost = Counter(), Counter()
    for name, vector in zip(
        questions["question_id"].to_pylist(), questions["capabilities"].to_pylist(), strict=True
    ):
        asked.update(vector)
        lost.update(vector if failed[name] else ())
    return {
        capability: {"e": lost[capability] / n, "failures": lost[capability], "questions": n}
        for capability, n in sorted(asked.items())
    }
