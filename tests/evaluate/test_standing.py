"""Published rows agree with themselves; a result takes the rank that its score has among them, and says what limits it."""

import random

import pyarrow as pa
import pytest

from medq_ray.judging.judge import aggregate
from medq_ray.evaluate.published import CAVEATS, COUNTS, KIND_COUNTS, ROWS, Row
from medq_ray.evaluate.scoring import accuracy, score
from medq_ray.intervals import wilson
from medq_ray.evaluate.standing import HEADS, standing, table
from medq_ray.judging.wording import AXES
from medq_ray.schema import BENCH_QUESTION, COMPLETION, JUDGEMENT

MODELS = [row for row in ROWS if row.ranked]


def rated(right: float, n: int) -> dict:
    low, high = wilson(right / n, n)
    return {"accuracy": round(right / n, 6), "n": n, "ci95": [round(low, 6), round(high, 6)]}


def perception(shares: tuple[float, ...]) -> dict:
    """Of yes_no, what, how and all, in %."""
    kinds = {kind: rated(share / 100 * n, n) for (kind, n), share in zip(KIND_COUNTS.items(), shares, strict=False)}
    return rated(shares[3] / 100 * 1305, 1305) | {"by_kind": kinds}


def judged(means: tuple[float, ...], n: int, missing: int = 0, rounds: int = 1, wording: str = "official") -> dict:
    """Of four axes and their sum; `missing` scores of each axis."""
    axes = {
        axis: {"mean": mean, "scored": n * rounds - missing, "missing": missing, "ci95": [mean - 0.1, mean + 0.1]}
        for axis, mean in zip(AXES, means, strict=False)
    }
    overall = {"sum": means[4], "ci95": [means[4] - 0.2, means[4] + 0.2]}
    return axes | {"overall": overall, "rounds": rounds, "wording": wording, "judge": "gpt-4o"}


def result(row: Row, **more) -> dict:
    """A result that reaches what a row has published."""
    return {
        "model": "ours",
        "release": "MedQ-Bench",
        "split": "test",
        "wording": "official",
        "runs": 1,
        "temperature": 0.0,
        "perception": perception(row.perception),
        "description": judged(row.description, 221) if row.description else None,
        "comparison": judged(row.comparison, 133) if row.comparison else None,
    } | more


def row_called(model: str) -> Row:
    [row] = [row for row in ROWS if row.model == model]
    return row


def test_printed_sums_are_those_of_their_axes_but_for_one_row():
    for row in ROWS:
        for scores in filter(None, (row.description, row.comparison)):
            apart = round(scores[4] - sum(scores[:4]), 4)
            known = row.model == "InternVL3-8B" and scores is row.description
            assert apart == 0.002 if known else abs(apart) <= 0.0011, row.model
            assert all(0 <= value <= 2 for value in scores[:4])


def test_all_is_the_micro_average_of_the_types_but_for_two_models():
    weights = list(KIND_COUNTS.values())
    assert sum(weights) == COUNTS["test"]["perception"]
    for row in MODELS:
        mean = sum(share * n for share, n in zip(row.perception, weights, strict=False)) / sum(weights)
        odd = row.model in ("GPT-4o", "Gemini-2.5-Pro")
        assert 0.05 < mean - row.perception[3] < 0.07 if odd else abs(mean - row.perception[3]) < 0.02, row.model


def test_scores_are_whole_multiples_of_the_known_counts():
    """The counts were found so; a digit typed wrongly would show."""
    counts = (*KIND_COUNTS.values(), COUNTS["test"]["perception"])
    right = {row.model: [share / 100 * n for share, n in zip(row.perception, counts, strict=True)] for row in MODELS}
    odd = {model for model, numbers in right.items() if any(abs(number - round(number)) > 0.07 for number in numbers)}
    assert odd == {"GPT-4o", "Gemini-2.5-Pro"}
    for task, cells in (("description", 2), ("comparison", 1)):
        n = COUNTS["test"][task]
        points = [value * n for row in MODELS for value in (getattr(row, task) or ())[:4]]
        assert sum(abs(value - round(value)) > 0.0006 * n for value in points) == cells


