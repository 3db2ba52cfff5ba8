"""The simulated oracle over HTTP: the OpenAI protocol, injected failures, and its place beside other Serve apps."""

import numpy as np
import pytest

from medq_ray import config, images, questions
from medq_ray.artifacts import write_table
from medq_ray.model.prompts import messages, render
from medq_ray.schema import DEGRADATIONS, TRUTH
from medq_ray.synthetic.answers import MODEL, REFUSAL
from medq_ray.synthetic.truth import gold, load_truth

pytestmark = pytest.mark.engine
IMAGES = 24


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (56, 56, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world folder with the truth of IMAGES noise pictures."""
    folder = tmp_path_factory.mktemp("world")
    rows = [
        dict.fromkeys(TRUTH.names, "") | {"image_id": images.pixel_digest(picture(i)), "modality": "ct",
                                          "degradation": DEGRADATIONS["ct"][i % 5], "severity": "mild"}
        for i in range(IMAGES)
    ]  # fmt: skip
    write_table(folder / "truth.parquet", rows, TRUTH)
    return folder


@pytest.fixture(scope="module")
def address(ray_local, world):
    """Base URL of an oracle that makes no mistakes, but fails at half of the first requests."""
    from medq_ray.synthetic.oracle import serve_oracle

    faultless = config.Oracle(edit_rate=0, reject_rate=0, failure_rate=0.5)
    with serve_oracle(world, faultless, seed=0) as url:
        yield url


def how_question() -> dict:
    text, options = questions.how("ct", True, np.random.default_rng(0))
    return {"kind": "how", "text": text, "options": options}


def request(index: int, **more) -> dict:
    question = how_question()
    prompt = render(question["text"], question["options"])
    return {"model": MODEL, "messages": messages([images.data_url(picture(index))], prompt), **more}


def persist(client, url: str, body: dict):
    """(answer, statuses before it) of a request that is repeated until it succeeds."""
    statuses = []
    while True:
        reply = client.post(f"{url}/chat/completions", json=body)
        if reply.status_code not in (429, 500, 503) and not reply.text.startswith("<html>"):
            return reply, statuses
        assert reply.status_code == 200 or reply.headers["retry-after"] == "0"
        statuses.append(reply.status_code)


@pytest.fixture(scope="module")
def client():
    import httpx

    with httpx.Client(timeout=60, trust_env=False) as client:
        yield client


def test_answers_are_right_marked_and_repeatable_after_at_most_one_failure(address, client, world):
    truth, failures = load_truth(world), []
    for index in range(IMAGES):
        reply, statuses = persist(client, address, request(index, n=2, logprobs=True, temperature=0))
        body = reply.json()
        assert reply.status_code == 200 and len(statuses) <= 1
        assert body["simulated"] is True and body["system_fingerprint"] == "simulated" and body["model"] == MODEL
        right = gold(how_question(), truth[images.pixel_digest(picture(index))])
        assert [choice["message"]["content"] for choice in body["choices"]] == [right, right]
        assert body["choices"][0]["logprobs"]["content"][0]["logprob"] < 0
        assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
        again, no_more = persist(client, address, request(index, n=2, logprobs=True, temperature=0))
        assert again.json()["choices"] == body["choices"] and no_more == []
        failures += statuses
    assert set(failures) == {429, 500, 503, 200}


def test_an_unknown_image_is_refused_with_an_answer(address, client):
    reply, _ = persist(client, address, request(10_000))
    assert reply.json()["choices"][0]["message"]["content"] == REFUSAL


def test_bad_requests_get_errors_of_the_protocol(address, client):
    other = client.post(f"{address}/chat/completions", json=request(0) | {"model": "gpt-4o"})
    assert other.status_code == 404 and "simulated-oracle" in other.json()["error"]["message"]
    for bad in ({"messages": []}, {"messages": messages(["data:image/png;base64,AAAA"], "Describe.")},
                {"messages": [{"role": "user", "content": "no image"}]}):  # fmt: skip
        reply = client.post(f"{address}/chat/completions", json={"model": MODEL} | bad)
        assert reply.status_code == 400 and reply.json()["error"]["message"]
    assert [model["id"] for model in client.get(f"{address}/models").json()["data"]] == [MODEL]


def test_apps_share_one_serve_and_leave_it_alone(address, client, world):
    from medq_ray.serving import running_app, start_serve
    from serve_apps.oracle import build_app

    second = build_app({"world": str(world), "edit_rate": "0.1"})
    with running_app(second, name="second", route_prefix="/second") as url:
        assert url.removesuffix("/second") == address.removesuffix("/oracle/v1") == start_serve()
        assert client.get(f"{url}/v1/models").status_code == 200
    assert client.get(f"{url}/v1/models").status_code == 404
    assert client.get(f"{address}/models").status_code == 200
    with pytest.raises(ValueError, match=r"engine\.port=1: Ray Serve already listens on"):
        start_serve(1)


def test_builder_names_bad_arguments(world):
    from serve_apps.oracle import build_app

    for bad in ({}, {"world": str(world), "edit_rate": 2}, {"world": str(world), "wrong": 1}):
        with pytest.raises(ValueError, match=r"world|edit_rate|wrong"):
            build_app(bad)


def test_a_world_without_truth_fails_before_anything_starts(ray_local, tmp_path):
    from medq_ray.synthetic.oracle import serve_oracle

    with pytest.raises(ValueError, match=r"truth\.parquet"), serve_oracle(tmp_path, config.Oracle(), seed=0):
        pass
