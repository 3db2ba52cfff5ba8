"""Eq. 1 and the failure pool."""

import pyarrow as pa

from medq_ray.evaluate.failures import failures, rates
from medq_ray.intervals import wilson
from medq_ray.schema import COMPLETION, FAILURE, QUESTION, SCORE


def world(outcomes: dict[str, tuple[list[str], bool, list[str]]]):
    """question id -> (capabilities, failed, replies)."""
    questions, completions, scores = [], [], []
    for name, (vector, failed, replies) in sorted(outcomes.items()):
        questions.append({"question_id": name, "image_id": "i" + name, "uri": "u", "kind": "what", "scope": "general",
                          "modality": "ct", "text": "What?", "options": ["blur", "ring"], "answer": "B",
                          "capabilities": vector})  # fmt: skip
        right = [reply == "B" for reply in replies] if failed else [True] * len(replies)
        scores.append({"question_id": name, "kind": "what", "modality": "ct", "patient": "i" + name,
                       "capabilities": vector, "right": right, "unparsed": 0, "failed": 0,
                       "wrong": len(replies) if failed else 0, "error_rate": float(failed), "failure": failed})  # fmt: skip
        completions += [{"question_id": name, "run": run, "model": "m", "text": text, "entropy": None, "tokens": 1,
                         "finish_reason": "stop", "error": ""} for run, text in enumerate(replies)]  # fmt: skip
    return (
        pa.Table.from_pylist(questions, schema=QUESTION),
        pa.Table.from_pylist(completions, schema=COMPLETION),
        pa.Table.from_pylist(scores, schema=SCORE),
    )


def test_rates_are_failures_over_questions_of_every_capability():
    _, _, scores = world(
        {
            "1": (["cell:ct/ring", "modality:ct"], True, ["A"]),
            "2": (["cell:ct/ring", "modality:ct"], False, ["B"]),
            "3": (["cell:ct/blur", "modality:ct"], False, ["B"]),
            "4": (["cell:ct/none", "modality:ct"], True, ["A"]),
        }
    )
    found = rates(scores)
    assert {name: (row["e"], row["failures"], row["questions"]) for name, row in found.items()} == {
        "cell:ct/blur": (0.0, 0, 1), "cell:ct/none": (1.0, 1, 1), "cell:ct/ring": (0.5, 1, 2), "modality:ct": (0.5, 2, 4)}  # fmt: skip
    assert found["modality:ct"]["ci95"] == [round(end, 6) for end in wilson(0.5, 4)]
    assert list(rates(scores, ["cell x modality"])) == [
        "cell:ct/blur x modality:ct", "cell:ct/none x modality:ct", "cell:ct/ring x modality:ct"]  # fmt: skip
    assert rates(scores, ["cell x severity"]) == {}


def scored(name: str, right: list[bool | None], failure: bool = False) -> dict:
    wrong, failed = right.count(False), right.count(None)
    rate = wrong / (len(right) - failed) if failed < len(right) else None
    return {"question_id": name, "kind": "what", "modality": "ct", "patient": name, "capabilities": ["k:a"], "right": right,
            "wrong": wrong, "unparsed": 0, "failed": failed, "error_rate": rate, "failure": failure}  # fmt: skip


def test_a_rate_comes_with_its_scatter_from_run_to_run():
    rows = [scored("1", [True, False, False], True), scored("2", [True, True, False]), scored("3", [None, None, None])]
    (row,) = rates(pa.Table.from_pylist(rows, schema=SCORE)).values()
    assert (row["e"], row["questions"]) == (0.5, 2)  # the third says something about the endpoint only
    assert row["runs"] == {"mean": 0.5, "sd": 0.5}  # 0, 1/2 and 1 of the questions were wrong
    single = rates(pa.Table.from_pylist([scored("1", [False], True)], schema=SCORE))["k:a"]
    assert single["runs"] == {"mean": 1.0, "sd": None}


def test_the_failure_pool_holds_failed_questions_with_answers_in_words():
    questions, completions, scores = world(
        {
            "2": (["a:b"], True, ["A", "A", "hm"]),
            "1": (["a:b"], True, ["mm", "hm", "mm", "hm"]),
            "3": (["a:b"], False, ["B"]),
        }
    )
    pool = failures(questions, completions, scores)
    assert pool.schema == FAILURE
    assert [(r["question_id"], r["expected"], r["given"]) for r in pool.to_pylist()] == [
        ("1", "ring", "hm"), ("2", "ring", "blur")]  # fmt: skip


def test_the_given_answer_is_a_wrong_one_however_it_is_written():
    """Right once and wrong in four ways of writing two options: neither the right one nor the alphabet decides."""
    pool = failures(*world({"1": (["a:b"], True, ["B", "A", "A.", "zz", "(A)"])}))
    assert [(row["expected"], row["given"]) for row in pool.to_pylist()] == [("ring", "blur")]
