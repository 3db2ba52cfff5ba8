"""An endpoint without batches says so, and money that a batch could cost is never spent in advance twice.

Whole batches, and what a kill leaves of them: tests/serve_apps/test_oracle_faults.py.
"""

import asyncio
import json

import numpy as np
import pyarrow as pa
import pytest

from medq_ray.images import encode_png
from medq_ray.model import batch
from medq_ray.model.account import Tariff, requests
from medq_ray.model.ask import ask
from medq_ray.model.batch import STATES, Batches
from medq_ray.model.chat import Endpoint, EndpointError, Sampling
from medq_ray.schema import PROMPT

SAMPLING = Sampling(max_tokens=10)


@pytest.fixture
def asked(tmp_path) -> list[dict]:
    """Five requests, of which the third has an image that cannot be read."""
    rows = []
    for i in range(5):
        path = tmp_path / f"{i}.png"
        noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        path.write_bytes(b"no picture" if i == 2 else encode_png(noise))
        rows.append({"key": f"k{i}", "uris": [str(path)], "prompt": "Is it?"})
    return rows


def batches(folder, **tariff) -> Batches:
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", tariff=Tariff(2.5, 10.0, batch=100, batch_price=0.5, **tariff))
    return Batches(endpoint, SAMPLING, folder / "cache", "asking", lambda count: None)


def test_an_endpoint_without_batches_says_so_in_one_line(stub, asked, tmp_path):
    prompts = pa.Table.from_pylist([{"question_id": row["key"], **row} for row in asked[:1]], schema=PROMPT)
    endpoint = Endpoint(stub.url, "m", retries=0, tariff=Tariff(batch=10))
    with pytest.raises(EndpointError, match=r"uploads no batch \(HTTP 404.*set oracle.batch=0") as error:
        ask(prompts, endpoint, SAMPLING, tmp_path / "cache", "asking")
    assert "\n" not in str(error.value)
    answered = ask(prompts, Endpoint(stub.url, "m"), SAMPLING, tmp_path / "cache", "asking")
    assert answered["error"].to_pylist() == [""]


def test_a_batch_holds_what_the_budget_and_its_size_allow(asked, tmp_path, monkeypatch):
    lines = list(batches(tmp_path).lines(asked))
    assert [key for key, _, _ in lines] == [f"k{i}" for i in range(5)]
    assert [bool(line) for _, line, _ in lines] == [True, True, False, True, True]  # one by one it is told why
    one = lines[0][2]
    assert one == pytest.approx(0.5 * (2.5 * (1445 + len("Is it?")) + 10 * 10) / 1e6)
    assert json.loads(lines[0][1])["custom_id"] == "k0" and json.loads(lines[0][1])["body"]["max_tokens"] == 10
    assert len(list(batches(tmp_path, max_cost=2.5 * one).lines(asked))) == 3  # two, and the one that costs nothing
    with pytest.raises(EndpointError, match="raise oracle.max_cost"):
        list(batches(tmp_path, max_cost=0.5 * one).lines(asked))
    monkeypatch.setattr(batch, "MOST_BYTES", 2.5 * len(lines[0][1]))
    assert len(list(batches(tmp_path).lines(asked))) == 3


def test_a_kill_before_the_upload_costs_nothing(asked, tmp_path):
    ours = batches(tmp_path)
    path = ours.folder / STATES / "b.json"
    ours.note(path, {"purpose": "asking", "at": 0.0, "most": {"k0": 0.25}, "file": None, "batch": None})
    assert [line["money"] for line in requests(ours.folder)] == [0.25]  # until somebody knows better
    asyncio.run(batches(tmp_path).run([]))
    assert list(requests(ours.folder)) == [] and list((ours.folder / STATES).iterdir()) == []


def test_answers_are_kept_once_however_often_they_are_collected(tmp_path):
    ours = batches(tmp_path)
    usage = {"prompt_tokens": 100, "completion_tokens": 2}
    reply = {"choices": [{"message": {"content": "A"}, "finish_reason": "stop"}], "usage": usage, "model": "m"}
    lines = [{"custom_id": "k0", "response": {"status_code": 200, "body": reply}},
             {"custom_id": "k1", "response": {"status_code": 429, "body": {}}},
             {"custom_id": "k2", "response": None, "error": {"code": "batch_expired"}},
             {"custom_id": "k3", "response": {"status_code": 200, "body": {"choices": []}}}]  # fmt: skip
    state = {"purpose": "asking", "at": 0.0, "most": dict.fromkeys(("k0", "k1", "k2", "k3"), 0.5)}
    for _ in range(2):  # killed after the first time, before the state was gone
        path = ours.folder / STATES / "b.json"
        ours.note(path, state)
        ours.keep(path, state, lines, "expired")
    booked = {line["outcome"]: line["money"] for line in requests(ours.folder)}
    assert booked == {"answered": pytest.approx(0.5 * (2.5 * 100 + 10 * 2) / 1e6), "HTTP 429": 0.0, "expired": 0.0,
                      "no choices": 0.5}  # fmt: skip
    assert len(ours.cache) == 1 and ours.cache.get("k0")[0].text == "A"
