"""The client: what it retries, what it gives up on, what it keeps."""

import asyncio
import json
import time

import numpy as np
import pytest
from running import running_stub

from medq_ray.images import data_url
from medq_ray.model import chat
from medq_ray.model.chat import (
    Choice, Client, Endpoint, EndpointError, Malformed, Sampling, Unanswered, read_bill, read_reply,
)  # fmt: skip
from medq_ray.model.prompts import messages
from medq_ray.serving import free_port

PROMPT = "Is the quality of this MRI image impaired?\nA. Yes\nB. No\nAnswer with the letter."
IMAGE = data_url(np.zeros((8, 8, 3), np.uint8))


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(chat, "BACKOFF", 0.01)


def complete(endpoint: Endpoint, sampling: Sampling = Sampling(n=3), prompt: str = PROMPT) -> list[Choice]:
    async def once() -> list[Choice]:
        client = Client(endpoint)
        try:
            return await client.complete(messages([IMAGE], prompt), sampling)
        finally:
            await client.close()

    return asyncio.run(once())


def test_choices_have_texts_entropies_and_tokens(stub):
    reply = complete(Endpoint(stub.url, "m"), Sampling(n=5))
    assert len(reply) == 5
    for choice in reply:
        assert choice.text in ("A", "B") and choice.tokens == 1 and choice.entropy > 0 and choice.error == ""
        assert choice.prompt_tokens > 16 == choice.image_tokens and choice.served_model == "stub-m"
        assert choice.fingerprint == "stub-1"
    assert reply == complete(Endpoint(stub.url, "m"), Sampling(n=5))


def test_entropy_is_the_mean_negative_logprob_and_absent_without_logprobs(stub):
    scores = {"content": [{"logprob": -1.0}, {"logprob": -2.0}]}
    body = {"choices": [{"message": {"content": "a b"}, "logprobs": scores}]}
    assert read_reply(json.dumps(body))[0].entropy == 1.5 and read_reply(json.dumps(body))[0].logprobs == [-1.0, -2.0]
    reply = complete(Endpoint(stub.url, "m"), Sampling(n=1, logprobs=False))
    assert reply[0].entropy is reply[0].logprobs is None and reply[0].tokens == 1  # tokens then come from the usage


@pytest.mark.parametrize("status", [429, 500, 503, 408, None])
def test_passing_failures_are_retried(stub, status):
    stub.fail(3, status)
    assert len(complete(Endpoint(stub.url, "m", retries=3))) == 3
    assert stub.state()["total"] == 4


def test_retry_after_is_honoured(stub):
    stub.fail(2, 429)  # the stub asks for 0.1 s, ten times the backoff
    started = time.monotonic()
    complete(Endpoint(stub.url, "m", retries=2))
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(("status", "why"), [(429, "HTTP 429"), (500, "HTTP 500"), (None, "no chat completion")])
def test_exhausted_retries_end_in_one_line(stub, status, why):
    stub.fail(9, status)
    limited = status == 429  # concerns every question, the others this one
    with pytest.raises(EndpointError if limited else Unanswered) as caught:
        complete(Endpoint(stub.url, "m", retries=2))
    line = str(caught.value)
    assert "\n" not in line and why in line and "after 3 attempts" in line
    assert not limited or (stub.url in line and "engine.concurrency" in line)
    assert stub.state()["total"] == 3


def test_a_dead_endpoint_is_named():
    unused_port = free_port()
    with pytest.raises(EndpointError, match=rf"127\.0\.0\.1:{unused_port}/v1.*no connection"):
        complete(Endpoint(f"http://127.0.0.1:{unused_port}/v1", "m", retries=1))


def test_a_slow_endpoint_times_out():
    with running_stub("--latency", "3") as slow:
        with pytest.raises(Unanswered, match=r"no answer within 0\.3 s after 2 attempts"):
            complete(Endpoint(slow.url, "m", retries=1, timeout=0.3))


def test_what_is_paid_for_is_read_where_the_endpoint_says_it():
    choice = {"index": 0, "message": {"content": "A"}, "logprobs": {"content": [{"logprob": -1.0}]}}
    usage = {"prompt_tokens": 100, "completion_tokens": 700}  # thoughts that nobody sees
    assert read_bill(json.dumps({"choices": [choice], "usage": usage}))[1] == (100, 700)
    for part in ({}, {"prompt_tokens": 100}, {"completion_tokens": 7}):
        assert read_bill(json.dumps({"choices": [choice], "usage": part}))[1] is None


