"""Descriptions before the judge: which runs of which questions are good enough?"""

from collections import defaultdict
from pathlib import Path
from statistics import mean

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import write_table
from medq_ray.config import Judge
from medq_ray.evaluate.scoring import Outcome
from medq_ray.judging.judge import failed_axes, judge_descriptions
from medq_ray.judging.wording import AXES
from medq_ray.model.ask import Answer
from medq_ray.schema import JUDGEMENT


def judged(
    path: Path, questions: pa.Table, completions: pa.Table, settings: Judge, answer: Answer
) -> dict[tuple[str, int], Outcome]:
    """(question id, run) -> outcome of every run of a description: wrong when an axis is below its threshold.

    Writes schema.JUDGEMENT to `path`; its question ids are 'question/run'. A run that has no score on any axis is
    failed: that says something about the judge, and nothing about the model.
    """
    asked = questions.filter(pc.equal(questions["kind"], "description"))
    golden = dict(zip(asked["question_id"].to_pylist(), asked["answer"].to_pylist(), strict=True))
    given = completions.filter(pc.is_in(completions["question_id"], asked["question_id"].combine_chunks()))
    given = given.select(["question_id", "run", "text", "error"])
    runs = [row for row in given.to_pylist() if not row["error"]]
    items = [
        {"question_id": f"{row['question_id']}/{row['run']}", "golden": golden[row["question_id"]],
         "prediction": row["text"]}
        for row in runs
    ]  # fmt: skip
    judgements = judge_descriptions(items, answer, settings)
    write_table(path, judgements, JUDGEMENT)
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: {axis: [] for axis in AXES})
    for row in judgements.to_pylist():
        scores[row["question_id"]][row["axis"]] += [] if row["score"] is None else [row["score"]]
    return {
        (row["question_id"], row["run"]): outcome(scores[f"{row['question_id']}/{row['run']}"], settings)
        for row in runs
    }


def outcome(scores: dict[str, list[float]], settings: Judge) -> Outcome:
    """The outcome of one run, from its scores of all rounds."""
    means = {axis: mean(values) if values else None for axis, values in scores.items()}
    if not any(scores.values()):
        return None, "failed: the judge gave no score"
    below = failed_axes(means, settings.least)
    return not below, "wrong: " + ", ".join(below) if below else "right"
