"""A release in miniature through the whole benchmark: every number again from the raw answers."""

import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from release import write_release

from medq_ray import cli
from medq_ray.artifacts import read_json
from medq_ray.evaluate.bench import Protocol, bench, column_map, models_of, prompts_of
from medq_ray.evaluate.medqbench import read_release
from medq_ray.judging.wording import OWN
from medq_ray.model.chat import Endpoint, EndpointError
from medq_ray.schema import BENCH_QUESTION

GOLD = {"5": "B", "6": "A", "7": "C", "8": "D", "9": "C", "10": "D", "11": "1.0", "14": "", "11+2": "B"}
"""Index -> answer of the fixture's perception rows that can be used, converted by hand."""
KIND = {"5": "yes_no", "6": "what", "7": "how", "8": "what", "9": "what", "10": "what", "11": "what", "14": "yes_no", "11+2": "how"}


def letter(reply: str) -> str:
    """The official reading written differently: one pass over tokens instead of rules."""
    text = reply.strip()
    upper = text.upper()
    if upper in list("ABCD"):
        return upper
    if len(upper) > 1 and upper[0] in "ABCD" and (upper[1] in ".)" or upper[1].isspace() or re.match(r"\s*[-:]", upper[1:])):
        return upper[0]
    alone = [part for part in re.split("[^A-Z]+", upper) if part in list("ABCD")]
    return alone[0] if alone else text


def points(reply: str) -> float | None:
    """A score in one of the stub judge's replies."""
    number = re.search(r'(?:Score: |"score": |^)([012])', reply)
    return float(number[1]) if number else None


def recomputed(folder: Path) -> dict:
    """Perception and judged numbers of a model's folder, from completions and replies alone."""
    runs = defaultdict(list)
    for row in pq.read_table(folder / "completions.parquet").to_pylist():
        task, _, index = row["question_id"].partition("-")
        if task == "perception":
            runs[index].append(not row["error"] and letter(row["text"]) == GOLD[index])
    shares = {index: sum(own) / len(own) for index, own in runs.items()}
    kinds = defaultdict(list)
    for index, share in shares.items():
        kinds[KIND[index]].append(share)
    scores = defaultdict(lambda: defaultdict(list))
    for row in pq.read_table(folder / "judgements.parquet").to_pylist():
        scores[row["task"]][row["axis"]].append(points(row["reply"]))
    means = {
        task: {axis: sum(filter(None, own)) / max(1, sum(value is not None for value in own)) for axis, own in axes.items()}
        for task, axes in scores.items()
    }
    missing = sum(value is None for axes in scores.values() for own in axes.values() for value in own)
    return {"accuracy": sum(shares.values()) / len(shares), "n": len(shares), "means": means, "missing": missing,
            "by_kind": {kind: sum(own) / len(own) for kind, own in kinds.items()}}  # fmt: skip


@pytest.fixture
def release(tmp_path):
    write_release(tmp_path / "data")
    return read_release(tmp_path / "data", "test", tmp_path / "images")


@pytest.mark.engine
def test_the_served_model_scores_what_its_raw_answers_score(vlm_endpoint, stub, release, tmp_path):
    model, judge = Endpoint(vlm_endpoint, "base"), Endpoint(stub.url, "gpt-4o")
    protocol = Protocol(OWN, runs=3, temperature=0.7, max_tokens=24)
    (result,) = bench(tmp_path / "out", release, [model], judge, protocol)
    again = recomputed(tmp_path / "out" / "base")
    for row in pq.read_table(tmp_path / "out" / "base" / "completions.parquet").to_pylist():
        assert len(row["logprobs"]) == row["tokens"] and row["entropy"] == pytest.approx(-fmean(row["logprobs"]), abs=1e-5)
    assert result["perception"]["n"] == again["n"] == len(GOLD) and result["failed"] == 0
    assert result["perception"]["accuracy"] == pytest.approx(again["accuracy"], abs=1e-6)
    assert {kind: row["accuracy"] for kind, row in result["perception"]["by_kind"].items()} == pytest.approx(
        again["by_kind"], abs=1e-6
    )
    for task in ("description", "comparison"):
        assert {axis: result[task][axis]["mean"] for axis in again["means"][task]} == pytest.approx(
            again["means"][task], abs=1e-6
        )
        assert result[task]["overall"]["sum"] == pytest.approx(sum(again["means"][task].values()), abs=1e-5)
        assert result[task]["wording"] == "own wording"
    judged = [result[task][axis] for task in ("description", "comparison") for axis in again["means"][task]]
    assert sum(axis["missing"] for axis in judged) == again["missing"]
    completions = pq.read_table(tmp_path / "out" / "base" / "completions.parquet")
    assert min(completions["image_tokens"].to_pylist()) > 0
    assert set(completions["served_model"].to_pylist()) == {"base"} and set(completions["temperature"].to_pylist()) == {0.7}
    assert bench(tmp_path / "out", release, [model], judge, protocol) == [result]
    shown = (tmp_path / "out" / "table.txt").read_text()
    assert "InternVL3-8B + Engine 10k" in shown and "> base" in shown and "own wording" in shown
    assert read_json(tmp_path / "out" / "result.json")["results"] == [json.loads(json.dumps(result))]


