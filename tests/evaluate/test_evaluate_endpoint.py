"""Any endpoint can be evaluated on a world, and two evaluations compared."""

import json

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from medq_ray import cli
from medq_ray.artifacts import read_json
from medq_ray.synthetic.world import write_world


@pytest.mark.engine
def test_the_command_evaluates_any_model_on_a_world(ray_local, stub, tmp_path):
    write_world(tmp_path / "w", 60, 3, size=56)
    command = ["evaluate", "--world", str(tmp_path / "w"), "--split", "test", "--base-url", stub.url, "--model"]
    for name in ("a", "b"):
        shown = CliRunner().invoke(cli.main, [*command, name, "--out", str(tmp_path / name), "--set", "evaluate.runs=3"])
        assert shown.exit_code == 0, shown.output
        assert f"{name} on test: accuracy" in shown.output and "perception" in shown.output
    out = tmp_path / "a"
    completions = pq.read_table(out / "completions.parquet").to_pylist()
    scores = pq.read_table(out / "scores.parquet").to_pylist()
    assert len(completions) == 3 * len(scores)
    said = {(row["question_id"], row["run"]): row["text"] for row in completions}
    questions = {row["question_id"]: row for row in pq.read_table(tmp_path / "w" / "questions.parquet").to_pylist()}
    perception = [row for row in scores if row["kind"] != "description"]
    right = sum(said[row["question_id"], run] == questions[row["question_id"]]["answer"] for row in perception for run in range(3))
    metrics = read_json(out / "metrics.json")
    assert metrics["test"]["accuracy"] == pytest.approx(right / (3 * len(perception)), abs=1e-6)
    assert metrics["sight"]["image_tokens"] == 16 and metrics["sight"]["grey"] > metrics["sight"]["again"] == 0
    assert {row["served_model"] for row in completions} == {"stub-a"} and {row["fingerprint"] for row in completions} == {"stub-1"}
    crossings = read_json(out / "crossings.json")
    assert all(name.startswith("kind:") and " x modality:" in name for name in crossings)
    total = stub.state()["total"]
    again = CliRunner().invoke(cli.main, [*command, "a", "--out", str(out), "--set", "evaluate.runs=3", "--json"])
    assert json.loads(again.output) == metrics
    probes = metrics["sight"]["probes"]  # is it still the same model? Without images, some are one request
    assert 3 * probes < stub.state()["total"] - total <= 4 * probes
    same = CliRunner().invoke(cli.main, ["evaluate", "--compare", str(out), str(tmp_path / "b"), "--json"])
    assert json.loads(same.output)["difference"] == 0  # the stub answers by image, prompt and seed


def test_an_evaluation_without_a_model_is_told():
    refused = CliRunner().invoke(cli.main, ["evaluate", "--base-url", "http://127.0.0.1:1/v1"])
    assert refused.exit_code == 1 and "give --compare with two folders, or --world" in refused.output
