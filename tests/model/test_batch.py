"""Batches: whatever the endpoint does, each question has its answer, which is paid once, and no file stays there.

With a real kill: tests/serve_apps/test_oracle_faults.py.
"""

import json
import time

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from batch_stub import BatchStub, running

from medq_ray.images import encode_png
from medq_ray.model import batch as batch_module
from medq_ray.model.account import Tariff, requests
from medq_ray.model.ask import ask
from medq_ray.model.batch import STATES, Batches
from medq_ray.model.cache import Cache
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
    assert {line["outcome"] for line in requests(tmp_path / "cache")} == {"answered"}  # nothing is booked as under way


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
    monkeypatch.setattr(batch_module, "MOST_BYTES", 2.5 * len(lines[0][1]))
    assert len(list(batches(tmp_path).lines(asked))) == 3


@pytest.fixture
def endpoint(monkeypatch) -> Iterator[BatchStub]:
    monkeypatch.setattr(batch_module, "LOOKS", (0.0, 0.3, 0.6))
    with running() as stub:
        yield stub


def ask_five(stub: BatchStub, folder: Path, rows: list[dict], *, batch: int = 100, **tariff) -> pa.Table:
    """Ask all but the unreadable one."""
    prompts = [{"question_id": row["key"], "uris": row["uris"], "prompt": row["prompt"]} for row in rows if row["key"] != "k2"]
    settings = Tariff(2.5, 10.0, batch=batch, batch_price=0.5, **tariff)
    there = Endpoint(stub.url, "m", retries=1, patience=20.0, tariff=settings)
    return ask(pa.Table.from_pylist(prompts, schema=PROMPT), there, SAMPLING, folder / "cache", "asking")


def assert_clean(stub: BatchStub, folder: Path) -> None:
    assert stub.files == {} and not list((folder / "cache" / STATES).iterdir())


def money(folder: Path) -> float:
    return sum(line["money"] for line in requests(folder / "cache"))


def billed(stub: BatchStub, alone: int = 0) -> float:
    """What the endpoint takes, `alone` of its answers at the full price."""
    each = (2.5 * stub.picture_tokens + 10 * 2) / 1e6
    return each * (0.5 * (stub.asked["answered"] - alone) + alone)


def said(capsys: pytest.CaptureFixture) -> str:
    return "".join(capsys.readouterr())


def test_one_batch_is_one_batch(endpoint, asked, tmp_path):
    table = ask_five(endpoint, tmp_path, asked)
    assert table["text"].to_pylist() == ["A"] * 4 and endpoint.asked["POST /chat/completions"] == 0
    assert money(tmp_path) == pytest.approx(billed(endpoint))
    assert_clean(endpoint, tmp_path)


def test_a_batch_whose_making_was_not_heard_of_is_found(endpoint, asked, tmp_path):
    endpoint.lose_makings, endpoint.listed_after = 1, 0.8
    ask_five(endpoint, tmp_path, asked)
    assert len(endpoint.batches) == 1 and money(tmp_path) == pytest.approx(billed(endpoint))
    assert_clean(endpoint, tmp_path)


def test_an_outage_is_sat_out(endpoint, asked, tmp_path):
    endpoint.down_until = time.monotonic() + 4
    assert ask_five(endpoint, tmp_path, asked)["error"].to_pylist() == [""] * 4
    assert len(endpoint.batches) == 1


@pytest.mark.parametrize("path", ["/files", "/batches", "/content"])
def test_a_page_of_maintenance_costs_nothing(endpoint, asked, tmp_path, path):
    endpoint.page, endpoint.pages = path, 1
    with pytest.raises(EndpointError, match="neither file nor batch|nobody can read the answers"):
        ask_five(endpoint, tmp_path, asked)
    table = ask_five(endpoint, tmp_path, asked)
    assert table["text"].to_pylist() == ["A"] * 4 and endpoint.asked["answered"] == 4 and len(endpoint.batches) == 1
    assert_clean(endpoint, tmp_path)


BAD = ["<html>", "[]", "{}", '{"custom_id": "k0", "response": "text"}', '{"custom_id": "stranger", "response": null}',
       '{"custom_id": "x", "response": {"status_code": 200, "body": {}}}', "", '{"custom_id": ',
       '{"custom_id": [], "response": null}', "[" * 100_000, '{"custom_id": "%s", "response": null}']  # fmt: skip
"""The last names the first request that is answered, in each batch."""


def test_lines_that_nobody_can_read_spoil_no_others(endpoint, asked, tmp_path, capsys):
    endpoint.lines, endpoint.after, endpoint.skip = BAD[:-1], BAD[-1:], 1
    table = ask_five(endpoint, tmp_path, asked)
    assert table["text"].to_pylist() == ["A"] * 4
    assert endpoint.asked["POST /chat/completions"] == 2  # a look whether it is there, and the one that was left out
    assert "1 of 4 requests of a batch are not answered (1 lost): asked one by one" in said(capsys)
    assert len(Cache(tmp_path / "cache")) == 4  # and no stranger
    assert money(tmp_path) >= billed(endpoint, alone=2)
    assert_clean(endpoint, tmp_path)


