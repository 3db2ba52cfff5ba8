"""The failure pool B and the error rate of each capability (paper Sec. 2.2, eq. 1)."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

import pyarrow as pa

from medq_ray.evaluate.scoring import answered, letter_in
from medq_ray.intervals import wilson
from medq_ray.questions import LETTERS
from medq_ray.schema import FAILURE
from medq_ray.tables import rows_of, table_of


def in_words(question: dict, answer: str) -> str:
    """An answer as text: the option of its letter, or the reply itself where it has none."""
    letter, options = letter_in(answer, question), question["options"]
    return options[LETTERS.index(letter)] if letter and LETTERS.index(letter) < len(options) else answer


def failures(questions: pa.Table, completions: pa.Table, scores: pa.Table) -> pa.Table:
    """The failure pool as schema.FAILURE, sorted by question_id: failed questions with expected and given answer.

    `given` is the most frequent wrong answer of the runs, the alphabetically first among equals; letters appear as the
    options that they stand for, since a letter means nothing outside its question. questions and completions as
    `answered` takes them, scores of these questions as `score` returns them.
    """
    scored = zip(answered(questions, completions), rows_of(scores), strict=True)
    rows = (failure(question, runs, score) for (question, runs), score in scored if score["failure"])
    return table_of(rows, FAILURE)


def failure(question: dict, runs: list[dict], score: dict) -> dict:
    """The row of schema.FAILURE of a question that failed, with its completions and its row of schema.SCORE."""
    wrong = (run["text"] for run, right in zip(runs, score["right"], strict=True) if right is False)
    replies = Counter(in_words(question, text) for text in wrong)
    row = {name: question[name] for name in FAILURE.names if name in question}
    return row | {
        "expected": in_words(question, question["answer"]),
        "given": min(replies.items(), key=lambda item: (-item[1], item[0]))[0],
        "error_rate": score["error_rate"],
    }


def rates(scores: pa.Table, crossings: Sequence[str] = ()) -> dict[str, dict]:
    """Eq. 1: capability -> {e, failures, questions, ci95, runs: {mean, sd}}, where e = failures / questions.

    Over all capabilities of D_dev, or over `crossings` ('kind x modality') of their axes instead. ci95 is Wilson's,
    questions taken as independent. `runs` is the error rate of single runs, its mean and its standard deviation from
    run to run (null for one run): an e that lies within a few of those of another is noise, not weakness. Questions
    that no run got an answer to are facts about the endpoint, and left out.
    """
    groups: dict[str, Tally] = defaultdict(Tally)
    for row in rows_of(scores):
        if row["error_rate"] is not None:
            for name in crossed(row["capabilities"], crossings) if crossings else row["capabilities"]:
                groups[name].add(row)
    return {name: tally.rate() for name, tally in sorted(groups.items())}


@dataclass
class Tally:
    """Counts of one capability."""

    questions: int = 0
    failures: int = 0
    wrong: Counter = field(default_factory=Counter)
    """Questions by run."""
    answered: Counter = field(default_factory=Counter)
    """Questions by run."""

    def add(self, row: dict) -> None:
        """Count a row of schema.SCORE."""
        self.questions += 1
        self.failures += row["failure"]
        self.answered.update(run for run, right in enumerate(row["right"]) if right is not None)
        self.wrong.update(run for run, right in enumerate(row["right"]) if right is False)

    def rate(self) -> dict:
        """Eq. 1, as `rates` says."""
        e = self.failures / self.questions
        single = [self.wrong[run] / count for run, count in sorted(self.answered.items())]
        return {
            "e": e,
            "failures": self.failures,
            "questions": self.questions,
            "ci95": [round(end, 6) for end in wilson(e, self.questions)],
            "runs": {"mean": round(mean(single), 6), "sd": round(stdev(single), 6) if len(single) > 1 else None},
        }


def crossed(capabilities: list[str], crossings: Sequence[str]) -> list[str]:
    """'kind:what x modality:ct' of a question, for each crossing 'kind x modality' of which it has both axes."""
    value = dict(capability.split(":", 1) for capability in capabilities)
    axes = [tuple(axis.strip() for axis in crossing.split(" x ")) for crossing in crossings]
    there = [pair for pair in axes if all(axis in value for axis in pair)]
    return [" x ".join(f"{axis}:{value[axis]}" for axis in pair) for pair in there]

