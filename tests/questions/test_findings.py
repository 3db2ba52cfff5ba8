"""What a description says is read in whatever words, and what it denies or praises is no finding."""

import pytest

from medq_ray.questions import describe, read_description
from medq_ray.questions.findings import Findings, overlap, read_findings
from medq_ray.schema import DEGRADATIONS

END = "Overall, the quality of this image is"


@pytest.mark.parametrize("modality", DEGRADATIONS)
def test_every_description_in_the_closed_form_says_the_same(modality):
    for degradation in DEGRADATIONS[modality]:
        for severity in ("mild", "severe"):
            text = describe(modality, degradation, severity)
            grade = read_description(text)["grade"]
            assert read_findings(text) == Findings(frozenset({degradation}), severity, grade)
    assert read_findings(describe(modality, "none", "none")) == Findings(frozenset(), "none", "good")


@pytest.mark.parametrize(("text", "degradations", "severity", "grade"), [
    ("Sharp, good contrast, low noise. No motion, ghosting or ring artefacts.", set(), "none", "good"),
    ("Slight ghosting blurs the edges; noise is low.", {"blur", "motion"}, "mild", "usable"),
    ("No visible noise, severe motion.", {"motion"}, "severe", "reject"),
    ("Very grainy, and out of focus.", {"blur", "noise"}, None, "reject"),
    ("There is no haze, but an air bubble.", {"air_bubble"}, None, "usable"),
    ("Mild blur. The air-bubbles are pronounced.", {"air_bubble", "blur"}, "severe", "reject"),
    ("Even exposure. Strong specular reflections despite that.", {"specular"}, "severe", "usable"),
])  # fmt: skip
def test_free_words(text, degradations, severity, grade):
    found = read_findings(f"{text} {END} {grade}.")
    assert found == Findings(frozenset(degradations), severity, grade)


@pytest.mark.parametrize("text", [
    "", "B", "Severe blur.", f"{END} unknown.", f"It is bad. {END} reject.", f"No noise, no blur. {END} usable.",
])  # fmt: skip
def test_without_a_grade_or_a_reason_nothing_is_read(text):
    assert read_findings(text) is None


def test_the_last_grade_counts():
    text = f"The quality of the left half is good. Severe motion in the right. {END} reject."
    assert read_findings(text).grade == "reject"


def test_words_that_both_use():
    assert overlap("a b", "A, b!") == 1 and overlap("a b", "c") == overlap("", "") == 0
    assert overlap("a a b", "a b b") == overlap("a b b", "a a b") == pytest.approx(2 / 3)
