"""Comparisons are paired, know that a patient's questions go together, and do not take one look in twenty for news."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from medq_ray import cli
from medq_ray.artifacts import write_json, write_table
from medq_ray.evaluate.compare import compare, mcnemar, scores_of
from medq_ray.schema import SCORE


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(10, 0) == pytest.approx(2 / 2**10)
    assert mcnemar(7, 2) == mcnemar(2, 7) == pytest.approx(2 * (1 + 9 + 36) / 512)
    assert mcnemar(3, 3) == 1.0
    assert 0 < mcnemar(400, 300) < 1e-3


def scores(wrong: dict[str, int | list[int]], patient=lambda name: name, capabilities=lambda name: []) -> pa.Table:
    """One row a question; its runs are wrong (1) or right (0)."""
    rows = []
    for name, value in wrong.items():
        runs = [value] if isinstance(value, int) else value
        kind = "description" if name.startswith("d") else "what"
        rows.append({"question_id": name, "kind": kind, "modality": "mri", "patient": patient(name),
                     "capabilities": capabilities(name), "right": [not run for run in runs], "wrong": sum(runs),
                     "unparsed": 0, "failed": 0, "error_rate": sum(runs) / len(runs), "failure": False})  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCORE)


def test_compare_is_paired_antisymmetric_and_ignores_descriptions_and_order():
    before = {f"q{i}": int(i < 60) for i in range(100)} | {"d": 1}
    after = {f"q{i}": int(i < 40 or i == 99) for i in reversed(range(100))} | {"d": 0}
    result = compare(scores(before), scores(after))
    assert (result["difference"], result["n"], result["gained"], result["lost"]) == (0.19, 100, 20, 1)
    half = 1.96 * math.sqrt(23 - 19**2 / 102) / 102  # one question more that was gained, and one that was lost
    assert result["ci95"] == pytest.approx([19 / 102 - half, 19 / 102 + half], abs=1e-4)
    assert result["p_mcnemar"] == pytest.approx(2 * (1 + 21) / 2**21)
    back = compare(scores(after), scores(before))
    assert back["difference"] == -0.19 and back["p_mcnemar"] == result["p_mcnemar"]


def test_a_few_questions_that_agree_prove_little():
    before, after = ({f"q{i}": wrong for i in range(3)} for wrong in ([1, 1, 1, 1, 1], [0, 1, 1, 1, 1]))
    low, high = compare(scores(before), scores(after))["ci95"]
    assert low < 0 < 0.2 < high


def test_questions_about_one_image_are_not_independent():
    """Each answer three times over, as three questions of the same image, is no more evidence than once."""
    before = {f"q{i}": int(i < 60) for i in range(100)}
    after = {f"q{i}": int(i < 40 or i == 99) for i in range(100)}
    thrice = [{f"{name}-{k}": wrong for name, wrong in answers.items() for k in range(3)} for answers in (before, after)]
    once = compare(scores(before), scores(after))
    repeated = compare(*(scores(table, patient=lambda name: name.partition("-")[0]) for table in thrice))
    assert repeated["n"] == 300 and repeated["difference"] == once["difference"]
    assert repeated["ci95"] == pytest.approx(once["ci95"], abs=1e-6)


def test_compare_refuses_other_questions():
    with pytest.raises(ValueError, match="q2"):
        compare(scores({"q1": 0}), scores({"q1": 0, "q2": 1}))


def test_several_runs_count_by_their_shares():
    result = compare(scores({"q1": [0, 1, 1], "q2": [1, 1, 1]}), scores({"q1": [0, 0, 0], "q2": [1, 1, 0]}))
    assert result["difference"] == pytest.approx((2 / 3 + 1 / 3) / 2) and (result["gained"], result["lost"]) == (2, 0)


def test_what_the_endpoint_did_not_answer_changes_nothing():
    """A hundred right answers, of which six are missing the second time."""
    before = scores({f"q{i}": 0 for i in range(100)})
    rows = before.to_pylist()
    for row in rows[:6]:
        row |= {"right": [None], "failed": 1, "error_rate": None}
    result = compare(before, pa.Table.from_pylist(rows, schema=SCORE))
    assert (result["difference"], result["n"], result["lost"], result["unanswered"]) == (0, 94, 0, 6)


def test_only_the_capability_that_moved_has_moved():
    """Forty capabilities of fifty questions of which half change at random; in one, all that change improve."""
    rng = np.random.default_rng(0)
    names = [f"q{i:04d}" for i in range(2000)]
    before = {name: int(rng.random() < 0.5) for name in names}
    after = {name: int(rng.random() < 0.5) for name in names}
    after |= {name: 0 for name in names if int(name[-2:]) % 40 == 7}
    by_end = [scores(table, capabilities=lambda name: [f"end:{int(name[-2:]) % 40}"]) for table in (before, after)]
    result = compare(*by_end)["capabilities"]
    assert {name for name, row in result.items() if row["moved"]} == {"end:7"} and result["end:7"]["moved"] == "up"
    assert all(row["p_holm"] >= row["p_mcnemar"] for row in result.values())


def test_the_command_compares_two_folders(tmp_path):
    for name, wrong in (("a", 60), ("b", 30)):
        table = scores({f"q{i:02d}": int(i < wrong) for i in range(100)}, capabilities=lambda name: [f"tens:{name[1]}"])
        write_table(tmp_path / name / "scores.parquet", table, SCORE)
        write_json(tmp_path / name / "metrics.json", {"split": "dev"})
    command = ["evaluate", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]
    shown = CliRunner().invoke(cli.main, command)
    assert shown.exit_code == 0 and "+30.0" in shown.output and "3 of 10 capabilities moved" in shown.output
    found = json.loads(CliRunner().invoke(cli.main, [*command, "--json"]).output)
    assert found["difference"] == 0.3 and found["capabilities"]["tens:4"]["moved"] == "up"
    missing = CliRunner().invoke(cli.main, ["evaluate", "--compare", str(tmp_path / "a"), str(tmp_path)])
    assert missing.exit_code == 1 and f"{tmp_path}: no finished evaluation" in missing.output
    write_json(tmp_path / "b" / "metrics.json", {"split": "test"})
    for options, complaint in (([], "is an evaluation of dev,"), (["--split", "test"], "an evaluation of dev, not of test")):
        mixed = CliRunner().invoke(cli.main, [*command, *options])
        assert mixed.exit_code == 1 and complaint in mixed.output


@pytest.mark.parametrize("inside", ["", "evaluate"])
def test_an_iteration_has_both_splits_and_dev_is_meant_unless_test_is_said(tmp_path, inside):
    dev, test = scores({"q1": 0}), scores({"q2": 0})
    for name, table in (("scores.parquet", dev), ("test_scores.parquet", test)):
        write_table(tmp_path / inside / name, table, SCORE)
    write_json(tmp_path / inside / "metrics.json", {"dev": {}, "test": {}})
    assert scores_of(tmp_path, None) == (dev, "dev") and scores_of(tmp_path, "dev") == (dev, "dev")
    assert scores_of(tmp_path, "test") == (test, "test")
    with pytest.raises(ValueError, match="an evaluation of dev and test, not of all"):
        scores_of(tmp_path, "all")
