"""Questions follow the hypothesis, know no truth, and are balanced."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from medq_ray.explore.questions import questions
from medq_ray.questions import DEGRADATION_NAMES, NOTHING
from medq_ray.schema import DEGRADATIONS, KINDS, PROTOTYPE, QUESTION, SELECTION

MIXTURE = [("degradation:motion", 0.75), ("degradation:metal", 0.25), ("severity:severe", 1.0)]


def selection(count: int, prototype: int | None) -> pa.Table:
    rows = [{"image_id": f"{i * 2654435761 % 2**64:016x}", "uri": f"/{i}", "modality": "mri", "patient": "p",
             "strategy": "s", "capability": "", "prototype_id": prototype, "similarity": 0.9}
            for i in range(1, count + 1)]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SELECTION)


PROTOTYPES = pa.Table.from_pylist(
    [{"prototype_id": 3, "size": 1, "members": [], "medoid": "", "medoid_uri": "", "silhouette": None, "cohesion": 1.0,
      "capabilities": MIXTURE, "visual": [1.0]}],
    schema=PROTOTYPE,
)  # fmt: skip


def ask(count=400, prototype: int | None = 3, kinds=KINDS, seed=0) -> pa.Table:
    return questions(selection(count, prototype), PROTOTYPES, kinds=kinds, seed=seed)


def test_one_question_of_each_kind_an_image_without_an_answer():
    table = ask(50)
    rows = table.to_pylist()
    assert table.schema == QUESTION and len(rows) == 200
    assert [row["question_id"] for row in rows] == sorted(f"{r['image_id']}-{r['kind']}" for r in rows)
    assert {row["answer"] for row in rows} == {""}
    assert {row["scope"] for row in rows} <= {"general", "specific"}
    assert Counter(row["kind"] for row in ask(10, kinds=("what",)).to_pylist()) == {"what": 10}


def test_the_hypothesis_comes_from_the_prototype_within_the_modality():
    for row in ask(50).to_pylist():  # metal is no MRI degradation, so motion is all that is left
        assert {"degradation:motion", "severity:severe", "cell:mri/motion"} <= set(row["capabilities"])
        if row["kind"] == "what":
            assert "motion" in row["options"] and NOTHING in row["options"]


def test_random_draws_ask_about_everything_the_modality_knows():
    rows = ask(600, None, kinds=("what",)).to_pylist()
    cells = Counter(c for row in rows for c in row["capabilities"] if c.startswith("degradation:"))
    assert set(cells) == {f"degradation:{name}" for name in ("none", *DEGRADATIONS["mri"])}
    assert max(cells.values()) < 2 * min(cells.values())


def test_yes_no_questions_are_half_general_and_half_of_the_rest_ask_about_something_else():
    texts = Counter(row["text"] for row in ask(1000, kinds=("yes_no",)).to_pylist())
    general = texts["Is the quality of this MRI image impaired?"]
    motion = texts["Does this MRI image show motion?"]
    assert general == pytest.approx(500, abs=60) and motion == pytest.approx(250, abs=50)
    assert set(texts) == {"Is the quality of this MRI image impaired?"} | {
        f"Does this MRI image show {DEGRADATION_NAMES[name]}?" for name in DEGRADATIONS["mri"]
    }


def test_order_of_options_is_drawn():
    first = Counter(row["options"].index("motion") for row in ask(400, kinds=("what",)).to_pylist())
    assert set(first) == {0, 1, 2, 3, 4, 5} and max(first.values()) < 1.6 * min(first.values())


def test_what_questions_always_offer_the_truth():
    """The hypothesis may be wrong; the right answer must be there all the same."""
    for row in ask(50, kinds=("what",)).to_pylist():
        assert set(row["options"]) == {*(DEGRADATION_NAMES[name] for name in DEGRADATIONS["mri"]), NOTHING}


def test_draws_depend_on_seed_and_image_only():
    table = selection(60, 3)
    order = np.random.default_rng(0).permutation(60)
    straight = questions(table, PROTOTYPES, kinds=KINDS, seed=0)
    assert straight.equals(questions(table.take(order), PROTOTYPES, kinds=KINDS, seed=0))
    part = questions(table.slice(0, 10), PROTOTYPES, kinds=KINDS, seed=0)
    rows = {row["question_id"]: row for row in straight.to_pylist()}
    assert all(rows[row["question_id"]] == row for row in part.to_pylist())
    assert not straight.equals(questions(table, PROTOTYPES, kinds=KINDS, seed=1))
