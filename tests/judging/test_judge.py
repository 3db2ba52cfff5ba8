"""The judge: official parsing, what it is asked and how often, means over what it answered, intervals that cover."""

import random

import numpy as np
import pyarrow as pa
import pytest

from medq_ray.judging.judge import ATTEMPTS, aggregate, failed_axes, family, judge, parse_score, rubric, warnings
from medq_ray.judging.wording import AXES, OWN
from medq_ray.schema import COMPLETION, JUDGEMENT, PROMPT

ITEMS = pa.schema(
    [("question_id", pa.string()), ("task", pa.string()), ("golden", pa.string()), ("prediction", pa.string())]
)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 2", 2.0),
        ("Score:1", 1.0),
        ("Score: 1.5", 1.5),
        ("Score: 2.5", 2.5),  # not clamped
        ("Score: 10", 1.0),
        ("Score: 2/2", 2.0),
        ("Score：2", 2.0),
        ('{"score":2}', 2.0),
        ("2", 2.0),
        ("2.5", 2.5),  # by rule (c), although rule (b) refuses it
        ("true", 1.0),
        ("score: 2", None),
        ("Score: **2**", None),
        ("**Score:** 2", None),
        ("Score: 3", None),
        ("Score = 2", None),
        ("I rate 2", None),
    ],
)
def test_the_facts_sheets_replies(reply, score):
    assert parse_score(reply) == score


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("  Score \n:\t0 because", 0.0),
        ("Score: 1, no, Score: 2", 1.0),  # the first
        ("Score: three. Score: 2", 2.0),  # the first that has a number
        ('{"why": "Score: 0", "score": 2}', 0.0),  # rule (a) looks into everything
        ('{"Score": 1}', 1.0),
        ('{"score": 5, "Score": 1}', 1.0),
        ('{"score": null, "Score": 1}', None),  # null ends rule (b)
        ('{"score": "1"}', 1.0),
        ('{"score": "nan"}', None),
        ('{"score": [2]}', None),
        ("1e0", 1.0),
        ("-1", None),
        ("false", 0.0),
        ('"2"', None),
        ("[2]", None),
        ("null", None),
        ("NaN", None),
        ("Infinity", None),
        ("Score: nan", None),
        ("9" * 400, None),  # too large for a float
        ("9" * 5000, None),  # too large for an int
        ('{"score": ' + "9" * 400 + "}", None),
        ("[" * 100_000, None),
        ('{"score": "\ud800"}', None),
        ("2." + "9" * 17, 3.0),  # rounded
        ("", None),
    ],
)
def test_other_replies(reply, score):
    assert parse_score(reply) == score


def test_parsing_is_total():
    pieces = [*"0123 ABz.:：\n\t*/=-[]{}\",٣", "Score", "Score: ", "score", '{"score": ', '"Score": ', "NaN", "Infinity",
              "null", "true", "1e999", "9" * 400, "9" * 5000, "[" * 3000, "\ud800", "\udfff", "\x1c"]  # fmt: skip
    rng = random.Random(0)
    scores = [parse_score("".join(rng.choices(pieces, k=rng.randrange(7)))) for _ in range(20_000)]
    found = [score for score in scores if score is not None]
    assert all(type(score) is float and 0 <= score < 3 for score in found)
    assert 100 < len(found) < len(scores) - 100


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("task", "rubrics"), [("description", OWN.single), ("comparison", OWN.paired)])
def test_a_rubric_is_filled_as_officially(task, rubrics, axis):
    for prediction in ("A sharp image.", "MLLM DESC", "\\1 {0} [DESC]", "GOLDEN DES"):
        golden = "Blurred [MLLM DESC]."
        expected = rubrics[axis].replace("MLLM DESC", prediction).replace("GOLDEN DESC", golden)
        assert rubric(OWN, task, axis, prediction, golden) == expected
        assert f"[{prediction}]" in expected and f"[{golden}]" in expected


@pytest.mark.parametrize("prediction", [None, ""])
def test_a_missing_prediction_is_judged_as_nan(prediction):
    assert "[nan]" in rubric(OWN, "description", "completeness", prediction, "Blurred.")


