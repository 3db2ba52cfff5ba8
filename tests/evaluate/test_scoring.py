"""Replies are read by the official rules, accuracy is the micro average, a missing answer is nobody's failure."""

import random
import re

import pyarrow as pa
import pytest

from medq_ray.evaluate.scoring import accuracy, correctness, matched, score
from medq_ray.intervals import wilson
from medq_ray.questions import capabilities, describe
from medq_ray.schema import COMPLETION, QUESTION


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
    ("reply", "letter"),
    [
        ("b", "B"), ("(C)", "C"), ("**B**", "B"), (r"\boxed{B}", "B"), ("The answer is C", "C"), ("B. Yes", "B"),
        ("Both A and B", "A"), ("None of A", "A"), ("A/B", "A"), ("D-dimer", "D"), ("This is a CT image, so B", "A"),
        ("It has a motion artifact. The answer is B.", "A"), ("<think>a b</think>B", "A"), ("D : d", "D"), (" c) ", "C"),
        ("Yes", "Yes"), ("E", "E"), ("E. None", "E. None"), ("CT", "CT"), ("", ""), ("  Usable\n", "Usable"),
    ],
)  # fmt: skip
def test_replies_are_read_as_the_official_evaluator_reads_them(reply, letter):
    """The facts sheet's vectors, on which the official code was run, and a few more."""
    assert matched(reply, "ABCD") == letter


def test_reading_is_total_and_deterministic():
    """20,000 replies over an alphabet of everything that the rules look at."""
    pieces = ["A", "b", "C", "d", "E", "e", ".", ")", "(", ":", "-", " ", "\n", "\t", "answer is ", "Option ", "option ", "The ",
              "ß", "ı", "ﬁ", "é", "中", "\u2028", "\x00", "\ud800", "1", "*", "<think>", "none"]  # fmt: skip
    rng = random.Random(0)
    for _ in range(20_000):
        reply = "".join(rng.choices(pieces, k=rng.randrange(9)))
        read = matched(reply, "ABCD")
        assert read == matched(reply, "ABCD") == matched(f" {reply}\n", "ABCD")
        assert read in tuple("ABCD") or read == reply.strip()
        if read in tuple("ABCD"):
            assert read in reply.upper()
        elif reply.upper() == reply:  # a lone letter is never overlooked
            assert not re.search(r"(?<![A-Z])[A-D](?![A-Z])", reply.strip())


def test_letters_that_a_longer_question_has_are_read_too():
    long = question("q") | {"options": list("uvwxyz"), "answer": "F"}
    assert correctness(long, completion("q", 0, "F. z")) == (True, "right")
    assert correctness(question("q"), completion("q", 0, "F")) == (False, "unparsed")
    assert correctness(question("q"), completion("q", 0, "D")) == (False, "wrong: D, not A")  # official: A to D always


def test_words_are_right_where_the_answer_is_in_words():
    odd = question("q", answer="Yes")
    assert correctness(odd, completion("q", 0, " Yes")) == (True, "right")
    assert correctness(odd, completion("q", 0, "yes")) == (True, "right")  # official: in any case
    assert correctness(odd, completion("q", 0, "Yes.")) == (False, "unparsed")


def test_a_failed_request_is_its_own_outcome():
    right, why = correctness(question("q"), completion("q", 0, "", "timeout"))
    assert right is None and why == "failed: timeout"


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
    assert (len(row["right"]), row["wrong"], row["failure"]) == (5, wrong, failure)


def test_a_run_without_an_answer_is_not_right_and_not_the_models_failure():
    """It stays in the denominator of accuracy (official), and out of eq. 1."""
    runs = [completion("q", 0, "A"), completion("q", 1, "hm"), completion("q", 2, "", "HTTP 500")]
    runs += [completion("r", run, "", "HTTP 500") for run in range(3)]
    scores = score(*tables([question("q"), question("r")], runs), 0.6)
    q, r = scores.to_pylist()
    assert (q["right"], q["wrong"], q["unparsed"], q["failed"], q["error_rate"]) == ([True, False, None], 1, 1, 1, 0.5)
    assert (r["wrong"], r["failed"], r["error_rate"], r["failure"]) == (0, 3, None, False)
    result = accuracy(scores)
    assert result["accuracy"] == pytest.approx(1 / 6, abs=1e-6) and result["failed"] == pytest.approx(4 / 6, abs=1e-6)


def test_a_judges_outcome_replaces_the_reading_of_fields():
    asked = question("q", "description", "free text that nobody can parse")
    runs = [completion("q", 0, "blurred"), completion("q", 1, "sharp")]
    judged = {("q", 0): (True, "right"), ("q", 1): (False, "wrong: preciseness")}
    row = score(*tables([asked], runs), 0.6, judged=judged, patient_of={"iq": "p7"}).to_pylist()[0]
    assert (row["right"], row["error_rate"], row["patient"]) == ([True, False], 0.5, "p7")


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
    result = accuracy(score(questions, completions, 0.6))
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
