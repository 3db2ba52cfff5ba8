"""Questions that the oracle writes: aimed, read strictly, balanced; garbage never enters."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from medq_ray.questions.commission import Commission, commission_in, read_reply
from medq_ray.explore.pairs import partners
from medq_ray.explore.writing import commissions, written
from medq_ray.model.prompts import parse_letter
from medq_ray.questions import LETTERS
from medq_ray.schema import COMPLETION, DEGRADATIONS, DROP, KINDS, MODALITIES, PROTOTYPE, QUESTION, SELECTION
from medq_ray.synthetic.answers import SimulatedOracle
from medq_ray.synthetic.truth import gold


def world(count: int, seed: int = 0) -> tuple[pa.Table, dict[str, dict]]:
    """A selection for weaknesses, half of whose images have them, and its truth."""
    rng, rows, truth = np.random.default_rng(seed), [], {}
    for _ in range(count):
        name, modality = f"{rng.integers(2**60):016x}", MODALITIES[rng.integers(5)]
        aim = DEGRADATIONS[modality][rng.integers(5)]
        true = aim if rng.random() < 0.5 else ("none", *DEGRADATIONS[modality])[rng.integers(6)]
        severity = "none" if true == "none" else ("mild", "severe")[rng.integers(2)]
        truth[name] = {"image_id": name, "modality": modality, "degradation": true, "severity": severity}
        rows.append({"image_id": name, "uri": f"/{name}", "modality": modality, "patient": name,
                     "strategy": "failure_driven", "capability": f"cell:{modality}/{aim}", "prototype_id": None,
                     "similarity": 0.9, "score": 0.9})  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SELECTION), truth


def oracle(truth: dict[str, dict], edit_rate: float = 0.0, reject_rate: float = 0.0):
    """The simulated oracle as a phase asks it, and how often it was asked."""
    simulated = SimulatedOracle(truth, edit_rate, reject_rate, 0.0, seed=1)
    asked: list[int] = []

    def answer(prompts: pa.Table, sampling, label: str) -> pa.Table:
        asked.append(prompts.num_rows)
        rows = [{"question_id": row["question_id"], "run": 0, "error": "",
                 "text": simulated.answer(row["uris"][0][1:], row["prompt"])}
                for row in prompts.to_pylist()]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=COMPLETION)

    return answer, asked


def write(count: int = 400, attempts: int = 3, seed: int = 0, **rates) -> tuple[list, list, dict, list[int]]:
    selection, truth = world(count)
    ask_oracle, asked = oracle(truth, **rates)
    orders = commissions(selection, PROTOTYPE.empty_table(), kinds=KINDS, seed=seed, partners={})
    table, dropped = written(orders, ask_oracle, attempts=attempts, temperature=0.0, seed=seed)
    assert table.schema == QUESTION and dropped.schema == DROP
    return table.to_pylist(), dropped.to_pylist(), truth, asked


def right(row: dict, truth: dict[str, dict]) -> bool:
    return gold(row, truth[row["image_id"]]) == row["answer"]


def test_what_a_faultless_oracle_writes_parses_and_is_right():
    rows, dropped, truth, asked = write()
    assert len(rows) == asked[0] == 1600 and not dropped and len(asked) == 1
    assert all(right(row, truth) for row in rows)
    assert all(parse_letter(row["answer"], len(row["options"])) for row in rows if row["options"])


def test_questions_are_aimed_at_the_weakness_that_selected_the_image():
    rows, _, truth, _ = write()
    for row in rows:
        aim = next(name for name in row["capabilities"] if name.startswith("cell:")).partition("/")[2]
        assert row["modality"] == truth[row["image_id"]]["modality"] and aim in DEGRADATIONS[row["modality"]]
        assert f"degradation:{aim}" in row["capabilities"] and "severity:none" not in row["capabilities"]
        if row["kind"] == "what":
            assert aim.replace("_", " ") in row["options"]
    specific = [row for row in rows if row["kind"] == "yes_no" and " show " in row["text"]]
    named = [row for row in specific if row["capabilities"][0].partition("/")[2].replace("_", " ") in row["text"]]
    assert 0.35 < len(specific) / 400 < 0.65 and len(named) > 0.5 * len(specific)


def test_answers_are_balanced():
    rows, *_ = write(1500)
    shares = Counter(row["answer"] for row in rows if row["kind"] == "yes_no" and " show " in row["text"])
    assert 0.4 < shares["A"] / shares.total() < 0.6
    for kind, count in (("what", 4), ("how", 3)):
        letters = Counter(row["answer"] for row in rows if row["kind"] == kind)
        assert set(letters) == set(LETTERS[:count])
        assert max(letters.values()) < 1.35 * min(letters.values())


def test_garbage_is_asked_for_again_and_then_dropped_with_the_reason():
    rows, dropped, truth, asked = write(reject_rate=0.5)
    assert len(asked) == 3 and 0.45 < asked[1] / asked[0] < 0.55
    assert len(dropped) == asked[0] - len(rows) and 0.08 < len(dropped) / asked[0] < 0.17
    assert all(right(row, truth) for row in rows)
    assert {row["step"] for row in dropped} == {"question"} and all(row["reason"] for row in dropped)
    assert not {row["id"] for row in dropped} & {row["question_id"] for row in rows}


def test_nothing_but_garbage_leaves_nothing():
    rows, dropped, *_ = write(50, reject_rate=1.0)
    assert not rows and len(dropped) == 200


def test_plausible_errors_keep_the_rules_and_come_at_their_rate():
    rows, dropped, truth, _ = write(edit_rate=0.29)
    assert not dropped
    assert 0.25 < sum(not right(row, truth) for row in rows) / len(rows) < 0.33


def test_the_same_seed_asks_the_same_and_the_order_of_the_selection_does_not_matter():
    selection, truth = world(40)
    shuffled = selection.take(np.random.default_rng(0).permutation(40))
    tables = []
    for table in (selection, shuffled):
        orders = commissions(table, PROTOTYPE.empty_table(), kinds=KINDS, seed=3, partners={})
        tables.append(written(orders, oracle(truth)[0], attempts=1, temperature=0.0, seed=3)[0])
    assert tables[0].equals(tables[1])


WHAT = Commission("what", "mri", "motion", "")
GOOD = {"question": "What is wrong?", "options": ["motion", "blur", "noise", "none of these"], "answer": "blur"}


def test_a_prompt_states_its_commission():
    for kind in KINDS:
        commission = Commission(kind, "ct", "ring", "No" if kind == "yes_no" else "")
        assert commission_in(commission.prompt("too long")) == commission
    assert commission_in("What is the main degradation?") is None


def test_a_reply_in_a_fence_is_read():
    assert read_reply(WHAT, f"```json\n{json.dumps(GOOD)}\n```") == tuple(GOOD.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "motion blur"}, "none of the options"),
        ({"options": ["blur", "noise", "none of these"]}, "motion is not among"),
        ({"question": "What is \ud83d?"}, "cannot be printed"),
        ({"options": ["motion", "Motion", "none of these"], "answer": "motion"}, "two options are the same"),
        ({"options": ["motion", "ring", "none of these"], "answer": "ring"}, "degradations from the list"),
        ({"options": ["motion", "blur", "noise"]}, "none of these"),
        ({"question": "Is this CT image blurred?"}, "speaks of CT"),
        ({"question": "Which blur is it?"}, "gives its answer away"),
        ({"question": ""}, "empty"),
        ({"question": "x" * 500}, "longer than 400"),
        ({"question": 7}, "must be strings"),
        ({"patient": "Ann"}, "not a JSON object of"),
    ],
)
def test_each_rule_is_kept(change, reason):
    with pytest.raises(ValueError, match=reason):
        read_reply(WHAT, json.dumps(GOOD | change))


@pytest.mark.parametrize(
    ("kind", "reply", "reason"),
    [
        ("yes_no", {"question": "Is there motion?", "options": ["Yes", "No", "?"], "answer": "No"}, '"Yes" and "No"'),
        ("yes_no", {"question": "Is it fine?", "options": ["Yes", "No"], "answer": "No"}, "names none"),
        ("general", {"question": "Is there noise?", "options": ["Yes", "No"], "answer": "No"}, "not about quality"),
        ("how", {"question": "How bad?", "options": ["low", "high"], "answer": "low"}, "levels"),
        ("description", {"question": "Describe.", "answer": "It is fine."}, "form"),
        ("description", {"question": "Describe.", "answer": "A CT image. Mild ring. Overall, the quality of this "
                         "image is usable."}, "not one of MRI"),
        ("description", {"question": "Describe.", "answer": "An MRI image. Severe motion. Overall, the quality of this "
                         "image is good."}, "contradicts"),
    ],
)  # fmt: skip
def test_each_kind_has_its_rules(kind, reply, reason):
    aim, kind = ("none", "yes_no") if kind == "general" else ("motion", kind)
    with pytest.raises(ValueError, match=reason):
        read_reply(Commission(kind, "mri", aim, "No"), json.dumps(reply))


def test_a_reply_of_brackets_is_no_crash():
    with pytest.raises(ValueError, match="not one JSON object"):
        read_reply(WHAT, "[" * 100_000)


def test_what_the_endpoint_refuses_is_dropped_at_once():
    selection, truth = world(20)
    ask_oracle, asked = oracle(truth)
    refused = set(truth) - set(list(truth)[:10])

    def answer(prompts: pa.Table, sampling, label: str) -> pa.Table:
        rows = ask_oracle(prompts, sampling, label).to_pylist()
        for row in rows:
            if row["question_id"][:16] in refused:
                row |= {"text": "", "error": "HTTP 400: content filter"}
        return pa.Table.from_pylist(rows, schema=COMPLETION)

    orders = commissions(selection, PROTOTYPE.empty_table(), kinds=KINDS, seed=0, partners={})
    table, dropped = written(orders, answer, attempts=3, temperature=0.0, seed=0)
    assert asked == [80] and len(table) == 40
    assert set(dropped["reason"].to_pylist()) == {"no reply: HTTP 400: content filter"} and len(dropped) == 40


def test_comparisons_are_of_two_patients_who_look_alike_and_say_which_is_better():
    selection, truth = world(300)
    rng = np.random.default_rng(0)
    vectors = {name: row / np.linalg.norm(row) for name, row in zip(truth, rng.standard_normal((300, 8)), strict=True)}
    pairs = partners(selection, lambda names: np.stack([vectors[name] for name in names]))
    simulated = SimulatedOracle(truth, 0.0, 0.0, 0.0, seed=1)

    def answer(prompts: pa.Table, sampling, label: str) -> pa.Table:
        rows = [{"question_id": row["question_id"], "run": 0, "error": "",
                 "text": simulated.answer(row["uris"][0][1:], row["prompt"], row["uris"][1][1:])}
                for row in prompts.to_pylist()]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=COMPLETION)

    orders = commissions(selection, PROTOTYPE.empty_table(), kinds=("comparison",), seed=0, partners=pairs)
    table, dropped = written(orders, answer, attempts=1, temperature=0.0, seed=0)
    assert len(table) == 300 and not len(dropped)
    chosen = Counter()
    for row in table.to_pylist():
        first, second = truth[row["image_id"]], truth[row["second_id"]]
        assert first["modality"] == second["modality"] and row["image_id"] != row["second_id"]
        own = [name for name in truth if truth[name]["modality"] == first["modality"] and name != row["image_id"]]
        nearest = max(own, key=lambda name: float(vectors[name] @ vectors[row["image_id"]]))
        assert row["second_id"] == nearest and row["second_uri"] == f"/{nearest}"
        assert gold(row, first, second) == row["answer"]
        said, levels = row["options"][LETTERS.index(row["answer"])], ("none", "mild", "severe")
        worse = levels.index(first["severity"]) - levels.index(second["severity"])
        assert said == ("the first" if worse < 0 else "the second" if worse else "both alike")
        chosen[row["answer"]] += 1
    assert set(chosen) == {"A", "B", "C"} and max(chosen.values()) < 1.6 * min(chosen.values())


def test_an_image_without_another_patient_of_its_modality_is_not_compared():
    selection, _ = world(30)
    one = selection.set_column(3, "patient", pa.array(["p"] * 30))
    assert selection.column_names[3] == "patient"
    pairs = partners(one, lambda names: np.ones((len(names), 2)))
    assert pairs == {}
    assert commissions(one, PROTOTYPE.empty_table(), kinds=("comparison",), seed=0, partners=pairs) == {}