@pytest.mark.engine
@pytest.mark.parametrize("blindness", ["drops", "ignores"])
def test_a_blind_endpoint_gets_no_score(ray_local, release, tmp_path, blindness):
    from running import running_stub

    with running_stub("--blind", blindness) as blind, pytest.raises(EndpointError, match="does not (see|look at) images"):
        bench(tmp_path / "out", release, [Endpoint(blind.url, "m")], None, Protocol(OWN))
    assert not list((tmp_path / "out").rglob("result.json"))


@pytest.mark.engine
def test_the_command_runs_several_models_and_goes_on_where_it_was(ray_local, stub, tmp_path):
    write_release(tmp_path / "data")
    (tmp_path / "models.yaml").write_text("".join(f"- {{model: {name}, base_url: '{stub.url}'}}\n" for name in ("a/1", "b")))
    command = ["bench", "medqbench", "--data", str(tmp_path / "data"), "--models", str(tmp_path / "models.yaml"),
               "--judge-url", stub.url, "--rounds", "2", "--out", str(tmp_path / "out")]  # fmt: skip
    shown = CliRunner().invoke(cli.main, command)
    assert shown.exit_code == 0, shown.output
    assert "> a/1" in shown.output and "> b" in shown.output and "GPT-5" in shown.output
    total = stub.state()["total"]
    assert CliRunner().invoke(cli.main, command).output.splitlines()[-1] == shown.output.splitlines()[-1]
    probes = sum(read_json(tmp_path / "out" / name / "result.json")["sight"]["probes"] for name in ("a-1", "b"))
    assert 3 * probes < stub.state()["total"] - total <= 4 * probes  # are they still the same models?
    found = read_json(tmp_path / "out" / "result.json")
    assert [row["model"] for row in found["results"]] == ["a/1", "b"] and len(found["ranks"]) == 2
    assert (tmp_path / "out" / "a-1" / "scores.parquet").exists()


def test_absent_options_are_not_shown_and_letters_keep_their_places(release):
    questions = release.tables["perception"]
    prompts = dict(zip(questions["question_id"].to_pylist(), prompts_of(questions, "MedQ-Bench", OWN)["prompt"].to_pylist(), strict=True))
    assert "A. Blur\nC. Bubbles\n" in prompts["perception-9"] and "B. " not in prompts["perception-9"]
    pairs = prompts_of(release.tables["comparison"], "MedQ-Bench", OWN).to_pylist()
    assert all(len(row["uris"]) == 2 for row in pairs)
    assert questions.schema == BENCH_QUESTION


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "expected a YAML list"), ("[]", "expected one or more models"), ("a: b", "expected a YAML list"), ("- {model: m}", "expected a YAML list"),
     ("- {model: m, base_url: u, colour: red}", "expected a YAML list"), (":", "expected a YAML list|expected one or more"),
     ("- {model: m, base_url: 'http://127.0.0.1:1/v1'}\n- {model: m, base_url: 'http://127.0.0.1:2/v1'}", "different names")],
)  # fmt: skip
def test_a_list_of_models_that_is_none_is_told(tmp_path, text, complaint):
    (tmp_path / "models.yaml").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        models_of(None, None, tmp_path / "models.yaml", concurrency=8)


def test_options_that_do_not_go_together_are_told():
    for options in ((None, None, None), ("http://127.0.0.1:1/v1", None, None), ("u", "m", Path("f"))):
        with pytest.raises(ValueError, match="give --base-url and --model, or --models"):
            models_of(*options, concurrency=8)
    assert column_map(["severity=level"]) == {"severity": "level"}
    with pytest.raises(ValueError, match="expected OURS=THEIRS"):
        column_map(["severity"])


def test_a_copy_of_the_evaluator_without_a_releases_prompt_is_told(release):
    old = replace(OWN, mcq={"MedQ-Deg": "{question}"})
    with pytest.raises(ValueError, match="has no prompt of MedQ-Bench"):
        prompts_of(release.tables["perception"], "MedQ-Bench", old)


def test_repeating_a_greedy_answer_is_warned_about():
    assert Protocol(OWN).warnings() == Protocol(OWN, runs=3, temperature=0.5).warnings() == []
    (runs,) = Protocol(OWN, runs=3).warnings()
    (rounds,) = Protocol(OWN, rounds=2, temperature=0.5).warnings()
    assert "3 runs at temperature 0" in runs and "2 judge rounds at temperature 0" in rounds
