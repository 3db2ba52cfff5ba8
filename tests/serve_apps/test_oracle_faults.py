"""An oracle in trouble, or asked in batches: no question is lost, and none is paid twice, whatever happens."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medq_ray import config, images, questions
from medq_ray.artifacts import write_table
from medq_ray.model.account import requests
from medq_ray.model.cache import Cache
from medq_ray.model.prompts import render
from medq_ray.schema import DEGRADATIONS, PROMPT, TRUTH
from medq_ray.synthetic.truth import gold, load_truth

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
PICTURES, EACH = 24, 12
OUTAGE = 20.0
"""Seconds; more than the retries of a request take, which wait for 3.5 seconds at most."""
WAIT = 240
RUNNER = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
import ray
from medq_ray.model.account import Tariff
from medq_ray.model.ask import ask
from medq_ray.model.chat import Endpoint, EndpointError, Sampling
folder, url, budget, batch = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
tariff = Tariff(2.5, 10.0, max_cost=budget, batch=batch, batch_price=0.5)
endpoint = Endpoint(url, "simulated-oracle", concurrency=8, retries=3, timeout=2.0, patience=120.0, tariff=tariff)
try:
    table = ask(pq.read_table(folder / "prompts.parquet"), endpoint, Sampling(logprobs=False), folder / "cache", "asking")
except EndpointError as error:
    sys.exit(str(error))
pq.write_table(table, folder / "completions.parquet")
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A world of noise pictures with its truth, and questions about them."""
    rows, asked = [], []
    for i in range(PICTURES):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        name = images.pixel_digest(pixels)
        (tmp_path / f"{i}.png").write_bytes(images.encode_png(pixels))
        rows.append(dict.fromkeys(TRUTH.names, "") | {"image_id": name, "modality": "ct", "severity": "mild",
                                                      "degradation": DEGRADATIONS["ct"][i % 5]})  # fmt: skip
        for text, options in distinct():
            asked.append({"question_id": f"{name}|{len(asked):03d}", "uris": [str(tmp_path / f"{i}.png")],
                          "prompt": render(text, options)})  # fmt: skip
    write_table(tmp_path / "truth.parquet", rows, TRUTH)
    pq.write_table(pa.Table.from_pylist(asked, schema=PROMPT), tmp_path / "prompts.parquet")
    return tmp_path


def distinct() -> list[tuple[str, list[str]]]:
    """EACH questions that differ in the order of their options."""
    orders = {tuple(questions.what("ct", DEGRADATIONS["ct"], np.random.default_rng(i))[1]) for i in range(40)}
    text = questions.what("ct", DEGRADATIONS["ct"], np.random.default_rng(0))[0]
    return [(text, list(options)) for options in sorted(orders)[:EACH]]


def command(folder: Path, url: str, budget: float, batch: int = 0) -> list[str]:
    return [sys.executable, "-c", RUNNER, str(folder), url, str(budget), str(batch)]


def assert_all_right(folder: Path) -> None:
    """Every question has the one right answer."""
    truth, prompts = load_truth(folder), {}
    for row in pq.read_table(folder / "prompts.parquet").to_pylist():
        options = [line[3:] for line in row["prompt"].splitlines()[1:-1]]
        prompts[row["question_id"]] = {"kind": "what", "text": row["prompt"].splitlines()[0], "options": options}
    table = pq.read_table(folder / "completions.parquet").to_pylist()
    assert len(table) == PICTURES * EACH and {row["error"] for row in table} == {""}
    for row in table:
        assert row["text"] == gold(prompts[row["question_id"]], truth[row["question_id"].partition("|")[0]])


def read_json(url: str) -> dict:
    with urllib.request.urlopen(url) as response:
        return json.load(response)