def test_a_published_score_takes_its_own_rank():
    for task in HEADS:
        published = [row for row in MODELS if getattr(row, task)]
        for row in published:
            own = standing(result(row))[task]
            assert own["rank"] == 1 + sum(getattr(other, task)[-1] > getattr(row, task)[-1] for other in published)
            assert own["of"] == len(published) + 1
    assert (len([row for row in MODELS if row.comparison]), len(MODELS), len(ROWS)) == (5, 16, 19)


def test_as_many_right_answers_as_a_published_model_tie_with_it():
    for row in MODELS:
        right = round(row.perception[3] / 100 * 1305)
        if round(100 * right / 1305, 2) == row.perception[3]:
            own = standing(result(row, perception=rated(right, 1305) | {"by_kind": {}}))["perception"]
            assert own["rank"] == standing(result(row))["perception"]["rank"], row.model


def test_ranks_follow_scores_and_intervals_hold_them():
    rng = random.Random(0)
    before = None
    for share in sorted(rng.uniform(0, 100) for _ in range(300)):
        own = standing(result(row_called("GPT-5"), perception=perception((share,) * 4)))["perception"]
        assert 1 <= own["best"] <= own["rank"] <= own["worst"] <= own["of"] == 17
        assert before is None or own["rank"] <= before
        before = own["rank"]
    assert before == 1


def test_people_and_guessing_take_no_rank():
    own = standing(result(row_called("human experts")))
    assert (own["perception"]["rank"], list(own)) == (1, ["perception"])
    assert standing(result(row_called("non-experts")))["perception"]["rank"] == 7
    lowest = standing(result(row_called("BiMediX2-8B")))["perception"]
    assert (lowest["rank"], lowest["of"]) == (16, 17)


def test_the_comparison_task_says_that_only_five_are_known():
    own = standing(result(row_called("GPT-4o")))["comparison"]
    assert (own["rank"], own["of"], own["among"]) == (2, 6, "the published top 5")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"split": "dev"}, "of the test split, not of dev"),
        ({"release": "MedQ-Deg", "split": "good-test"}, "no published scores of MedQ-Deg"),
    ],
)
def test_other_splits_and_releases_have_no_rank_and_no_published_rows(more, reason):
    own = result(row_called("GPT-5"), **more)
    assert all(place["rank"] is None and reason in place["reason"] for place in standing(own).values())
    for markdown in (False, True):
        text = table([own], markdown)
        assert reason in text and "Grok-4" not in text and "68.97" in text and "Published rows" not in text
    assert "Grok-4" not in table([own, result(row_called("GPT-4o"))], False)  # nor beside one that could have them


def test_scores_in_our_own_wording_take_no_rank_and_say_so():
    for more in ({"wording": "own wording"}, {"description": judged((1, 1, 1, 1, 4), 221, wording="own wording")}):
        own = result(row_called("GPT-5"), **more)
        places = standing(own)
        assert places["description"]["rank"] is None and "own wording" in places["description"]["reason"]
        assert places["perception"]["rank"] == 3
        for markdown in (False, True):
            grid, rest = table([own], markdown).split("Ranks:")
            assert "own wording" in grid and "not comparable with published scores" in " ".join(rest.split())
    assert "own wording" not in table([result(row_called("GPT-5"))], False)


def test_a_task_or_axis_without_a_score_is_a_dash_and_no_zero():
    own = result(row_called("GPT-5"), comparison=None)
    own["description"]["consistency"] |= {"mean": 0.0, "scored": 0, "missing": 221, "ci95": None}
    assert standing(own)["description"] == {"rank": None, "reason": "no score"}
    assert "comparison" not in standing(own)
    [line] = [line for line in table([own], False).splitlines() if line.startswith("> ours")]
    assert line.split()[-5:] == ["1.195", "1.118", "-", "1.529", "-"]
    nothing = result(row_called("GPT-5"), perception={"accuracy": None, "n": 0, "ci95": [0.0, 1.0], "by_kind": {}})
    assert standing(nothing)["perception"]["reason"] == "no score" and "> ours" in table([nothing], False)


def test_a_score_without_an_interval_has_a_rank_only():
    own = result(row_called("GPT-5"))
    own["description"]["overall"]["ci95"] = None
    place = standing(own)["description"]
    assert (place["rank"], place["best"], place["worst"]) == (1, None, None)
    assert "description: rank 1 of 17, among the 16 published models\n" in table([own], False)