def test_a_prediction_cannot_fetch_the_experts_text():
    asked = rubric(OWN, "description", "completeness", "It is GOLDEN DESC.", "blurred by motion")
    assert asked.count("blurred by motion") == 1 and "[It is GOLDEN DESC.]" in asked


class Judge:
    """Replies by its own rule (prompt row, sampling) -> text, None for a failed request; remembers what was asked."""

    def __init__(self, reply):
        self.reply = reply
        self.batches = []

    def __call__(self, prompts, sampling, label):
        self.batches.append((prompts, sampling, label))
        rows = []
        for prompt in reversed(prompts.to_pylist()):  # order must not matter
            text = self.reply(prompt, sampling)
            rows.append({"question_id": prompt["question_id"], "run": 0, "model": "j", "text": text or "",
                         "error": "" if text is not None else "HTTP 400"})  # fmt: skip
        return pa.Table.from_pylist(rows, schema=COMPLETION)


def items(*rows: tuple[str, str, str, str | None]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(ITEMS.names, row, strict=True)) for row in rows], schema=ITEMS)


TWO = items(("q2", "comparison", "The first is better.", "The first."), ("q1", "description", "Blurred.", None))


def test_every_axis_of_every_item_is_asked_once_a_round_without_images():
    answer = Judge(lambda prompt, sampling: "Score: 2")
    table = judge(TWO, answer, wording=OWN, model="the judge", rounds=2, temperature=0.5)
    assert table.schema == JUDGEMENT
    rows = table.to_pylist()
    assert [(row["question_id"], row["round"], row["axis"]) for row in rows] == [
        (name, number, axis) for name in ("q1", "q2") for number in (0, 1) for axis in AXES]  # fmt: skip
    assert {(row["score"], row["attempts"], row["reply"], row["judge"], row["wording"]) for row in rows} == {
        (2.0, 1, "Score: 2", "the judge", "own wording")}  # fmt: skip
    assert {row["question_id"]: row["task"] for row in rows} == {"q1": "description", "q2": "comparison"}
    assert len(answer.batches) == 2
    for prompts, sampling, _ in answer.batches:
        assert prompts.schema == PROMPT and prompts["uris"].to_pylist() == [[]] * 8
        assert len(set(prompts["question_id"].to_pylist())) == 8
        assert (sampling.n, sampling.temperature, sampling.logprobs) == (1, 0.5, False)
        asked = dict(zip(prompts["question_id"].to_pylist(), prompts["prompt"].to_pylist(), strict=True))
        for axis in AXES:
            assert asked[f"q1/{axis}"] == rubric(OWN, "description", axis, None, "Blurred.")
            assert asked[f"q2/{axis}"] == rubric(OWN, "comparison", axis, "The first.", "The first is better.")


def test_only_what_has_no_score_is_asked_again_with_another_seed():
    def reply(prompt, sampling):
        name, attempt = prompt["question_id"], sampling.seed % ATTEMPTS
        if name == "q1/completeness":
            return [None, "hm", "Score: 1"][attempt]
        if name == "q2/preciseness":
            return ["well", "so", "I cannot say"][attempt]
        return ["Score: 0", "Score: 2", "Score: 2"][attempt]

    answer = Judge(reply)
    table = judge(TWO, answer, wording=OWN, model="j", rounds=2)
    assert [prompts.num_rows for prompts, _, _ in answer.batches] == [8, 2, 2] * 2
    assert [sampling.seed for _, sampling, _ in answer.batches] == [0, 1, 2, 3, 4, 5]
    assert len({label for _, _, label in answer.batches}) == 6
    found = {
        (row["question_id"], row["axis"]): (row["score"], row["attempts"], row["reply"])
        for row in table.to_pylist()
        if row["round"] == 1
    }
    assert found.pop(("q1", "completeness")) == (1.0, 3, "Score: 1")
    assert found.pop(("q2", "preciseness")) == (None, 3, "I cannot say")
    assert set(found.values()) == {(0.0, 1, "Score: 0")}


def test_names_of_questions_may_hold_slashes():
    both = items(("a", "description", "x", "y"), ("a/completeness", "description", "x", "y"))
    table = judge(both, Judge(lambda *_: "Score: 1"), wording=OWN, model="j", rounds=1)
    assert table.num_rows == 8 and table["score"].to_pylist() == [1.0] * 8


