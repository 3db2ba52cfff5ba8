"""Asking many questions: nothing is asked twice, nothing answered is lost, one bad image is one bad row."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from medq_ray.images import encode_png
from medq_ray.model.ask import FEW, ask
from medq_ray.model.cache import Cache, request_key
from medq_ray.model.chat import Choice, Endpoint, EndpointError, Sampling
from medq_ray.schema import COMPLETION, PROMPT

SAMPLING = Sampling(n=2, temperature=0.7)
WAIT = 120.0


def write_prompts(folder: Path, count: int) -> pa.Table:
    """`count` questions, each about an image of its own."""
    rng = np.random.default_rng(0)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)))
    return pa.table(
        {
            "question_id": [f"q{i:03d}" for i in range(count)],
            "uris": [[str(folder / f"{i}.png")] for i in range(count)],
            "prompt": [f"Question {i % 3}?\nA. yes\nB. no" for i in range(count)],
        },
        schema=PROMPT,
    )


def test_what_the_cache_knows_needs_neither_ray_nor_endpoint(tmp_path):
    prompts = write_prompts(tmp_path, 3)
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m", identity="abc")
    cache = Cache(tmp_path / "cache")
    for row in prompts.to_pylist():
        digest = hashlib.sha256(Path(row["uris"][0]).read_bytes()).hexdigest()
        answers = [Choice(row["question_id"], 0.5, 1, "stop"), Choice("B", None, None, "length")]
        cache.put(request_key(endpoint, [digest], row["prompt"], SAMPLING), answers)
    table = ask(prompts.take([2, 0, 1]), endpoint, SAMPLING, tmp_path / "cache", "asking")
    assert table.schema == COMPLETION
    assert table["question_id"].to_pylist() == ["q000", "q000", "q001", "q001", "q002", "q002"]
    assert table["run"].to_pylist() == [0, 1] * 3
    assert table["text"].to_pylist() == ["q000", "B", "q001", "B", "q002", "B"]
    assert table["entropy"].to_pylist() == [0.5, None] * 3 and set(table["error"].to_pylist()) == {""}


def test_no_questions_are_no_rows(tmp_path):
    table = ask(PROMPT.empty_table(), Endpoint("http://127.0.0.1:1/v1", "m"), SAMPLING, tmp_path / "cache", "asking")
    assert table.num_rows == 0 and table.schema == COMPLETION


def test_a_model_is_served_only_when_it_is_asked_something_new(stub, tmp_path):
    prompts, started = write_prompts(tmp_path, 3), []

    def serve() -> str:
        started.append(stub.url)
        return stub.url

    for wanted, starts in ((2, 1), (2, 1), (3, 2)):
        asked = prompts.slice(0, wanted)
        table = ask(asked, Endpoint("http://127.0.0.1:1/v1", "m"), SAMPLING, tmp_path / "cache", "asking", serve=serve)
        assert set(table["error"].to_pylist()) == {""} and len(started) == starts
    assert stub.state()["total"] == 3


@pytest.mark.engine
@pytest.mark.parametrize("count", [20, FEW + 20])  # in this process and by Ray Data
def test_every_question_is_asked_once_and_a_bad_image_is_one_bad_row(ray_local, stub, tmp_path, count):
    prompts = write_prompts(tmp_path, count)
    (tmp_path / "3.png").write_bytes(b"no image")
    (tmp_path / "4.png").unlink()
    twin = prompts.slice(5, 1).set_column(0, "question_id", pa.array(["q999"]))  # the same image and prompt
    prompts = pa.concat_tables([prompts, twin])
    endpoint = Endpoint(stub.url, "m")
    table = ask(prompts, endpoint, SAMPLING, tmp_path / "cache", "asking")
    state = stub.state()
    assert state["total"] == len(state["counts"]) == count - 2  # one is a twin's and two have no image
    rows = table.to_pylist()
    expected = sorted((question, run) for question in prompts["question_id"].to_pylist() for run in (0, 1))
    assert [(row["question_id"], row["run"]) for row in rows] == expected
    failed = {row["question_id"]: row["error"] for row in rows if row["error"]}
    assert set(failed) == {"q003", "q004"} and all(error.startswith("unreadable image: ") for error in failed.values())
    answers = {(row["question_id"], row["run"]): row["text"] for row in rows}
    assert answers["q999", 0] == answers["q005", 0] and answers["q000", 0] in ("A", "B")
    again = ask(prompts, endpoint, SAMPLING, tmp_path / "cache", "asking")
    assert again.equals(table) and stub.state()["total"] == count - 2
    ask(prompts, Endpoint(stub.url, "m", identity="trained anew"), SAMPLING, tmp_path / "cache", "asking")
    assert stub.state()["total"] == 2 * (count - 2)


@pytest.mark.engine
def test_passing_failures_cost_nothing_but_time(ray_local, stub, tmp_path):
    prompts = write_prompts(tmp_path, 10)
    stub.fail(8, 500)
    table = ask(prompts, Endpoint(stub.url, "m", retries=6), SAMPLING, tmp_path / "cache", "asking")
    assert set(table["error"].to_pylist()) == {""} and len(set(table["question_id"].to_pylist())) == 10


@pytest.mark.engine
def test_refusing_some_is_their_loss_and_refusing_all_is_the_endpoints(ray_local, stub, tmp_path):
    prompts = write_prompts(tmp_path, 6)
    stub.fail(100, 400)
    with pytest.raises(EndpointError, match="answered nothing: HTTP 400"):
        ask(prompts, Endpoint(stub.url, "m"), SAMPLING, tmp_path / "cache", "asking")
    stub.fail(0, 400)
    known = ask(prompts, Endpoint(stub.url, "m"), SAMPLING, tmp_path / "known", "asking")
    assert set(known["error"].to_pylist()) == {""}
    stub.fail(100, 400)
    many = write_prompts(tmp_path, 40).slice(6)  # the cache has answers to others
    with pytest.raises(EndpointError, match="answered nothing: HTTP 400"):
        ask(many, Endpoint(stub.url, "m"), SAMPLING, tmp_path / "known", "asking")
    stub.fail(2, 400)
    errors = ask(prompts, Endpoint(stub.url, "m"), SAMPLING, tmp_path / "cache", "asking")["error"].to_pylist()
    assert sum(error != "" for error in errors) == 2 * SAMPLING.n and len(errors) == 6 * SAMPLING.n


@pytest.mark.engine
def test_an_unusable_endpoint_is_one_line_and_answers_until_then_stay(ray_local, stub, tmp_path):
    prompts = write_prompts(tmp_path, 6)
    answered = ask(prompts.slice(0, 3), Endpoint(stub.url, "m"), SAMPLING, tmp_path / "cache", "asking")
    stub.fail(100, 401)
    with pytest.raises(EndpointError) as caught:
        ask(prompts, Endpoint(stub.url, "m"), SAMPLING, tmp_path / "cache", "asking")
    assert "\n" not in str(caught.value) and "HTTP 401; set OPENAI_API_KEY" in str(caught.value)
    stub.fail(0, 401)
    table = ask(prompts, Endpoint(stub.url, "m"), SAMPLING, tmp_path / "cache", "asking")
    assert table.slice(0, 6).equals(answered)
    assert set(stub.state()["answered"].values()) == {1}


RUNNER = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
from medq_ray.model.ask import ask
from medq_ray.model.chat import Endpoint, Sampling
folder, url = Path(sys.argv[1]), sys.argv[2]
prompts, endpoint = pq.read_table(folder / "prompts.parquet"), Endpoint(url, "m", concurrency=4)
table = ask(prompts, endpoint, Sampling(n=2, temperature=0.7), folder / "cache", "asking")
pq.write_table(table, folder / "completions.parquet")
"""


