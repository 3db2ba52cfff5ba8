"""The simulated expert's verdicts, and that nothing of its is taken for a person's."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medq_ray import config as settings
from medq_ray.questions import describe
from medq_ray.review.simulated import review
from medq_ray.review.simulated import verdict
from medq_ray.review.stats import table3
from medq_ray.schema import ANNOTATION, QUESTION, VERDICT

TRUTH = {"i1": {"image_id": "i1", "modality": "mri", "degradation": "motion", "severity": "severe"}}
YES_NO = {"question_id": "q1", "image_id": "i1", "kind": "yes_no", "options": ["No", "Yes"],
          "text": "Does this MRI image show motion?"}  # fmt: skip
HOW = YES_NO | {"kind": "how", "options": ["good", "reject", "usable"],
                "text": "How good is the quality of this MRI image?"}  # fmt: skip
DESCRIBE = YES_NO | {"kind": "description", "options": [], "text": "Describe the quality of this MRI image."}
RIGHT = describe("mri", "motion", "severe")


@pytest.mark.parametrize(
    ("question", "label", "expected"),
    [
        (YES_NO, "B", ("accept", "B")),
        (YES_NO, "A", ("edit", "B")),
        (YES_NO, "C", ("reject", "")),
        (YES_NO, "I cannot judge this image.", ("reject", "")),
        (HOW, "B", ("accept", "B")),
        (HOW, "C", ("edit", "B")),
        (DESCRIBE, RIGHT, ("accept", RIGHT)),
        (DESCRIBE, RIGHT.lower(), ("accept", RIGHT.lower())),
        (DESCRIBE, describe("mri", "motion", "mild"), ("edit", RIGHT)),
        (DESCRIBE, "Quite bad.", ("reject", "")),
        (YES_NO | {"image_id": "unknown"}, "B", ("reject", "")),
        (HOW | {"kind": "what", "options": ["tears", "pen"]}, "A", ("reject", "")),
    ],
)
def test_verdict(question, label, expected):
    assert verdict(question, label, TRUTH) == expected


def annotated(question_id, route, label):
    return {"question_id": question_id, "image_id": "i1", "route": route, "label": label, "labelled_by": "oracle"}


def test_only_reviewed_routes_get_verdicts_and_all_are_marked(tmp_path):
    rows = [annotated("q4", "expert", "A"), annotated("q1", "cold_start", "B"), annotated("q2", "oracle", "A"),
            annotated("q3", "self", "A"), annotated("q5", "dropped", ""), annotated("q6", "expert", "?")]  # fmt: skip
    questions = pa.Table.from_pylist([YES_NO | {"question_id": f"q{i}"} for i in range(1, 7)], schema=QUESTION)
    counts = review(
        tmp_path, config=settings.Config(), annotations=pa.Table.from_pylist(rows, schema=ANNOTATION),
        questions=questions, truth=TRUTH)  # fmt: skip
    table = pq.read_table(tmp_path / "verdicts.parquet")
    assert table.schema.equals(VERDICT)
    assert table["question_id"].to_pylist() == ["q1", "q4", "q6"]
    assert table["action"].to_pylist() == ["accept", "edit", "reject"]
    assert table["after"].to_pylist() == ["B", "B", ""]
    assert set(table["simulated"].to_pylist()) == {True}
    assert set(table["reviewer"].to_pylist()) == {"simulated-expert"}
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["verdicts"] == {"accept": 1, "edit": 1, "reject": 1} and stats["simulated"] is True
    assert stats["review_rate"] == 3 / 5 and stats["minutes"] == 1.5 and stats["average_minutes"] == 0.5
    assert counts == {"reviewed": 3, "accept": 1, "edit": 1, "reject": 1}


def test_no_review_has_no_rates(tmp_path):
    stats = table3([], 10)
    assert stats["review_rate"] == 0 and stats["rates"] == {"accept": None, "edit": None, "reject": None}