def test_faults_an_outage_a_kill_and_an_empty_purse_lose_nothing_and_pay_nothing_twice(ray_local, folder):
    from medq_ray.synthetic.oracle import serve_oracle

    ill = config.Oracle(edit_rate=0, reject_rate=0, failure_rate=0.3, latency=0.05)
    with serve_oracle(folder, ill, seed=0, app="ill", outage_after=200, outage_seconds=OUTAGE) as url:
        short = subprocess.run(command(folder, url, 0.03), capture_output=True, text=True, timeout=WAIT, check=False)
        assert short.returncode == 1 and "of 0.03 is spent" in short.stderr and "raise oracle.max_cost" in short.stderr
        paid = sum(line["money"] for line in requests(folder / "cache"))
        stopped = len(Cache(folder / "cache"))
        assert paid <= 0.03 and 5 < stopped < PICTURES * EACH

        killed = subprocess.Popen(command(folder, url, 9), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + WAIT
        while len(Cache(folder / "cache")) < max(100, stopped + 20):
            assert time.monotonic() < deadline and killed.poll() is None, "the run never got going"
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        time.sleep(3)  # its worker outlives it by a moment
        assert len(Cache(folder / "cache")) < PICTURES * EACH

        began = time.monotonic()
        subprocess.run(command(folder, url, 9), check=True, stdout=subprocess.DEVNULL, timeout=WAIT)
        assert time.monotonic() - began > OUTAGE - 5  # it sat out the outage
        used = read_json(f"{url}/usage")

    assert_all_right(folder)
    lines = list(requests(folder / "cache"))
    outcome = Counter(line["outcome"] for line in lines)
    assert used["billed"] == PICTURES * EACH  # each answer was paid once
    assert outcome["answered"] >= PICTURES * EACH and outcome["unknown"] <= 8
    assert outcome["answered"] <= used["answered"] <= outcome["answered"] + outcome["lost"] + outcome["unknown"]
    money = (2.5 * used["prompt_tokens"] + 10 * used["tokens"]) / 1e6
    assert sum(line["money"] for line in lines) >= money  # our book never says less than the oracle's
    assert {"HTTP 429", "HTTP 500", "HTTP 503", "lost"} <= set(outcome)


def test_a_batch_that_a_kill_leaves_behind_is_waited_for_and_not_paid_again(ray_local, folder):
    from medq_ray.synthetic.oracle import serve_oracle

    ill = config.Oracle(edit_rate=0, reject_rate=0, failure_rate=0.3, latency=0.02)
    with serve_oracle(folder, ill, seed=0, app="wholesale") as url:
        short = subprocess.run(command(folder, url, 0.0001, 100), capture_output=True, text=True, timeout=WAIT)
        assert short.returncode == 1 and "of 0.0001 is spent" in short.stderr
        assert read_json(f"{url}/batches")["data"] == []

        for number in (1, 2):
            killed = subprocess.Popen(command(folder, url, 9, 100), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + WAIT
            while len(read_json(f"{url}/batches")["data"]) < number:
                assert time.monotonic() < deadline and killed.poll() is None, "no batch was made"
                time.sleep(0.02)
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        known = sum(line["money"] for line in requests(folder / "cache"))
        assert known > 0  # what is under way counts as spent
        subprocess.run(command(folder, url, 9, 100), check=True, stdout=subprocess.DEVNULL, timeout=WAIT)
        used, batches = read_json(f"{url}/usage"), read_json(f"{url}/batches")["data"]

    assert_all_right(folder)
    assert [batch["request_counts"]["total"] for batch in batches][:2] == [100, 100]
    assert used["answered"] == used["billed"] == PICTURES * EACH  # no answer was given, or paid, twice
    assert list((folder / "cache" / "batches").iterdir()) == []
    lines = list(requests(folder / "cache"))
    outcome = Counter(line["outcome"] for line in lines)
    batched = sum(batch["request_counts"]["completed"] for batch in batches)
    assert outcome["answered"] == PICTURES * EACH and 100 < batched < PICTURES * EACH  # the others were asked alone
    price = (2.5 * used["prompt_tokens"] + 10 * used["tokens"]) / 1e6
    assert sum(line["money"] for line in lines) == pytest.approx(price * (1 - 0.5 * batched / (PICTURES * EACH)), rel=0.01)