@pytest.mark.engine
@pytest.mark.parametrize("count", [40, FEW + 20])
def test_a_killed_run_asks_nothing_again_that_was_answered(slow_stub, tmp_path, count):
    import pyarrow.parquet as pq

    concurrency = 4
    pq.write_table(write_prompts(tmp_path, count), tmp_path / "prompts.parquet")
    command = [sys.executable, "-c", RUNNER, str(tmp_path), slow_stub.url]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + WAIT
    while (kept := len(Cache(tmp_path / "cache"))) < 8:
        assert time.monotonic() < deadline and killed.poll() is None, "the run never got going"
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert kept < count and not (tmp_path / "completions.parquet").exists()
    kept = settled(tmp_path / "cache")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=WAIT)
    state = slow_stub.state()
    assert len(state["answered"]) == count
    # Only requests that were in flight at the kill, whose answers never arrived, are sent a second time.
    assert state["total"] <= count + concurrency
    assert sum(times > 1 for times in state["counts"].values()) <= count - kept
    table = pq.read_table(tmp_path / "completions.parquet")
    assert table.num_rows == 2 * count and set(table["error"].to_pylist()) == {""}


def settled(folder: Path) -> int:
    """Answers in the cache once the killed run's worker, which outlives its driver by a moment, has stopped writing."""
    before = None
    while (now := len(Cache(folder))) != before:
        before = now
        time.sleep(2.0)
    return now
