"""Asking for an evaluation: R answers in one request, our way against a bare client, and the driver's memory.

    python -m benchmarks.evaluate [--questions 1305] [--json FILE]

The embedded base model under vLLM answers questions of a synthetic world; peer is a loop of `openai.AsyncOpenAI` with a
semaphore, which keeps nothing. What is compared takes turns, three times; the best of each counts, and every image has
been asked about before. Memory is measured against an endpoint that answers at once. About eight minutes on two cores.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

RUNS, TURNS, CONCURRENCY = 5, 3, 48
QUESTIONS = 1305
"""As many as MedQ-Bench's perception task has on its test split."""
SEPARATE = 400
"""Of them, those that are asked by five requests each, which takes three times as long."""
FEW, MANY = 1_000, 20_000


def questions(folder: Path, count: int) -> pa.Table:
    """schema.PROMPT of the dev questions of a world."""
    from medq_ray.evaluate.runs import prompts
    from medq_ray.synthetic.world import read_world, write_world

    write_world(folder, count // 4 + 61, 5, size=112, dev_images=count // 4 + 1, test_images=30)
    world = read_world(folder)
    dev = world.images.filter(pc.equal(world.images["split"], "dev"))["image_id"].combine_chunks()
    return prompts(world.questions.filter(pc.is_in(world.questions["image_id"], dev))).slice(0, count)


async def bare(url: str, model: str, asked: list[dict], n: int, copies: int, seed: int) -> float:
    """Questions a second of a client that does nothing but ask: `copies` requests with `n` choices for each."""
    import openai

    from medq_ray.images import data_url, read_image
    from medq_ray.model.prompts import messages

    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(row: dict, own_seed: int) -> None:
        async with slots:
            content = messages([data_url(read_image(uri)) for uri in row["uris"]], row["prompt"])
            reply = await client.chat.completions.create(
                model=model, messages=content, n=n, temperature=0.7, max_tokens=48, seed=own_seed, logprobs=True
            )
            assert len(reply.choices) == n

    started = time.perf_counter()
    await asyncio.gather(*(one(row, seed + copy) for row in asked for copy in range(copies)))
    await client.close()
    return len(asked) / (time.perf_counter() - started)


def ours(url: str, model: str, asked: pa.Table, seed: int) -> float:
    """Questions a second of `ask`, from the call to the table."""
    from medq_ray.model.ask import ask
    from medq_ray.model.chat import Endpoint, Sampling

    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        endpoint = Endpoint(url, model, concurrency=CONCURRENCY)
        table = ask(asked, endpoint, Sampling(n=RUNS, temperature=0.7, seed=seed), Path(cache), "ours")
        seconds = time.perf_counter() - started
    assert table.num_rows == RUNS * asked.num_rows and not any(table["error"].to_pylist())
    return asked.num_rows / seconds


def throughput(count: int) -> list[dict]:
    """Two rows: n = R against R requests, and `ask` against the bare client."""
    import ray

    from medq_ray.config import Engine
    from medq_ray.model.deploy import serve_checkpoint
    from medq_ray.model.tiny import embedded_checkpoint

    found: dict[str, list[float]] = {"one": [], "several": [], "ours": []}
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder, serve_checkpoint(embedded_checkpoint(), "base", Engine()) as url:
        asked = questions(Path(folder), count)
        rows = asked.to_pylist()
        asyncio.run(bare(url, "base", rows, 1, 1, 0))  # decodes every image once
        for turn in range(1, TURNS + 1):
            found["one"].append(asyncio.run(bare(url, "base", rows, RUNS, 1, 100 * turn)))
            found["ours"].append(ours(url, "base", asked, 100 * turn))
            found["several"].append(asyncio.run(bare(url, "base", rows[:SEPARATE], 1, RUNS, 100 * turn)))
    ray.shutdown()
    one, several, own = (max(found[name]) for name in ("one", "several", "ours"))
    spread = {name: f"{min(values):.1f} to {max(values):.1f}" for name, values in found.items()}
    return [
        row("n = 5 in one request", one, several, "questions/s",
            f"peer: five requests, {SEPARATE} of {len(rows)} questions; {spread['one']} against {spread['several']}"),
        row("evaluation end to end", own, one, "questions/s",
            f"peer: the bare client, n = 5; {spread['ours']} against {spread['one']}"),
    ]  # fmt: skip


DRIVER = """
import json, re, sys, tempfile
from pathlib import Path
import pyarrow as pa, ray
from medq_ray.evaluate.failures import failures, rates
from medq_ray.evaluate.scoring import accuracy, score
from medq_ray.model.ask import ask
from medq_ray.model.chat import Endpoint, Sampling
from medq_ray.schema import PROMPT, QUESTION
from medq_ray.tables import table_of
url, count, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def names():
    return (f"q{i:06d}" for i in range(count))
prompts = table_of(({"question_id": name, "uris": [], "prompt": f"Is {name} sharp?\\nA. yes\\nB. no"}
                    for name in names()), PROMPT)
one = {"kind": "what", "scope": "general", "modality": "ct", "text": "?", "options": ["yes", "no"], "uri": "",
       "capabilities": ["kind:what", "modality:ct", "severity:none", "cell:ct/none"]}
questions = table_of((one | {"question_id": name, "image_id": name, "answer": "AB"[i % 2]}
                      for i, name in enumerate(names())), QUESTION)
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
with tempfile.TemporaryDirectory() as cache:
    endpoint = Endpoint(url, "m", concurrency=64)
    table = ask(prompts, endpoint, Sampling(n=runs, temperature=0.7), Path(cache), "asking")
    del prompts  # an evaluation makes them for the call
    scores = score(questions, table, 0.6)
assert accuracy(scores)["n"] == count and rates(scores)
assert failures(questions, table, scores).num_rows == count // 2
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss knows of the parent
print(json.dumps({"rows": table.num_rows, "peak": int(peak.group(1)) / 2**10}))
"""

SERVER = """
import asyncio, json
token = {"token": "A", "logprob": -0.1, "bytes": None, "top_logprobs": []}
choice = {"message": {"role": "assistant", "content": "A"}, "finish_reason": "stop", "logprobs": {"content": [token] * 5}}
usage = {"prompt_tokens": 20, "completion_tokens": 25, "total_tokens": 45}
body = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "usage": usage,
                   "choices": [choice | {"index": i} for i in range(5)]}).encode()
answer = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body
async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\\r\\n\\r\\n"):
            lines = head.lower().split(b"\\r\\n")
            length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
            await reader.readexactly(length)
            writer.write(answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def peak(url: str, count: int) -> tuple[float, float]:
    """(MB, seconds) of a process of its own that asks and scores `count` questions of five runs."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", DRIVER, url, str(count), str(RUNS)], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True, check=True)  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == RUNS * count
    return found["peak"], time.perf_counter() - started


def memory(few: int = FEW, many: int = MANY) -> list[dict]:
    """One row: the driver's peak memory with many questions over that with few."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().strip()
            (small, _), (large, seconds) = peak(url, few), peak(url, many)
        finally:
            server.kill()
    note = f"peer: ours at {few:,} questions of {RUNS} runs; ours: at {many:,}, {many / seconds:.0f} questions/s in all"
    return [row("driver: peak memory", large, small, "MB", note)]


def row(name: str, own: float, peer: float, unit: str, note: str) -> dict:
    return {"name": name, "ours": own, "peer": peer, "ratio": own / peer, "unit": unit, "note": note}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--json", type=Path, help="write the rows there as {name: {ours, peer, ratio, unit}}")
    chosen = parser.parse_args()
    rows = throughput(chosen.questions) + memory()
    for found in rows:
        numbers = f"{found['ours']:>9.1f}{found['peer']:>9.1f}{found['ratio']:>7.2f}"
        print(f"{found['name']:<26}{numbers}  {found['unit']:<12}{found['note']}")
    if chosen.json:
        chosen.json.write_text(json.dumps({found.pop("name"): found for found in rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
