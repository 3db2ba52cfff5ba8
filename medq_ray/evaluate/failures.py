"""The failure pool B and the error rate of each capability (paper Sec. 2.2, eq. 1)."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import mean, stdev

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.evaluate.scoring import letter_in, wilson
from medq_ray.questions import LETTERS
from medq_ray.schema import FAILURE


def in_words(question: dict, answer: str) -> str:
    """An answer as text: the option of its letter, or the reply itself where it has none."""
    letter, options = letter_in(answer, question), question["options"]
    return options[LETTERS.index(letter)] if letter and LETTERS.index(letter) < len(options) else answer


def failures(questions: pa.Table, completions: pa.Table, scores: pa.Table) -> pa.Table:
    """The failure pool as schema.FAILURE, sorted by question_id: failed questions with expected and given answer.

    `given` is the most frequent wrong answer of the runs, the alphabetically first among equals; letters appear as the
    options that they stand for, since a letter means nothing outside its question.
    """
    failed = {row["question_id"]: row for row in scores.to_pylist() if row["failure"]}
    asked = {row["question_id"]: row for row in questions.to_pylist()}
    replies: dict[str, Counter] = defaultdict(Counter)
    names = pa.array(sorted(failed), pa.string())
    wanted = completions.filter(pc.is_in(completions["question_id"], names)).select(["question_id", "run", "text"])
    for row in wanted.to_pylist():
        name = row["question_id"]
        if failed[name]["right"][row["run"]] is False:
            replies[name][in_words(asked[name], row["text"])] += 1
    rows = []
    for question in questions.sort_by("question_id").to_pylist():
        name = question["question_id"]
        if name in failed:
            given = min(replies[name].items(), key=lambda item: (-item[1], item[0]))[0]
            row = {field: question[field] for field in FAILURE.names if field in question}
            row |= {"expected": in_words(question, question["answer"]), "given": given}
            rows.append(row | {"error_rate": failed[name]["error_rate"]})
    return pa.Table.from_pylist(rows, schema=FAILURE)


def rates(scores: pa.Table, crossings: Sequence[str] = ()) -> dict[str, dict]:
    """Eq. 1: capability -> {e, failures, questions, ci95, runs: {mean, sd}}, where e = failures / questions.

    Over all capabilities of D_dev, or over `crossings` ('kind x modality') of their axes instead. ci95 is Wilson's,
    questions taken as independent. `runs` is the error rate of single runs, its mean and its standard deviation from
    run to run (null for one run): an e that lies within a few of those of another is noise, not weakness. Questions
    that no run got an answer to are facts about the endpoint, and left out.
    """
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in scores.to_pylist():
        for name in crossed(row["capabilities"], crossings) if crossings else row["capabilities"]:
            groups[name].append(row)
    known = {name: [row for row in rows if row["error_rate"] is not None] for name, rows in sorted(groups.items())}
    return {name: rate(rows) for name, rows in known.items() if rows}


def crossed(capabilities: list[str], crossings: Sequence[str]) -> list[str]:
    """'kind:what x modality:ct' of a question, for each crossing 'kind x modality' of which it has both axes."""
    value = dict(capability.split(":", 1) for capability in capabilities)
    axes = [tuple(axis.strip() for axis in crossing.split(" x ")) for crossing in crossings]
    there = [pair for pair in axes if all(axis in value for axis in pair)]
    return [" x ".join(f"{axis}:{value[axis]}" for axis in pair) for pair in there]


def rate(rows: list[dict]) -> dict:
    """Eq. 1 of one capability; rows: schema.SCORE with an error rate."""
    failed = sum(row["failure"] for row in rows)
    single = []
    for run in range(max(len(row["right"]) for row in rows)):
        outcomes = [row["right"][run] for row in rows if run < len(row["right"]) and row["right"][run] is not None]
        single += [outcomes.count(False) / len(outcomes)] if outcomes else []
    return {
        "e": failed / len(rows),
        "failures": failed,
        "questions": len(rows),
        "ci95": [round(end, 6) for end in wilson(failed / len(rows), len(rows))],
        "runs": {"mean": round(mean(single), 6), "sd": round(stdev(single), 6) if len(single) > 1 else None},
    }