def test_text_has_the_papers_columns_fits_and_is_sorted():
    names = {"GPT-4o": "tiny", "BiMediX2-8B": "a|b", "GPT-5": "some-organisation/a-model-of-a-name-that-is-long"}
    rows = [result(row_called(name), model=ours) for name, ours in names.items()]
    text = table(rows, False)
    assert max(map(len, text.splitlines())) <= 120
    first, second = text.split("\n\n")[:2]
    assert first.splitlines()[1].split() == ["Model", *HEADS["perception"], *HEADS["description"]]
    assert second.splitlines()[1].split() == ["Model", *HEADS["comparison"]]
    body = first.splitlines()[3:-1]
    scores = [float(line[58:68]) for line in body if line[58:68].strip() and "-" not in line[58:68]]
    assert len(scores) == len(ROWS) + len(names) and scores == sorted(scores, reverse=True)
    assert {len(line) for line in first.splitlines() if len(line) > 60} == {120}  # columns end where they should
    for row in ROWS:
        assert any(row.model in line and f"{row.perception[3]:.2f}" in line for line in body)
    low, high = (f"{100 * end:.1f}" for end in rows[0]["perception"]["ci95"])
    assert f" {low}-{high} " in first


def test_markdown_is_one_grid_a_table():
    text = table([result(row_called("GPT-4o"), model="a|b", wording="own wording")], True)
    for part, width in zip(text.split("\n\n")[1:4:2], (10, 6), strict=True):
        lines = part.replace(r"\|", "").splitlines()
        assert len(lines) > 6 and {line.count("|") for line in lines} == {width + 1}
    assert r"| **a\|b** (own wording) | 78.48 [" in text and "1.009 [0.91-1.11]" in text


def test_notes_say_what_limits_a_comparison():
    own = result(
        row_called("GPT-4o"),
        runs=5,
        temperature=0.7,
        perception=perception(row_called("GPT-4o").perception) | {"n": 1200},
        description=judged(row_called("GPT-4o").description, 221, missing=3, rounds=2),
    )
    notes = " ".join(table([own], False).split("Notes:")[1].split())
    for said in (
        "ours: temperature 0.7, 5 runs, perception is the mean over them.",
        "1,200 perception questions; published rows are over 1,305.",
        "description judged by gpt-4o in 2 rounds, in the official wording.",
        "12 of 1,768 description scores missing",
        *(caveat for task in CAVEATS for caveat in CAVEATS[task]),
    ):
        assert said in notes, said
    assert "221" not in notes and "133" not in notes  # as many as published
    plain = " ".join(table([result(row_called("GPT-4o"), comparison=None)], True).split())
    assert "ours: temperature 0 (greedy), one run." in plain and "missing:" not in plain
    assert CAVEATS["comparison"][0] not in plain and CAVEATS["description"][0] in plain


def test_what_scoring_and_judge_give_is_taken_as_it_is():
    asked = {"image_id": "i", "uri": "u", "scope": "", "modality": "", "text": "?", "second_uri": "", "extra": "{}"}
    kinds = ("yes_no", "what", "how", "how")
    questions = [
        asked | {"question_id": str(i), "kind": kind, "options": ["x", "y", "", ""], "answer": "A"}
        | {"capabilities": [f"kind:{kind}"], "task": "perception"}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    answers = [{"question_id": str(i), "run": 0, "text": "A" if i else "B", "error": ""} for i in range(len(kinds))]
    judgement = {"task": "description", "round": 0, "attempts": 1, "reply": "", "judge": "j", "wording": "official"}
    scores = [judgement | {"question_id": str(i), "axis": axis, "score": i % 3.0} for i in range(6) for axis in AXES]
    tables = pa.Table.from_pylist(questions, schema=BENCH_QUESTION), pa.Table.from_pylist(answers, schema=COMPLETION)
    own = result(
        row_called("GPT-5"),
        perception=accuracy(score(*tables, 0.6)),
        description=aggregate(pa.Table.from_pylist(scores, schema=JUDGEMENT))["description"],
    )
    assert [place["rank"] for place in standing(own).values()] == [2, 16, 1]
    text = table([own], False)
    [line] = [line for line in text.splitlines() if line.startswith("> ours") and "75.00" in line]
    assert line.split()[2:] == ["0.00", "100.00", "100.00", "75.00", "1.000", "1.000", "1.000", "1.000", "4.000"]
    assert "4 perception questions" in text and "6 description questions" in text
