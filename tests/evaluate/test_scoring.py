"""Correctness is strict, accuracy is the micro average, comparisons are paired."""

import math

import pyarrow as pa
import pytest

from medq_ray.evaluate.scoring import accuracy, compare, correctness, mcnemar, score, wilson
from medq_ray.questions import capabilities, describe
from medq_ray.schema import COMPLETION, QUESTION, SCORE


def question(name: str, kind: str = "what", answer: str = "A", degradation: str = "motion", severity: str = "mild"):
    return {
        "question_id": name,
        "image_id": "i" + name,
        "uri": "/i/" + name,
        "kind": kind,
        "scope": "specific",
        "modality": "mri",
        "text": "?",
        "options": [] if kind == "description" else ["x", "y", "z"],
        "answer": answer,
        "capabilities": capabilities(kind, "mri", degradation, severity),
    }


def completion(name: str, run: int, text: str, error: str = ""):
    return {"question_id": name, "run": run, "model": "m", "text": text, "entropy": None, "tokens": 1,
            "finish_reason": "stop", "error": error}  # fmt: skip


def tables(questions, completions):
    return pa.Table.from_pylist(questions, schema=QUESTION), pa.Table.from_pylist(completions, schema=COMPLETION)


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("A", (True, "right")),
        ("A. motion", (True, "right")),
        ("B", (False, "wrong: B, not A")),
        ("D", (False, "unparsed")),  # not offered
        ("I believe A", (False, "unparsed")),
        ("", (False, "unparsed")),
    ],
)
def test_letters_are_read_strictly(reply, outcome):
    assert correctness(question("q"), completion("q", 0, reply)) == outcome


def test_a_failed_request_is_its_own_outcome():
    right, why = correctness(question("q"), completion("q", 0, "", "timeout"))
    assert not right and why == "failed: timeout"


def test_a_description_must_agree_in_modality_degradation_and_grade():
    asked = question("q", "description", describe("mri", "motion", "mild"))
    outcomes = {
        describe("mri", "motion", "mild"): (True, "right"),
        describe("mri", "motion", "severe"): (False, "wrong: grade"),
        describe("ct", "motion", "mild"): (False, "wrong: modality"),
        describe("mri", "none", "none"): (False, "wrong: degradation, grade"),
        "It is a picture.": (False, "unparsed"),
    }
    for reply, outcome in outcomes.items():
        assert correctness(asked, completion("q", 0, reply)) == outcome


def test_an_unreadable_reference_names_the_question():
    with pytest.raises(ValueError, match="q7"):
        correctness(question("q7", "description", "nice"), completion("q7", 0, "x"))


@pytest.mark.parametrize(("wrong", "failure"), [(0, False), (3, False), (4, True), (5, True)])
def test_gamma_is_strict(wrong, failure):
    runs = [completion("q", run, "B" if run < wrong else "A") for run in range(5)]
    row = score(*tables([question("q")], runs), 0.6).to_pylist()[0]
    assert (row["runs"], row["wrong"], row["failure"]) == (5, wrong, failure)


def test_unparsed_and_failed_runs_count_as_wrong_and_unparsed_apart():
    runs = [completion("q", 0, "A"), completion("q", 1, "hm"), completion("q", 2, "", "HTTP 500")]
    row = score(*tables([question("q")], runs), 0.6).to_pylist()[0]
    assert (row["wrong"], row["unparsed"], row["failure"]) == (2, 1, True)


def test_a_question_without_any_completion_is_refused():
    with pytest.raises(ValueError, match="q2"):
        score(*tables([question("q1"), question("q2")], [completion("q1", 0, "A")]), 0.6)


def test_accuracy_is_the_micro_average_and_leaves_descriptions_out():
    text = describe("mri", "motion", "mild")
    asked = [
        question("a", "yes_no"),
        question("b", "what", degradation="blur"),
        question("c", "how", degradation="none", severity="none"),
        question("d", "description", text),
    ]
    replies = {"a": "AA", "b": "AB", "c": "BB", "d": [text, text]}
    runs = [completion(name, run, reply) for name, own in replies.items() for run, reply in enumerate(own)]
    questions, completions = tables(asked, runs)
    result = accuracy(questions, score(questions, completions, 0.6))
    assert result["accuracy"] == pytest.approx((1 + 0.5 + 0) / 3) and result["n"] == 3
    assert {kind: row["accuracy"] for kind, row in result["by_kind"].items()} == {
        "yes_no": 1, "what": 0.5, "how": 0, "description": 1}  # fmt: skip
    assert {k: (r["accuracy"], r["n"]) for k, r in result["by_severity"].items()} == {"mild": (0.75, 2), "none": (0, 1)}
    assert {k: r["n"] for k, r in result["by_scope"].items()} == {"general": 2, "specific": 1}
    assert sum(row["n"] for row in result["by_cell"].values()) == 3
    assert result["unparsed"] == 0


def test_wilson_matches_published_values_and_contains_the_rate():
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0.3, 0) == (0.0, 1.0)
    for n in (1, 5, 100):
        for rate in (0.0, 0.2, 1.0):
            low, high = wilson(rate, n)
            assert 0 <= low <= rate + 1e-12 and rate - 1e-12 <= high <= 1


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(10, 0) == pytest.approx(2 / 2**10)
    assert mcnemar(7, 2) == mcnemar(2, 7) == pytest.approx(2 * (1 + 9 + 36) / 512)
    assert mcnemar(3, 3) == 1.0
    assert 0 < mcnemar(400, 300) < 1e-3


def scores(wrong: dict[str, int]) -> pa.Table:
    rows = [{"question_id": name, "kind": "description" if name.startswith("d") else "what", "modality": "mri",
             "runs": 1, "wrong": value, "unparsed": 0, "error_rate": float(value), "failure": bool(value)}
            for name, value in wrong.items()]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCORE)


def test_compare_is_paired_antisymmetric_and_ignores_descriptions_and_order():
    before = {f"q{i}": int(i < 60) for i in range(100)} | {"d": 1}
    after = {f"q{i}": int(i < 40 or i == 99) for i in reversed(range(100))} | {"d": 0}
    alone = {name: name for name in before}
    result = compare(scores(before), scores(after), alone)
    assert (result["difference"], result["n"], result["gained"], result["lost"]) == (0.19, 100, 20, 1)
    half = 1.96 * math.sqrt(21 - 19**2 / 100) / 100
    assert result["ci95"] == pytest.approx([0.19 - half, 0.19 + half], abs=1e-4)
    assert result["p_mcnemar"] == pytest.approx(2 * (1 + 21) / 2**21)
    back = compare(scores(after), scores(before), alone)
    assert back["difference"] == -0.19 and back["p_mcnemar"] == result["p_mcnemar"]


def test_questions_about_one_image_are_not_independent():
    """Each answer three times over, as three questions of the same image, is no more evidence than once."""
    before = {f"q{i}": int(i < 60) for i in range(100)}
    after = {f"q{i}": int(i < 40 or i == 99) for i in range(100)}
    thrice = [{f"{name}-{k}": wrong for name, wrong in answers.items() for k in range(3)} for answers in (before, after)]
    once = compare(scores(before), scores(after), {name: name for name in before})
    repeated = compare(*map(scores, thrice), {name: name.partition("-")[0] for name in thrice[0]})
    assert repeated["n"] == 300 and repeated["difference"] == once["difference"]
    assert repeated["ci95"] == pytest.approx(once["ci95"], abs=1e-6)


def test_compare_refuses_other_questions():
    with pytest.raises(ValueError, match="q2"):
        compare(scores({"q1": 0}), scores({"q1": 0, "q2": 1}), {})