def test_two_items_of_one_name_are_refused():
    twice = items(("q", "description", "x", "y"), ("q", "comparison", "x", "y"))
    with pytest.raises(ValueError, match="question_id"):
        judge(twice, Judge(lambda *_: "Score: 1"), wording=OWN, model="j", rounds=1)


def test_nothing_to_judge_asks_nothing():
    answer = Judge(lambda *_: "Score: 1")
    assert judge(ITEMS.empty_table(), answer, wording=OWN, model="j", rounds=2).num_rows == 0
    assert answer.batches == [] and aggregate(JUDGEMENT.empty_table()) == {}


def judgements(scores: np.ndarray, task: str = "description", model: str = "j") -> pa.Table:
    """schema.JUDGEMENT of scores (rounds, items, axes), NaN for a missing one; rows in no particular order."""
    rows = [
        {"question_id": f"{task} {i}", "task": task, "round": r, "axis": AXES[a], "attempts": 1, "reply": "",
         "score": None if np.isnan(score) else float(score), "judge": model, "wording": "own wording"}
        for (r, i, a), score in np.ndenumerate(scores)
    ]  # fmt: skip
    random.Random(0).shuffle(rows)
    return pa.Table.from_pylist(rows, schema=JUDGEMENT)


def drawn(rounds: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, (rounds, n, len(AXES))).astype(float)


def test_means_counts_and_the_overall():
    scores = np.full((1, 4, 4), 1.0)
    scores[0, :, 0] = [2, 1, np.nan, 0]
    scores[0, :, 1] = [2, 2, 2, 0]
    result = aggregate(judgements(scores))["description"]
    assert result["completeness"] | {"ci95": 0} == {"mean": 1.0, "scored": 3, "missing": 1, "ci95": 0}
    assert result["preciseness"]["mean"] == 1.5 and result["consistency"]["ci95"] == [1.0, 1.0]
    assert result["overall"]["sum"] == pytest.approx(4.5)
    assert (result["rounds"], result["between_rounds"]) == (1, None)
    assert (result["wording"], result["judge"]) == ("own wording", "j")


def test_a_missing_score_moves_no_mean_and_is_counted():
    scores = drawn(1, 40)
    scores[0, 7, 2] = np.nan
    result = aggregate(judgements(scores))["description"]["consistency"]
    assert result["mean"] == pytest.approx(np.delete(scores[0, :, 2], 7).mean(), abs=1e-6)
    assert (result["scored"], result["missing"]) == (39, 1)


def test_an_axis_without_any_score_has_mean_nought_and_no_interval():
    scores = drawn(1, 10)
    scores[0, :, 3] = np.nan
    result = aggregate(judgements(scores))["description"]
    assert result["quality_accuracy"] == {"mean": 0.0, "scored": 0, "missing": 10, "ci95": None}
    assert result["overall"]["sum"] == pytest.approx(scores[0, :, :3].mean(axis=0).sum(), abs=1e-5)
    assert result["overall"]["ci95"] is None and result["completeness"]["ci95"] is not None


def test_one_item_has_no_interval():
    result = aggregate(judgements(drawn(3, 1)))["description"]
    assert all(result[axis]["ci95"] is None for axis in AXES) and result["overall"]["ci95"] is None


def test_rounds_are_averaged_within_items_first():
    scores = np.full((2, 2, 4), 1.0)
    scores[:, :, 0] = [[2, 0], [2, np.nan]]  # items by their means: 2 and 0; by single scores it would be 4 / 3
    result = aggregate(judgements(scores))["description"]
    assert result["completeness"]["mean"] == 1.0
    assert (result["completeness"]["scored"], result["completeness"]["missing"]) == (3, 1)


def test_the_scatter_between_rounds_is_that_of_the_overall():
    scores = drawn(3, 30)
    overall = scores.mean(axis=1).sum(axis=1)
    result = aggregate(judgements(scores))["description"]
    assert result["between_rounds"] == pytest.approx(overall.std(ddof=1), abs=1e-6)
    assert aggregate(judgements(np.repeat(scores[:1], 3, axis=0)))["description"]["between_rounds"] == 0.0


