"""Questions that the oracle writes: aimed, read strictly, balanced; garbage never enters."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from medq_ray.explore.pairs import NEAREST, partners
from medq_ray.explore.writing import commissions, written
from medq_ray.model.prompts import parse_letter
from medq_ray.questions import COMPARED, LETTERS
from medq_ray.questions.commission import Commission, commission_in, read_reply
from medq_ray.schema import COMPLETION, DEGRADATIONS, DROP, KINDS, MODALITIES, PROTOTYPE, QUESTION, SELECTION
from medq_ray.synthetic.answers import SimulatedOracle
from medq_ray.synthetic.truth import gold


def world(count: int, seed: int = 0, weak: float = 0.5) -> tuple[pa.Table, dict[str, dict]]:
    """A selection for weaknesses, of which so many images have them, and its truth."""
    rng, rows, truth = np.random.default_rng(seed), [], {}
    for _ in range(count):
        name, modality = f"{rng.integers(2**60):016x}", MODALITIES[rng.integers(5)]
        aim = DEGRADATIONS[modality][rng.integers(5)]
        true = aim if rng.random() < weak else ("none", *DEGRADATIONS[modality])[rng.integers(6)]
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


def write(count: int = 400, attempts: int = 3, seed: int = 0, weak: float = 0.5, **rates) -> tuple:
    selection, truth = world(count, weak=weak)
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
        assert f"degradation:{aim}" in row["capabilities"]
        if row["kind"] in ("how", "description"):  # as bad as it was answered, not as bad as was thought
            assert f"severity:{truth[row['image_id']]['severity']}" in row["capabilities"]
        else:
            assert "severity:none" not in row["capabilities"]
        if row["kind"] == "what":
            assert aim.replace("_", " ") in row["options"]
    specific = [row for row in rows if row["kind"] == "yes_no" and " show " in row["text"]]
    named = [row for row in specific if row["capabilities"][0].partition("/")[2].replace("_", " ") in row["text"]]
    assert 0.65 < len(specific) / 400 < 0.85 and len(named) > 0.5 * len(specific)


@pytest.mark.parametrize("weak", [0.5, 0.75, 1.0])
def test_of_all_yes_no_questions_neither_answer_rules(weak):
    """Whatever share of the selected images truly has the weakness that they were selected for."""
    rows, *_ = write(1500, weak=weak)
    said = Counter(row["answer"] for row in rows if row["kind"] == "yes_no")
    assert 0.35 < said["A"] / said.total() < 0.68, said


def test_answers_are_balanced():
    rows, *_ = write(1500)
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


WHAT = Commission("what", "mri", "motion", "severe", "")
WORDS = "What is the main degradation of this MRI image?"
GOOD = {"question": WORDS, "options": ["motion", "blur", "noise", "none of these"], "answer": "blur"}


def test_a_prompt_states_its_commission():
    for kind in KINDS:
        commission = Commission(kind, "ct", "ring", "mild", "No" if kind == "yes_no" else "")
        prompt = commission.prompt("too long")
        assert commission_in(prompt) == commission
        prose = prompt.partition("\nTask: ")[0]
        assert "The model fails on mild ring in CT images" in prose and f"word for word, {commission.texts()[0]!r}"[:40] in prose
    assert commission_in("What is the main degradation?") is None


def test_what_is_wanted_is_said_only_where_it_can_be_chosen():
    selection, _ = world(600)
    orders = commissions(selection, PROTOTYPE.empty_table(), kinds=KINDS, seed=0, partners={})
    wanted = Counter((order.kind, order.general, order.wanted) for _, order in orders.values())
    assert {key for key in wanted if key[2]} == {("yes_no", False, "Yes"), ("yes_no", False, "No")}
    assert wanted["yes_no", False, "Yes"] == pytest.approx(225, abs=40) == wanted["yes_no", False, "No"]
    assert wanted["yes_no", True, ""] == pytest.approx(150, abs=40)


def test_a_reply_in_a_fence_is_read():
    assert read_reply(WHAT, f"```json\n{json.dumps(GOOD)}\n```") == tuple(GOOD.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "motion blur"}, "none of the options"),
        ({"options": ["blur", "noise", "none of these"]}, "motion is not among"),
        ({"question": "What is \ud83d?"}, "cannot be printed"),
        ({"question": "Which degradation is NOT visible in this MRI image?"}, "not, word for word"),
        ({"question": f"{WORDS} It is blur."}, "not, word for word"),
        ({"question": "Ignore blur. Is the patient John Smith alive?"}, "not, word for word"),
        ({"options": ["motion", "Motion", "none of these"], "answer": "motion"}, "two options are the same"),
        ({"options": ["motion", "ring", "none of these"], "answer": "ring"}, "degradations from the list"),
        ({"options": ["motion", "blur", "noise"]}, "none of these"),
        ({"question": WORDS.replace("MRI", "CT")}, "not, word for word"),
        ({"question": ""}, "empty"),
        ({"question": "x" * 500}, "longer than 400"),
        ({"question": 7}, "must be strings"),
        ({"patient": "Ann"}, "not a JSON object of"),
    ],
)
def test_each_rule_is_kept(change, reason):
    with pytest.raises(ValueError, match=reason):
        read_reply(WHAT, json.dumps(GOOD | change))


SHOWS, IMPAIRED = "Does this MRI image show motion?", "Is the quality of this MRI image impaired?"
DESCRIBE = "Describe the quality of this MRI image."


@pytest.mark.parametrize(
    ("kind", "reply", "reason"),
    [
        ("yes_no", {"question": SHOWS, "options": ["Yes", "No", "?"], "answer": "No"}, '"Yes" and "No"'),
        ("yes_no", {"question": "Is it fine?", "options": ["Yes", "No"], "answer": "No"}, "word for word"),
        ("yes_no", {"question": f"{SHOWS} The answer is No.", "options": ["Yes", "No"], "answer": "No"}, "word for"),
        ("yes_no", {"question": "Does this MRI image show metal?", "options": ["Yes", "No"], "answer": "No"}, "word for"),
        ("yes_no", {"question": IMPAIRED, "options": ["Yes", "No"], "answer": "No"}, "word for word"),
        ("general", {"question": SHOWS, "options": ["Yes", "No"], "answer": "No"}, "word for word"),
        ("general", {"question": "Who is the president?", "options": ["Yes", "No"], "answer": "No"}, "word for word"),
        ("how", {"question": "The degradation is severe. How severe is it?", "options": ["none", "mild", "severe"],
                 "answer": "severe"}, "word for word"),
        ("how", {"question": "How severe is the degradation of this MRI image?", "options": ["low", "high"],
                 "answer": "low"}, "levels"),
        ("comparison", {"question": "Which of these two MRI images is of worse quality?", "options": ["the first",
                        "the second", "both alike"], "answer": "the first"}, "word for word"),
        ("description", {"question": DESCRIBE, "answer": "It is fine."}, "form"),
        ("description", {"question": DESCRIBE, "answer": "A CT image. Mild ring. Overall, the quality of this image is "
                         "usable."}, "not one of MRI"),
        ("description", {"question": DESCRIBE, "answer": "An MRI image. Severe motion. Overall, the quality of this "
                         "image is good."}, "contradicts"),
    ],
)  # fmt: skip
def test_each_kind_has_its_rules(kind, reply, reason):
    aim, kind = ("none", "yes_no") if kind == "general" else ("motion", kind)
    with pytest.raises(ValueError, match=reason):
        read_reply(Commission(kind, "mri", aim, "none" if aim == "none" else "mild", "No"), json.dumps(reply))


def test_a_key_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="not one JSON object"):
        read_reply(WHAT, json.dumps(GOOD)[:-1] + ', "answer": "motion"}')


@pytest.mark.parametrize(("kind", "text"), [("what", "Which of these is NOT visible?"), ("how", "How severe is the noise?"),
                                            ("comparison", "Which is of worse quality?"),
                                            ("yes_no", "Does this MRI image show ghosting from motion?!")])  # fmt: skip
def test_whoever_checks_says_that_other_words_cannot_be_checked(kind, text):
    truth = {"modality": "mri", "degradation": "motion", "severity": "severe"}
    options = {"how": ["none", "mild", "severe"], "comparison": list(COMPARED)}.get(kind, ["motion", "Yes", "No"])
    with pytest.raises(ValueError, match="in no words of"):
        gold({"kind": kind, "text": text, "options": options}, truth, truth)


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


def test_comparisons_are_of_two_patients_once_each_and_mostly_tell_two_weaknesses_apart():
    """With embeddings that show the cell, as real encoders' do: the nearest image has the same degradation."""
    selection, truth = world(300, weak=0.75)
    rng = np.random.default_rng(0)
    cells = {name: f"{row['modality']}/{row['degradation']}" for name, row in truth.items()}
    centre = {cell: rng.standard_normal(8) for cell in sorted(set(cells.values()))}
    vectors = {name: centre[cells[name]] + 0.3 * rng.standard_normal(8) for name in truth}
    vectors = {name: row / np.linalg.norm(row) for name, row in vectors.items()}
    pairs = partners(selection, lambda names: np.stack([vectors[name] for name in names]), seed=0)
    simulated = SimulatedOracle(truth, 0.0, 0.0, 0.0, seed=1)

    def answer(prompts: pa.Table, sampling, label: str) -> pa.Table:
        rows = [{"question_id": row["question_id"], "run": 0, "error": "",
                 "text": simulated.answer(row["uris"][0][1:], row["prompt"], row["uris"][1][1:])}
                for row in prompts.to_pylist()]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=COMPLETION)

    orders = commissions(selection, PROTOTYPE.empty_table(), kinds=("comparison",), seed=0, partners=pairs)
    table, dropped = written(orders, answer, attempts=1, temperature=0.0, seed=0)
    assert len(table) == 300 and not len(dropped)
    rows = table.to_pylist()
    assert len({frozenset((row["image_id"], row["second_id"])) for row in rows}) == 300
    letters, said = Counter(), Counter()
    for row in rows:
        first, second = truth[row["image_id"]], truth[row["second_id"]]
        own = [name for name in truth if truth[name]["modality"] == first["modality"] and name != row["image_id"]]
        own.sort(key=lambda name: -float(vectors[name] @ vectors[row["image_id"]]))
        assert row["second_id"] in own[: 4 * NEAREST] and row["second_uri"] == f"/{row['second_id']}"
        assert gold(row, first, second) == row["answer"]
        letters[row["answer"]] += 1
        said[row["options"][LETTERS.index(row["answer"])]] += 1
    assert set(letters) == {"A", "B", "C"} and max(letters.values()) < 1.6 * min(letters.values())
    assert max(said.values()) < 0.55 * said.total(), said
    other = partners(selection, lambda names: np.stack([vectors[name] for name in names]), seed=1)
    assert other.keys() == pairs.keys() and other != pairs


def test_an_image_without_another_patient_of_its_modality_is_not_compared():
    selection, _ = world(30)
    one = selection.set_column(3, "patient", pa.array(["p"] * 30))
    assert selection.column_names[3] == "patient"
    pairs = partners(one, lambda names: np.ones((len(names), 2)), seed=0)
    assert pairs == {}
    assert commissions(one, PROTOTYPE.empty_table(), kinds=("comparison",), seed=0, partners=pairs) == {}
