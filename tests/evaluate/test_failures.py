"""Eq. 1 and the failure pool."""

import pyarrow as pa

from medq_ray.evaluate.failures import failures, rates
from medq_ray.schema import COMPLETION, FAILURE, QUESTION, SCORE


def world(outcomes: dict[str, tuple[list[str], bool, list[str]]]):
    """question id -> (capabilities, failed, replies)."""
    questions, completions, scores = [], [], []
    for name, (vector, failed, replies) in outcomes.items():
        questions.append({"question_id": name, "image_id": "i" + name, "uri": "u", "kind": "what", "scope": "general",
                          "modality": "ct", "text": "What?", "options": ["blur", "ring"], "answer": "B",
                          "capabilities": vector})  # fmt: skip
        scores.append({"question_id": name, "kind": "what", "modality": "ct", "runs": len(replies),
                       "wrong": len(replies) if failed else 0, "unparsed": 0, "error_rate": float(failed),
                       "failure": failed})  # fmt: skip
        completions += [{"question_id": name, "run": run, "model": "m", "text": text, "entropy": None, "tokens": 1,
                         "finish_reason": "stop", "error": ""} for run, text in enumerate(replies)]  # fmt: skip
    return (
        pa.Table.from_pylist(questions, schema=QUESTION),
        pa.Table.from_pylist(completions, schema=COMPLETION),
        pa.Table.from_pylist(scores, schema=SCORE),
    )


def test_rates_are_failures_over_questions_of_every_capability():
    questions, _, scores = world(
        {
            "1": (["cell:ct/ring", "modality:ct"], True, ["A"]),
            "2": (["cell:ct/ring", "modality:ct"], False, ["B"]),
            "3": (["cell:ct/blur", "modality:ct"], False, ["B"]),
            "4": (["cell:ct/none", "modality:ct"], True, ["A"]),
        }
    )
    order = [2, 0, 3, 1]  # the two tables need not be in one order
    assert rates(questions.take(order), scores) == {
        "cell:ct/blur": {"e": 0.0, "failures": 0, "questions": 1},
        "cell:ct/none": {"e": 1.0, "failures": 1, "questions": 1},
        "cell:ct/ring": {"e": 0.5, "failures": 1, "questions": 2},
        "modality:ct": {"e": 0.5, "failures": 2, "questions": 4},
    }


def test_the_failure_pool_holds_failed_questions_with_answers_in_words():
    questions, completions, scores = world(
        {
            "2": (["a:b"], True, ["A", "A", "hm"]),
            "1": (["a:b"], True, ["well", "hm", "well", "hm"]),
            "3": (["a:b"], False, ["B"]),
        }
    )
    pool = failures(questions, completions, scores)
    assert pool.schema == FAILURE
    assert [(r["question_id"], r["expected"], r["given"]) for r in pool.to_pylist()] == [
        ("1", "ring", "hm"), ("2", "ring", "blur")]  # fmt: skip