def test_tasks_are_apart_and_order_does_not_matter():
    one, two = judgements(drawn(1, 20)), judgements(drawn(1, 9, seed=1), "comparison")
    both = pa.concat_tables([one, two])
    result = aggregate(both)
    assert list(result) == ["comparison", "description"]
    assert result == aggregate(one) | aggregate(two) == aggregate(both.take(np.arange(both.num_rows)[::-1]))


def test_intervals_depend_on_the_seed_only():
    table = judgements(drawn(2, 30))
    first, again, other = (aggregate(table, seed=seed)["description"] for seed in (0, 0, 1))
    assert first == again
    assert first["overall"]["ci95"] != other["overall"]["ci95"]
    assert first["overall"]["sum"] == other["overall"]["sum"]


def test_the_interval_is_as_wide_as_the_normal_one():
    scores = drawn(2, 200)
    result = aggregate(judgements(scores))["description"]
    per_item = scores.mean(axis=0)
    for found, values in ((result["completeness"], per_item[:, 0]), (result["overall"], per_item.sum(axis=1))):
        low, high = found["ci95"]
        assert low < values.mean() < high
        assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(len(values)), rel=0.1)


def test_rounds_do_not_pass_for_items():
    once = drawn(1, 50)
    single, repeated = (
        aggregate(judgements(scores))["description"]["overall"]["ci95"] for scores in (once, np.repeat(once, 4, axis=0))
    )
    assert single == repeated


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        quality = rng.normal(1, 0.3, (1, 60, 4))  # of items drawn from a population whose overall is 4
        low, high = aggregate(judgements(quality + rng.normal(0, 0.3, (2, 60, 4))), seed=trial)[
            "description"]["overall"]["ci95"]  # fmt: skip
        covered += low <= 4 <= high
    assert 88 <= covered <= 99


def test_several_judges_are_not_averaged():
    table = pa.concat_tables([judgements(drawn(1, 3)), judgements(drawn(1, 3), "comparison", "another")])
    with pytest.raises(ValueError, match="several judges"):
        aggregate(table)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt-4o-2024-05-13", "openai"),
        ("openai/gpt-oss-20b", "openai"),
        ("chatgpt-4o-latest", "openai"),
        ("o1-preview", "openai"),
        ("openai/o3", "openai"),
        ("claude-sonnet-4", "anthropic"),
        ("Gemini-2.5-Pro", "google"),
        ("google/medgemma-27b-it", "google"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen"),
        ("OpenGVLab/InternVL3-8B", "qwen"),
        ("Lingshu-32B", "qwen"),
        ("DeepSeek-R1-Distill-Qwen-7B", "qwen"),
        ("llava-onevision-qwen2-7b", "qwen"),
        ("Mistral-Medium-3", "mistral"),
        ("mixtral-8x7b", "mistral"),
        ("llava-v1.5-7b", "meta"),
        ("BiMediX2-8B", "meta"),
        ("grok-4", "xai"),
        ("HuatuoGPT-Vision", ""),
        ("simulated-oracle", ""),
        ("medq", ""),
        ("", ""),
    ],
)
def test_families(model, expected):
    assert family(model) == expected


def test_relatives_are_warned_of():
    [line] = warnings("gpt-4o", "InternVL3-8B", "gpt-4o-mini")
    assert "gpt-4o-mini" in line and "oracle" in line and "\n" not in line
    [line] = warnings("Qwen2.5-VL-72B", "InternVL3-8B", None)
    assert "InternVL3-8B" in line and "candidate" in line
    assert len(warnings("gpt-4o", "gpt-5", "o3")) == 2
    assert warnings("gpt-4o", "medq", "simulated-oracle") == []
    assert warnings("unknown", "another", None) == []
    assert len(warnings("medq", "medq", None)) == 1  # itself, whatever it is


def test_a_description_fails_below_a_threshold():
    scores = {"completeness": 0.9, "preciseness": 1.0, "consistency": None, "quality_accuracy": 0.0}
    assert failed_axes(scores, dict.fromkeys(AXES, 1.0)) == ["completeness", "quality_accuracy"]
    assert failed_axes(scores, {"quality_accuracy": 0.5}) == ["quality_accuracy"]
    assert failed_axes(scores, {}) == []
    with pytest.raises(KeyError):
        failed_axes(scores, {"accuracy": 1.0})
