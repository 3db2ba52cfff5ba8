"""What the simulated oracle says: error rates within binomial bounds, identical on repetition, honest about limits."""

import math

import numpy as np
import pytest

from medq_ray import questions
from medq_ray.judging.judge import rubric as filled
from medq_ray.judging.wording import OWN
from medq_ray.model.prompts import parse_letter, render
from medq_ray.schema import DEGRADATIONS, MODALITIES, SEVERITIES
from medq_ray.synthetic.answers import FAULTS, REFUSAL, SimulatedOracle, UNUSABLE, judged, parse_prompt
from medq_ray.synthetic.truth import gold

CELLS = [(m, "none", "none") for m in MODALITIES] + [
    (m, d, s) for m in MODALITIES for d in DEGRADATIONS[m] for s in SEVERITIES[1:]
]
WORLD = {
    f"image-{i}": {"image_id": f"image-{i}", "modality": m, "degradation": d, "severity": s}
    for i, (m, d, s) in enumerate(CELLS * 20)
}


def asked(image_id, kind):
    truth = WORLD[image_id]
    rng = np.random.default_rng(int(image_id.split("-")[1]))
    modality = truth["modality"]
    if kind == "yes_no":
        text, options = questions.yes_no(modality, truth["degradation"] if truth["degradation"] != "none" else None)
    elif kind == "what":
        text, options = questions.what(modality, questions.offered_with(modality, truth["degradation"], rng), rng)
    elif kind == "how":
        text, options = questions.how(modality, bool(rng.integers(2)), rng)
    else:
        text, options = questions.description(modality), []
    return {"kind": kind, "text": text, "options": options}


def oracle(edit_rate=0.29, reject_rate=0.08, failure_rate=0.0, seed=0):
    return SimulatedOracle(WORLD, edit_rate, reject_rate, failure_rate, seed)


@pytest.mark.parametrize("kind", ["yes_no", "what", "how", "description"])
def test_prompt_is_read_back_and_a_faultless_oracle_is_right(kind):
    faultless = oracle(edit_rate=0, reject_rate=0)
    for image_id in list(WORLD)[: len(CELLS)]:
        question = asked(image_id, kind)
        prompt = render(question["text"], question["options"])
        assert parse_prompt(prompt) == question
        assert faultless.answer(image_id, prompt) == gold(question, WORLD[image_id])


def outcome(question, truth, text):
    if text == UNUSABLE:
        return "reject"
    right = gold(question, truth)
    if text == right:
        return "accept"
    if question["kind"] == "description":
        fields = questions.read_description(text)
        assert fields is not None and fields["modality"] == truth["modality"]
        assert questions.describe(fields["modality"], fields["degradation"], fields["severity"]) == text  # consistent
        assert fields["degradation"] == "none" or fields["degradation"] in DEGRADATIONS[truth["modality"]]
    else:
        assert parse_letter(text, len(question["options"])) == text
    return "edit"


@pytest.mark.parametrize("kind", ["yes_no", "what", "how", "description"])
def test_error_rates_within_binomial_bounds(kind):
    subject, counts = oracle(), {"accept": 0, "edit": 0, "reject": 0}
    for image_id, truth in WORLD.items():
        question = asked(image_id, kind)
        text = subject.answer(image_id, render(question["text"], question["options"]))
        counts[outcome(question, truth, text)] += 1
    for action, rate in (("accept", 0.63), ("edit", 0.29), ("reject", 0.08)):
        bound = 4 * math.sqrt(rate * (1 - rate) / len(WORLD))
        assert counts[action] / len(WORLD) == pytest.approx(rate, abs=bound)


def test_repeated_requests_get_identical_answers_and_seeds_matter():
    about = [(i, asked(i, "what")) for i in list(WORLD)[:300]]
    prompts = [(i, render(q["text"], q["options"])) for i, q in about]
    first = [oracle().answer(i, p) for i, p in prompts]
    assert [oracle().answer(i, p) for i, p in reversed(prompts)] == first[::-1]
    assert [oracle(seed=1).answer(i, p) for i, p in prompts] != first


def test_refuses_what_it_has_no_truth_for():
    faultless = oracle(edit_rate=0, reject_rate=0)
    assert faultless.answer("somewhere else", "Describe the quality of this MRI image.") == REFUSAL
    assert faultless.answer("image-0", render("Which hospital?", ["North", "South"])) == REFUSAL
    for text in (REFUSAL, UNUSABLE):
        assert parse_letter(text, 6) is None and questions.read_description(text) is None


def test_failures_at_their_rate():
    assert {oracle().first_fault(i, "q") for i in WORLD} == {""}
    faults = [oracle(failure_rate=0.3).first_fault(i, "q") for i in WORLD]
    assert faults == [oracle(failure_rate=0.3).first_fault(i, "q") for i in WORLD]
    assert set(faults) == {"", *FAULTS}
    failed = sum(map(bool, faults)) / len(WORLD)
    assert failed == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / len(WORLD)))


def test_as_a_judge_it_scores_what_two_descriptions_have_in_common():
    def rubric(graded: str, expert: str) -> str:
        return filled(OWN, "description", "preciseness", graded, expert)

    motion, mild = (questions.describe("mri", "motion", severity) for severity in ("severe", "mild"))
    blur = questions.describe("mri", "blur", "severe")
    faultless = oracle(edit_rate=0)
    pairs = {(motion, motion): 2, (mild, motion): 1, (blur, motion): 0, ("It is fine.", motion): 0}
    for (graded, expert), points in pairs.items():
        assert judged(rubric(graded, expert)) == (graded, expert)
        assert faultless.score(rubric(graded, expert)) == f"Score: {points}"
    scores = [oracle(edit_rate=0.3, seed=seed).score(rubric(motion, motion)) for seed in range(300)]
    assert sum(score != "Score: 2" for score in scores) / 300 == pytest.approx(0.3, abs=0.1)
    with pytest.raises(ValueError, match="no rubric of ours"):
        faultless.score("Hi")


def test_rates_above_one_are_named():
    with pytest.raises(ValueError, match=r"oracle\.edit_rate=0\.95 and oracle\.reject_rate=0\.08"):
        oracle(edit_rate=0.95)
