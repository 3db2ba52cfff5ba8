"""R(., .) is symmetric, in [0, 1], 1 on a readable annotation and itself, 0 with an unreadable one."""

import itertools

import pyarrow as pa
import pytest

from medq_ray.annotate.agreement import JUDGED, WEIGHTS, agreement, judged
from medq_ray.config import Judge
from medq_ray.labels import readable, says_same
from medq_ray.questions import describe
from medq_ray.questions.findings import overlap
from medq_ray.schema import COMPLETION, DEGRADATIONS
from medq_ray.synthetic.answers import SimulatedOracle

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
    both = "Severe motion and blur. Overall, the quality of this image is reject."
    for other, least in ((describe("mri", "blur", "severe"), 0.4), (describe("mri", "motion", "mild"), 0.55),
                         (describe("mri", "none", "none"), 0.0), (both, 0.4)):  # fmt: skip
        value = agreement("description", motion, other, 0)
        assert value == pytest.approx(least + 0.05 * overlap(motion, other)) and value <= least + 0.05 < 0.7
    assert agreement("description", motion, describe("ct", "motion", "severe"), 0) == 0  # not the same image


def test_a_judge_says_how_far_descriptions_agree():
    """By the rules of the simulated judge: 2 for equal findings, 1 for the same degradation, else 0."""
    motion = describe("mri", "motion", "severe")
    others = {"same": motion, "milder": describe("mri", "motion", "mild"), "other": describe("mri", "blur", "mild")}
    faultless, asked = SimulatedOracle({}, 0, 0, 0, 0), []

    def answer(prompts, sampling, label):
        asked.extend(prompts["question_id"].to_pylist())
        rows = [{"question_id": row["question_id"], "run": 0, "model": "judge", "text": faultless.score(row["prompt"]),
                 "error": ""} for row in prompts.to_pylist()]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=COMPLETION)

    found = judged([(name, text, motion) for name, text in others.items()], Judge(model="judge"), answer)
    assert found == {"same": 1.0, "milder": 0.5, "other": 0.0}
    assert sorted(asked) == sorted(f"{name}/{axis}" for name in ("milder", "other") for axis in JUDGED)  # and no more

    def silent(prompts, sampling, label):
        return answer(prompts, sampling, label).set_column(
            COMPLETION.get_field_index("text"), "text", pa.array(["?"] * prompts.num_rows)
        )

    assert judged([("milder", others["milder"], motion)], Judge(model="judge"), silent) == {}
