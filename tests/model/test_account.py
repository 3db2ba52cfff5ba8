"""Every request is written down; money and rates keep their limits; a kill leaves no expense unknown."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from running import running_stub

from medq_ray.images import encode_png
from medq_ray.model.account import FOLDER, Account, OverBudget, Pace, Tariff, most_prompt_tokens, requests, usage
from medq_ray.model.ask import ask
from medq_ray.model.chat import Client, Endpoint, EndpointError, Sampling
from medq_ray.model.prompts import messages
from medq_ray.schema import PROMPT
from medq_ray.serving import free_port

PRICED = Tariff(input_price=2.5, output_price=10.0)
HELLO = [{"role": "user", "content": "Hi"}]


def prompts(folder: Path, count: int) -> pa.Table:
    path = folder / "image.png"
    path.write_bytes(encode_png(np.zeros((16, 16, 3), np.uint8)))
    rows = [{"question_id": f"q{i:02d}", "uris": [str(path)], "prompt": f"Question {i}?\nA. yes\nB. no"} for i in
            range(count)]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=PROMPT)


def put(stub, folder: Path, count: int, tariff: Tariff, purpose: str = "step: asking", concurrency: int = 4) -> pa.Table:
    endpoint = Endpoint(stub.url, "m", concurrency=concurrency, tariff=tariff)
    return ask(prompts(folder, count), endpoint, Sampling(n=2), folder / "cache", "asking", purpose)


def test_every_request_and_every_answer_from_the_cache_is_written_down(stub, tmp_path):
    table = put(stub, tmp_path, 20, PRICED)
    lines = [line for line in requests(tmp_path / "cache") if line["outcome"] == "answered" and line["prompt_tokens"]]
    assert {line["purpose"] for line in lines} == {"step: asking"} and len(lines) >= 20
    assert sum(line["tokens"] for line in lines) >= sum(table["tokens"].to_pylist())
    for line in lines:
        assert line["money"] == pytest.approx((line["prompt_tokens"] * 2.5 + line["tokens"] * 10) / 1e6)
    before = usage(tmp_path / "cache", "step: ")
    assert (before["cached"], before["unknown"]) == (0, 0) and before["money"] > 0
    assert put(stub, tmp_path, 20, PRICED).equals(table)
    assert usage(tmp_path / "cache", "step: ") == before  # its own answers, as after a kill, are not called cached
    assert put(stub, tmp_path, 20, PRICED, "later: asking").equals(table)
    assert usage(tmp_path / "cache", "later: ") == dict.fromkeys(before, 0) | {"cached": 20}
    assert not any(usage(tmp_path / "cache", "other step: ").values())


def test_the_budget_is_never_passed_and_the_same_command_goes_on_with_more(stub, tmp_path):
    whole = cost_of_all(tmp_path / "other")
    limit = round(whole / 2 + PRICED.cost(1445 + 30, 2 * 48), 4)
    with pytest.raises(EndpointError, match=f"of {limit:g} is spent and another request may cost .*; raise oracle.max_c"):
        put(stub, tmp_path, 60, Tariff(2.5, 10.0, max_cost=limit))
    spent = usage(tmp_path / "cache", "")
    assert 0 < spent["money"] <= limit and spent["unknown"] == 0
    answered = sum(stub.state()["answered"].values())
    table = put(stub, tmp_path, 60, Tariff(2.5, 10.0, max_cost=whole + 1))
    assert set(table["error"].to_pylist()) == {""}
    assert max(stub.state()["answered"].values()) == 1 and sum(stub.state()["answered"].values()) == 60 > answered > 0


def cost_of_all(folder: Path) -> float:
    """What 60 questions cost, asked elsewhere."""
    folder.mkdir()
    with running_stub() as other:
        put(other, folder, 60, PRICED)
    return usage(folder / "cache", "")["money"]


def test_a_budget_of_nothing_asks_nothing(stub, tmp_path):
    with pytest.raises(EndpointError, match="0.0000 of 0 is spent"):
        put(stub, tmp_path, 3, Tariff(2.5, 10.0, max_cost=0))
    assert stub.state()["total"] == 0


def test_what_was_under_way_at_a_kill_counts_with_the_most_it_may_have_cost(tmp_path):
    async def killed() -> None:
        account = Account(tmp_path, PRICED, "step: asking")
        done = await account.admit(HELLO, 100)
        await account.admit(HELLO, 100)
        await account.close(done, (10, 5), 0.1, "answered")

    asyncio.run(killed())
    (path,) = (tmp_path / FOLDER).glob("*.jsonl")
    path.write_text(path.read_text() + '{"id": "torn')
    sums = usage(tmp_path, "step: ")
    worst = PRICED.cost(most_prompt_tokens(HELLO), 100)
    assert (sums["requests"], sums["unknown"]) == (2, 1)
    assert sums["money"] == pytest.approx(PRICED.cost(10, 5) + worst)
    account = Account(tmp_path, Tariff(2.5, 10.0, max_cost=sums["money"] + worst / 2), "step: asking")
    with pytest.raises(OverBudget):
        asyncio.run(account.admit(HELLO, 100))


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "a.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: damaged; delete the file"):
        list(requests(tmp_path))


@pytest.mark.parametrize("tariff", [Tariff(requests_per_minute=600), Tariff(tokens_per_minute=600 * 1600)])
def test_rates_are_kept(stub, tmp_path, tariff):
    """The least that 15 turns can take: no timing of ours, but a law of the limit."""
    began = time.monotonic()
    put(stub, tmp_path, 15, tariff)
    units = 15 - 1 if tariff.requests_per_minute else 14 * (1445 + 2 * 48) / 1600
    assert time.monotonic() - began >= units * 0.1


@pytest.mark.parametrize("per_minute", [0, 600])
def test_whoever_is_told_to_wait_holds_up_those_who_queue_already(per_minute):
    async def turns() -> list[float]:
        pace, began, came = Pace(per_minute), time.monotonic(), []

        async def one() -> None:
            await pace.turn(1)
            came.append(time.monotonic() - began)
            if len(came) == 1:
                pace.hold(0.5)

        await asyncio.gather(*(one() for _ in range(4)))
        return came

    first, *others = asyncio.run(turns())
    assert min(others) >= first + 0.5


def test_who_gives_up_waiting_leaves_the_budget_to_the_others(tmp_path):
    async def crowd() -> None:
        account = Account(tmp_path, Tariff(2.5, 10.0, requests_per_minute=60, max_cost=1.0), "step: asking")
        await account.admit(HELLO, 10)
        waiting = asyncio.create_task(account.admit(HELLO, 10))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert len(account.reserved) == 1

    asyncio.run(crowd())


def test_a_closed_port_costs_nothing_and_an_endpoint_without_counts_the_most(tmp_path):
    async def dead() -> None:
        account = Account(tmp_path, PRICED, "step: asking")
        client = Client(Endpoint(f"http://127.0.0.1:{free_port()}/v1", "m", retries=1), "none", account)
        with pytest.raises(EndpointError):
            await client.complete(HELLO, Sampling())
        await client.close()

    asyncio.run(dead())
    lines = list(requests(tmp_path))
    assert lines and {(line["outcome"], line["money"]) for line in lines} == {("no connection", 0.0)}
    assert 0 < usage(tmp_path, "step: ")["requests"] < len(lines)  # some only looked whether it is alive

    async def silent() -> None:
        account = Account(tmp_path / "silent", PRICED, "step: asking")
        await account.close(await account.admit(HELLO, 100), None, 0.1, "answered")

    asyncio.run(silent())
    assert usage(tmp_path / "silent", "")["money"] == PRICED.cost(2, 100)


def test_no_prompt_is_taken_for_shorter_than_it_can_be():
    content = messages(["data:image/png;base64,aaaa"] * 2, "schärfer?")
    assert most_prompt_tokens(content) == 2 * 1445 + len("schärfer?".encode())
