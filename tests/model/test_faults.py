"""A misbehaving endpoint: every question has one outcome, and it is the answer wherever there is one."""

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from running import running_stub
from stub import DEADLY, FAULTS, fault_of

from medq_ray import config
from medq_ray.images import encode_png, pixel_digest
from medq_ray.model.ask import FEW, ask
from medq_ray.model.asker import CULPRIT
from medq_ray.model.chat import Endpoint, EndpointError, Sampling
from medq_ray.schema import PROMPT

SAMPLING = Sampling(n=3, temperature=0.7)


def prompts(folder: Path, count: int, deadly: tuple[int, ...] = ()) -> tuple[pa.Table, dict[str, str]]:
    """`count` questions about pictures of their own; question id -> the fault that `stub.py --faults` gives it."""
    rows, faults = [], {}
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (112, 112, 3), dtype=np.uint8)
        path = folder / f"{i}.png"
        path.write_bytes(encode_png(pixels))
        text = f"Question {i}?\nA. yes\nB. no\nC. perhaps{DEADLY if i in deadly else ''}"
        rows.append({"question_id": f"q{i:03d}", "uris": [str(path)], "prompt": text})
        faults[f"q{i:03d}"] = fault_of(pixel_digest(pixels), text)
    return pa.Table.from_pylist(rows, schema=PROMPT), faults


@pytest.mark.engine
def test_every_question_has_one_outcome_whatever_the_endpoint_does(ray_local, stub, tmp_path):
    asked, faults = prompts(tmp_path, FEW + 20)
    assert set(faults.values()) == {"", *FAULTS}
    healthy = ask(asked, Endpoint(stub.url, "m"), SAMPLING, tmp_path / "healthy", "asking")
    with running_stub("--faults") as ill:
        endpoint = Endpoint(ill.url, "m", retries=2, timeout=1.0)
        table = ask(asked, endpoint, SAMPLING, tmp_path / "ill", "asking")
        again = ask(asked, endpoint, SAMPLING, tmp_path / "ill", "asking")  # what got no answer gets none again
    assert again.equals(table)
    assert table.select(["question_id", "run"]).equals(healthy.select(["question_id", "run"]))
    for sick, well in zip(table.to_pylist(), healthy.to_pylist(), strict=True):
        fault = faults[sick["question_id"]]
        if fault in ("broken", "long"):
            reason = "HTTP 500 after 3 attempts" if fault == "broken" else "HTTP 400"
            assert sick["error"].startswith(reason) and (sick["text"], sick["entropy"]) == ("", None)
            continue
        assert (sick["error"], sick["text"]) == ("", well["text"])
        assert sick["entropy"] == (None if fault == "silent" else well["entropy"])


@pytest.mark.engine
def test_an_endpoint_that_answers_only_small_talk_is_unusable(ray_local, stub, tmp_path):
    asked, _ = prompts(tmp_path, 60)
    stub.fail(10_000, 500)
    with pytest.raises(EndpointError, match="HTTP 500 after 2 attempts"):
        ask(asked, Endpoint(stub.url, "m", retries=1), SAMPLING, tmp_path / "cache", "asking")
    stub.fail(0, 500)
    assert set(ask(asked, Endpoint(stub.url, "m"), SAMPLING, tmp_path / "cache", "asking")["error"].to_pylist()) == {""}


@pytest.mark.engine
@pytest.mark.parametrize("deadly", [(), (5, 41)])
def test_the_question_that_brings_an_engine_down_is_found_and_the_others_are_answered(ray_local, tmp_path, deadly):
    asked, _ = prompts(tmp_path, FEW + 20 if deadly else 60, deadly)
    with running_stub("--latency", "0.05", "--down", "1.5") as stub:
        endpoint = Endpoint(stub.url, "m", concurrency=16)
        table = ask(asked, endpoint, SAMPLING, tmp_path / "cache", "asking")
        deaths = stub.state()["deaths"]
        again = ask(asked, endpoint, SAMPLING, tmp_path / "cache", "asking")
        assert stub.state()["deaths"] == deaths  # the culprits are known
    errors = {row["question_id"]: row["error"] for row in table.to_pylist() if row["error"]}
    assert errors == {f"q{i:03d}": CULPRIT for i in deadly} and again.equals(table)
    assert deaths <= 8 * len(deadly)  # by halves seven, of sixteen suspects


@pytest.mark.engine
def test_a_culprit_among_the_first_questions_is_found_too(ray_local, tmp_path):
    """Down for longer than all attempts last, before anything was answered."""
    asked, _ = prompts(tmp_path, 12, (0,))
    with running_stub("--latency", "0.3", "--down", "4") as stub:
        endpoint = Endpoint(stub.url, "m", concurrency=12, retries=1)
        table = ask(asked, endpoint, SAMPLING, tmp_path / "cache", "asking")
    errors = {row["question_id"]: row["error"] for row in table.to_pylist() if row["error"]}
    assert errors == {"q000": CULPRIT}


@pytest.mark.engine
def test_an_endpoint_that_stays_down_is_waited_for_and_then_told(ray_local, tmp_path):
    asked, _ = prompts(tmp_path, 40, deadly=(20,))
    with running_stub("--latency", "0.05", "--down", "600") as stub:
        endpoint = Endpoint(stub.url, "m", concurrency=8, patience=1.5)
        with pytest.raises(EndpointError, match="down for 1.5 s; see that it is up, then run the same command again"):
            ask(asked, endpoint, SAMPLING, tmp_path / "cache", "asking")
    with running_stub("--down", "0") as stub:
        table = ask(asked, Endpoint(stub.url, "m"), SAMPLING, tmp_path / "cache", "asking")
        assert 0 < stub.state()["total"] < 40  # the others had their answers
    assert set(table["error"].to_pylist()) == {""}


def victims(app: str) -> list[psutil.Process]:
    """The process of a Serve app's replica, and that of the engine behind it."""
    replica = next(p for p in psutil.process_iter() if f":{app}:" in " ".join(p.cmdline()) and "ray::" in p.cmdline()[0])
    return [replica, next(p for p in replica.children(recursive=True) if "EngineCore" in " ".join(p.cmdline()))]


@pytest.mark.engine
def test_a_run_survives_the_death_of_its_replica_and_of_its_engine(ray_local, tmp_path):
    from medq_ray.model.deploy import serve_checkpoint
    from medq_ray.model.tiny import embedded_checkpoint

    asked, _ = prompts(tmp_path, 400)
    killed = []

    def kill_twice(cache: Path) -> None:
        for which, answers in enumerate((60, 200)):
            while sum(path.read_bytes().count(b"\n") for path in cache.glob("*.jsonl")) < answers:
                time.sleep(0.05)
            process = victims("mortal")[which]
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)

    with serve_checkpoint(embedded_checkpoint(), "mortal", config.Engine()) as url:
        killer = threading.Thread(target=kill_twice, args=(tmp_path / "cache",), daemon=True)
        killer.start()
        endpoint = Endpoint(url, "mortal", concurrency=16)
        table = ask(asked, endpoint, SAMPLING, tmp_path / "cache", "asking")
        killer.join(timeout=10)
    assert len(set(killed)) == 2
    assert Counter(table["question_id"].to_pylist()) == {f"q{i:03d}": SAMPLING.n for i in range(400)}
    assert set(table["error"].to_pylist()) == {""}
    assert all(count > 0 for count in table["image_tokens"].to_pylist())
