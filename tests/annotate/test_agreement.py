"""R(., .) is symmetric, in [0, 1], 1 on a readable annotation and itself, 0 with an unreadable one."""

import itertools

import pytest

from medq_ray.annotate.agreement import WEIGHTS, agreement, readable
from medq_ray.questions import describe
from medq_ray.schema import DEGRADATIONS

DESCRIPTIONS = [
    describe(modality, degradation, severity)
    for modality in ("mri", "fundus")
    for degradation in DEGRADATIONS[modality]
    for severity in ("mild", "severe")
] + [describe("mri", "none", "none")]
UNREADABLE = ["", "I cannot judge this image.", "fine", "A bit blurry"]


@pytest.mark.parametrize(("kind", "texts"), [("what", ["A", "B", "C.", "D) none"]), ("description", DESCRIPTIONS)])
def test_symmetric_bounded_and_one_on_itself(kind, texts):
    for first, second in itertools.product(texts, texts):
        value = agreement(kind, first, second, 4)
        assert value == agreement(kind, second, first, 4)
        assert 0 <= value <= 1
        assert (value == 1) == (first == second)


@pytest.mark.parametrize("text", UNREADABLE)
def test_the_unreadable_agrees_with_nothing(text):
    for kind, good in (("yes_no", "A"), ("description", DESCRIPTIONS[0])):
        assert agreement(kind, text, good, 2) == agreement(kind, good, text, 2) == agreement(kind, text, text, 2) == 0


def test_letters_agree_whatever_follows_them():
    assert agreement("how", "B", "B. mild", 3) == 1
    assert agreement("how", "B", "C", 3) == 0
    assert agreement("yes_no", "C", "C", 2) == 0  # not offered


def test_descriptions_get_the_weights_of_what_they_share():
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    motion = describe("mri", "motion", "severe")
    assert agreement("description", motion, describe("mri", "blur", "severe"), 0) == 0.45
    assert agreement("description", motion, describe("mri", "motion", "mild"), 0) == 0.6
    assert agreement("description", motion, describe("mri", "none", "none"), 0) == 0.05
    assert agreement("description", motion, describe("ct", "metal", "severe"), 0) == 0.4


def test_readable_is_the_form_that_is_trained_on():
    assert readable("what", " B. motion ", 4) == "B"
    assert readable("what", "E", 4) is None
    assert readable("description", f" {DESCRIPTIONS[0]}\n", 0) == DESCRIPTIONS[0]
    assert readable("description", "B", 0) is None
