"""The client: what it retries, what it gives up on, what it keeps."""

import asyncio
import json
import time

import numpy as np
import pytest

from medq_ray.images import data_url
from medq_ray.model import chat
from medq_ray.model.chat import Cache, Choice, Client, Endpoint, EndpointError, Malformed, Sampling, read_reply
from medq_ray.model.prompts import messages
from medq_ray.serving import free_port

PROMPT = "Is the quality of this MRI image impaired?\nA. Yes\nB. No\nAnswer with the letter."
IMAGE = data_url(np.zeros((8, 8, 3), np.uint8))


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(chat, "BACKOFF", 0.01)


def complete(endpoint: Endpoint, sampling: Sampling = Sampling(n=3), prompt: str = PROMPT) -> chat.Reply:
    async def once() -> chat.Reply:
        client = Client(endpoint)
        try:
            return await client.complete(messages(IMAGE, prompt), sampling)
        finally:
            await client.close()

    return asyncio.run(once())


def test_choices_have_texts_entropies_and_tokens(stub):
    reply = complete(Endpoint(stub.url, "m"), Sampling(n=5))
    assert len(reply.choices) == 5 and reply.prompt_tokens > 16
    for choice in reply.choices:
        assert choice.text in ("A", "B") and choice.tokens == 1 and choice.entropy > 0 and choice.error == ""
    assert reply == complete(Endpoint(stub.url, "m"), Sampling(n=5))


def test_entropy_is_the_mean_negative_logprob_and_absent_without_logprobs(stub):
    scores = {"content": [{"logprob": -1.0}, {"logprob": -2.0}]}
    body = {"choices": [{"message": {"content": "a b"}, "logprobs": scores}]}
    assert read_reply(json.dumps(body), 1).choices[0].entropy == 1.5
    reply = complete(Endpoint(stub.url, "m"), Sampling(n=1, logprobs=False))
    assert reply.choices[0].entropy is None and reply.choices[0].tokens == 1  # tokens then come from the usage


@pytest.mark.parametrize("status", [429, 500, 503, 408, None])
def test_passing_failures_are_retried(stub, status):
    stub.fail(3, status)
    assert len(complete(Endpoint(stub.url, "m", retries=3)).choices) == 3
    assert stub.state()["total"] == 4


def test_retry_after_is_honoured(stub):
    stub.fail(2, 429)  # the stub asks for 0.1 s, ten times the backoff
    started = time.monotonic()
    complete(Endpoint(stub.url, "m", retries=2))
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(("status", "why"), [(429, "HTTP 429"), (500, "HTTP 500"), (None, "no chat completion")])
def test_exhausted_retries_end_in_one_line(stub, status, why):
    stub.fail(9, status)
    with pytest.raises(EndpointError) as caught:
        complete(Endpoint(stub.url, "m", retries=2))
    line = str(caught.value)
    assert "\n" not in line and stub.url in line and why in line and "3 attempts" in line
    assert stub.state()["total"] == 3


def test_a_dead_endpoint_is_named():
    unused_port = free_port()
    with pytest.raises(EndpointError, match=rf"127\.0\.0\.1:{unused_port}/v1.*no connection"):
        complete(Endpoint(f"http://127.0.0.1:{unused_port}/v1", "m", retries=1))


def test_a_slow_endpoint_times_out(slow_stub):
    with pytest.raises(EndpointError, match=r"no answer within 0\.05 s after 2 attempts"):
        complete(Endpoint(slow_stub.url, "m", retries=1, timeout=0.05))


@pytest.mark.parametrize(("status", "advice"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "model name")])
def test_hopeless_failures_are_not_retried(stub, status, advice):
    stub.fail(1, status)
    with pytest.raises(EndpointError, match=rf"HTTP {status}; .*{advice}"):
        complete(Endpoint(stub.url, "m"))
    assert stub.state()["total"] == 1


def test_a_refused_request_is_an_error_of_every_choice(stub):
    stub.fail(1, 400)
    reply = complete(Endpoint(stub.url, "m"))
    assert [choice.error[:8] for choice in reply.choices] == ["HTTP 400"] * 3
    assert all(choice.text == "" and choice.entropy is None for choice in reply.choices)


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"choices": null}', '{"choices": [{}]}', '{"choices": []}', "<p>"])
def test_malformed_bodies_are_told_apart(body):
    with pytest.raises(Malformed):
        read_reply(body, 1)


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


def test_request_keys_differ_where_requests_do():
    endpoint, sampling = Endpoint("http://127.0.0.1:1/v1", "m", identity="a"), Sampling(n=5, temperature=0.7)
    keys = {
        chat.request_key(endpoint, "i", "p", sampling),
        chat.request_key(endpoint, "j", "p", sampling),
        chat.request_key(endpoint, "i", "q", sampling),
        chat.request_key(endpoint, "i", "p", Sampling(n=4, temperature=0.7)),
        chat.request_key(endpoint, "i", "p", Sampling(n=5, temperature=0.7, seed=1)),
        chat.request_key(Endpoint("http://127.0.0.1:1/v1", "m", identity="b"), "i", "p", sampling),
        chat.request_key(Endpoint("http://127.0.0.1:1/v1", "n", identity="a"), "i", "p", sampling),
    }
    assert len(keys) == 7
    moved = Endpoint("http://127.0.0.1:2/v1", "m", identity="a", concurrency=1, retries=0, timeout=1.0)
    assert chat.request_key(moved, "i", "p", sampling) in keys


CHOICES = [Choice("A", 0.25, 1, "stop"), Choice("B", None, None, "length")]


def test_the_cache_returns_what_was_put_to_any_reader(tmp_path):
    cache = Cache(tmp_path / "cache")
    assert cache.get("k") is None
    cache.put("k", CHOICES)
    assert cache.get("k") == CHOICES == Cache(tmp_path / "cache").get("k")
    Cache(tmp_path / "cache").put("l", CHOICES)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # one file for each writer
    assert set(Cache(tmp_path / "cache").answers) == {"k", "l"}


def test_a_torn_last_line_is_ignored_and_other_damage_is_named(tmp_path):
    cache = Cache(tmp_path)
    cache.put("k", CHOICES)
    cache.put("l", CHOICES)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    for cut in range(1, len(whole.splitlines()[1])):
        path.write_text(whole[:-cut])
        assert set(Cache(tmp_path).answers) == {"k"}
    path.write_text("damage\n" + whole)
    with pytest.raises(ValueError, match=rf"{path.name}:1: damaged; delete the file"):
        Cache(tmp_path)


def test_errors_are_never_cached(tmp_path):
    with pytest.raises(AssertionError):
        Cache(tmp_path).put("k", [Choice("", None, None, "", "HTTP 400")])
    assert list(tmp_path.iterdir()) == []