@pytest.mark.parametrize(("status", "advice"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "model name")])
def test_hopeless_failures_are_not_retried(stub, status, advice):
    stub.fail(1, status)
    with pytest.raises(EndpointError, match=rf"HTTP {status}; .*{advice}"):
        complete(Endpoint(stub.url, "m"))
    assert stub.state()["total"] == 1


def test_a_refused_request_is_an_error_of_every_choice(stub):
    stub.fail(1, 400)
    reply = complete(Endpoint(stub.url, "m"))
    assert [choice.error[:8] for choice in reply] == ["HTTP 400"] * 3
    assert all(choice.text == "" and choice.entropy is None for choice in reply)


def test_what_was_given_before_a_refusal_is_kept(stub, monkeypatch):
    """An endpoint that gives one choice at a time and refuses from the second on."""
    choice = Choice("A")

    async def answer(self, messages, sampling, key):
        return [choice] if sampling.n == 3 else [Choice("", error="HTTP 400: enough")]

    monkeypatch.setattr(Client, "_answer", answer)
    reply = complete(Endpoint(stub.url, "m"))
    assert [choice.error for choice in reply] == ["", "HTTP 400: enough", "HTTP 400: enough"]


def test_what_no_table_can_hold_is_made_legible_or_refused():
    """Half an emoji, a list for a text, a count that is none: none of it may reach the cache."""
    half = {"choices": [{"message": {"content": "good \ud83d"}}], "usage": {"prompt_tokens": "many"}, "model": "m\udc00"}
    (choice,) = read_reply(json.dumps(half))
    assert (choice.text, choice.prompt_tokens, choice.served_model) == ("good ?", None, "m?")
    with pytest.raises(Malformed):
        read_reply(json.dumps({"choices": [{"message": {"content": [{"type": "text", "text": "A"}]}}]}))


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"choices": null}', '{"choices": [{}]}', '{"choices": []}', "<p>"])
def test_malformed_bodies_are_told_apart(body):
    with pytest.raises(Malformed):
        read_reply(body)


def test_the_key_is_sent_and_never_shown(stub, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    caplog.set_level("DEBUG")
    endpoint = Endpoint(stub.url, "m", retries=0)
    stub.fail(1, 401)
    with pytest.raises(EndpointError) as caught:
        complete(endpoint)
    assert "sk-secret" not in caplog.text + repr(endpoint) + str(caught.value)
    assert stub.state()["keys"] == ["Bearer sk-secret"]


def test_the_oracles_key_is_not_sent_to_the_model(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-oracle")
    monkeypatch.setenv("ENGINE_API_KEY", "sk-engine")
    assert Endpoint("https://a.example/v1", "m").key() == "sk-oracle"
    assert Endpoint("https://b.example/v1", "m", key_from="ENGINE_API_KEY").key() == "sk-engine"


def test_a_remote_endpoint_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EndpointError, match="set OPENAI_API_KEY"):
        Client(Endpoint("https://models.example.org/v1", "m"))


FORM = json.dumps({"name": "n", "schema": {"type": "object"}})


def test_a_form_is_asked_for_and_done_without_where_there_is_none(stub):
    async def twice(url: str) -> list[Choice]:
        client = Client(Endpoint(url, "m", retries=1))
        try:
            found = [await client.complete(messages([IMAGE], PROMPT), Sampling(form=FORM)) for _ in range(2)]
        finally:
            await client.close()
        assert found[0] == found[1]
        return found[0]

    async def at_once(url: str) -> list[Choice]:
        client = Client(Endpoint(url, "m", retries=0))
        asked = [client.complete(messages([IMAGE], f"{PROMPT}{i}"), Sampling(form=FORM)) for i in range(8)]
        try:
            return [choice for choices in await asyncio.gather(*asked) for choice in choices]
        finally:
            await client.close()

    plain = complete(Endpoint(stub.url, "m"), Sampling())
    assert asyncio.run(twice(stub.url)) == plain and stub.state()["forms"] == 2
    with running_stub("--formless") as formless:
        assert asyncio.run(twice(formless.url)) == plain and formless.state()["forms"] == 1  # and never again
        assert [choice.error for choice in asyncio.run(at_once(formless.url))] == [""] * 8
