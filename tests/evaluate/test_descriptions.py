"""What the judge says decides which runs of a description are wrong, and its silence decides nothing."""

import pyarrow as pa
from test_scoring import completion, question, tables

from medq_ray.artifacts import read_table
from medq_ray.config import Judge
from medq_ray.evaluate.descriptions import judged
from medq_ray.judging.wording import AXES, OWN, wording_of
from medq_ray.schema import COMPLETION, JUDGEMENT


def judge_of(replies: dict[str, str]):
    """A judge that answers by the name of the request ('question/run/axis'), else 'Score: 2'."""

    def answer(prompts, sampling, label):
        rows = [completion(row["question_id"], 0, replies.get(row["question_id"], "Score: 2")) for row in prompts.to_pylist()]
        return pa.Table.from_pylist(rows, schema=COMPLETION)

    return answer


def test_a_run_is_wrong_below_the_threshold_of_any_axis(tmp_path):
    asked, given = tables(
        [question("d", "description", "golden"), question("q")],
        [completion("d", 0, "good"), completion("d", 1, "bad"), completion("d", 2, "", "HTTP 500"), completion("q", 0, "A")],
    )
    replies = {"d/1/preciseness": "Score: 0", "d/0/completeness": "Score: 1", "d/1/consistency": "who knows"}
    found = judged(tmp_path / "j.parquet", asked, given, Judge(model="gpt-4o"), judge_of(replies))
    assert found == {("d", 0): (True, "right"), ("d", 1): (False, "wrong: preciseness")}
    strict = Judge(model="gpt-4o", least={"completeness": 2.0})
    assert judged(tmp_path / "j.parquet", asked, given, strict, judge_of(replies))["d", 0] == (False, "wrong: completeness")
    table = read_table(tmp_path / "j.parquet")
    assert table.schema == JUDGEMENT and table.num_rows == 2 * len(AXES)
    assert set(table["judge"].to_pylist()) == {"gpt-4o"} and set(table["wording"].to_pylist()) == {"own wording"}


def test_a_judge_without_any_score_fails_the_run_and_not_the_model(tmp_path):
    asked, given = tables([question("d", "description", "golden")], [completion("d", 0, "text")])
    silent = judge_of({f"d/0/{axis}": "no comment" for axis in AXES})
    assert judged(tmp_path / "j.parquet", asked, given, Judge(model="m"), silent) == {
        ("d", 0): (None, "failed: the judge gave no score")}  # fmt: skip
    assert wording_of(Judge()) is OWN