def test_what_an_expired_batch_leaves_is_asked_one_by_one_and_costs_once(endpoint, asked, tmp_path):
    endpoint.status, endpoint.skip = "expired", 3
    ask_five(endpoint, tmp_path, asked)
    assert endpoint.asked["POST /chat/completions"] == 4  # with a look whether it is there
    assert money(tmp_path) == pytest.approx(billed(endpoint, alone=4))


def test_a_failed_batch_says_why_in_one_line_and_costs_nothing(endpoint, asked, tmp_path):
    endpoint.status = "failed"
    with pytest.raises(EndpointError, match="batch-0 failed: too many tokens; mend that") as error:
        ask_five(endpoint, tmp_path, asked)
    assert "\n" not in str(error.value) and money(tmp_path) == 0
    assert_clean(endpoint, tmp_path)


def test_a_batch_that_is_refused_leaves_nothing(endpoint, asked, tmp_path):
    endpoint.unmakable = 400
    with pytest.raises(EndpointError, match="makes no batch"):
        ask_five(endpoint, tmp_path, asked)
    assert money(tmp_path) == 0
    assert_clean(endpoint, tmp_path)


def test_files_are_deleted_by_the_next_command_where_this_one_could_not(endpoint, asked, tmp_path, monkeypatch):
    monkeypatch.setattr("medq_ray.model.chat.BACKOFF", 15.0)  # so that its patience ends at once
    endpoint.undeletable = 503
    assert ask_five(endpoint, tmp_path, asked)["text"].to_pylist() == ["A"] * 4
    assert len(endpoint.files) == 2
    endpoint.undeletable = 0
    ask_five(endpoint, tmp_path, asked)
    assert endpoint.asked["answered"] == 4
    assert_clean(endpoint, tmp_path)


def test_files_that_cannot_be_deleted_are_named(endpoint, asked, tmp_path, capsys):
    endpoint.undeletable = 405
    ask_five(endpoint, tmp_path, asked)
    told = said(capsys)
    assert all(f"{name} has our requests in it" in told for name in endpoint.files) and len(endpoint.files) == 2
    assert not list((tmp_path / "cache" / STATES).iterdir())


def test_the_budget_holds_where_pictures_cost_more_than_anybody_thought(endpoint, asked, tmp_path):
    endpoint.picture_tokens = 40_000
    with pytest.raises(EndpointError, match="raise oracle.max_cost"):
        ask_five(endpoint, tmp_path, asked, max_cost=0.16)  # one alone: 0.1; in a batch 0.05
    assert money(tmp_path) <= 0.16
    table = ask_five(endpoint, tmp_path, asked, max_cost=0.5)
    assert table["error"].to_pylist() == [""] * 4


def test_an_image_that_cannot_be_read_teaches_no_price(endpoint, asked, tmp_path):
    endpoint.picture_tokens = 40_000
    unreadable_first = [asked[2] | {"key": "a"}, *asked]
    with pytest.raises(EndpointError, match="raise oracle.max_cost"):
        ask_five(endpoint, tmp_path, unreadable_first, max_cost=0.16)
    assert money(tmp_path) <= 0.16


STAGES = ("booked", "uploaded", "file", "batch", "kept")
"""Where a kill may hit: before there is a state, before the upload is noted, and after each note."""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("batch", [100, 0])
def test_a_kill_pays_nothing_twice_and_leaves_no_file(endpoint, asked, tmp_path, monkeypatch, stage, batch):
    """The kill is an exception out of the writing of the state, before it (uploaded) or after."""
    written = batch_module.write_json

    class Killed(BaseException):
        pass

    def killing(path, state):
        if stage == "uploaded" and state["file"]:
            raise Killed
        written(path, state)
        if stage in state and state[stage] is not None:
            raise Killed

    def killing_book(self, path, entries):
        booked(self, path, entries)
        if stage == "booked":
            raise Killed

    booked = Batches.book
    monkeypatch.setattr(Batches, "book", killing_book)

    monkeypatch.setattr(batch_module, "write_json", killing)
    with pytest.raises(Killed):
        ask_five(endpoint, tmp_path, asked)
    monkeypatch.setattr(batch_module, "write_json", written)
    monkeypatch.setattr(Batches, "book", booked)
    assert ask_five(endpoint, tmp_path, asked, batch=batch)["text"].to_pylist() == ["A"] * 4
    alone = 0 if batch or stage != "booked" else 5  # never sent, and no longer wanted: one by one, with a look
    assert len(endpoint.batches) == (not alone) and endpoint.asked["answered"] == (alone or 4)
    assert money(tmp_path) == pytest.approx(billed(endpoint, alone))
    assert_clean(endpoint, tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"purpose": "x"'])
def test_a_damaged_state_is_named(endpoint, asked, tmp_path, text):
    path = tmp_path / "cache" / STATES / "b.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"b\.json: damaged .*delete it"):
        ask_five(endpoint, tmp_path, asked)
