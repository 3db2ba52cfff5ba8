"""Ask a model many questions: Ray Data sends them, the cache keeps what was answered, rows come back as COMPLETION.

Floor 2. Resume is the cache: a question whose answer is on disk is not sent again, and when all are there no worker
is started. Images are read where the requests are made, so pixels never pass through the driver.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from medq_ray import console
from medq_ray.images import data_url, read_image
from medq_ray.model.chat import Cache, Choice, Client, Endpoint, EndpointError, Sampling, request_key
from medq_ray.model.prompts import messages
from medq_ray.schema import COMPLETION

BLOCK = 32
"""Requests that one Ray Data task makes: progress and fault tolerance are by block."""
FATAL = -1
"""`run` of the row by which a worker reports that the endpoint cannot be used."""

REQUEST = pa.schema([("key", pa.string()), ("uri", pa.string()), ("prompt", pa.string())])
ANSWER = pa.schema(
    [
        ("key", pa.string()),
        ("run", pa.int32()),
        ("text", pa.string()),
        ("entropy", pa.float64()),
        ("tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("error", pa.string()),
    ]
)


def ask(prompts: pa.Table, endpoint: Endpoint, sampling: Sampling, cache: Path, label: str) -> pa.Table:
    """Ask each row of `prompts` (question_id, uri, prompt) `sampling.n` times.

    Returns COMPLETION rows sorted by (question_id, run). An unreadable image or a refused request gives rows with an
    error; two questions with the same image file and prompt are one request. Needs a running Ray only when something
    is left to ask. Raises EndpointError (one line) when the endpoint cannot be used, or refused every request; answers
    given until then are in the folder `cache`.
    """
    rows = prompts.select(["question_id", "uri", "prompt"]).to_pylist()
    digests = {uri: _file_digest(uri) for uri in sorted({row["uri"] for row in rows})}
    asked: dict[str, list[str]] = {}  # request key -> its questions
    requests: dict[str, dict] = {}
    for row in rows:
        key = request_key(endpoint, digests[row["uri"]], row["prompt"], sampling)
        asked.setdefault(key, []).append(row["question_id"])
        requests[key] = {"key": key, "uri": row["uri"], "prompt": row["prompt"]}
    known = Cache(cache)
    answers = {key: choices for key in requests if (choices := known.get(key)) is not None}
    pending = [request for key, request in requests.items() if key not in answers]
    with console.progress(len(rows), label, unit="question") as bar:
        bar.initial = len(rows) - sum(len(asked[request["key"]]) for request in pending)  # the rate is of new answers
        bar.update(bar.initial)
        if pending:
            for block in _answers(pending, endpoint, sampling, cache):
                answers.update(block)
                bar.update(sum(len(asked[key]) for key in block))
    refusals = [choices[0].error for choices in answers.values() if choices[0].error]
    if refusals and len(refusals) == len(answers):  # a wrong parameter or server, and no fact about the model
        raise EndpointError(f"{endpoint.base_url} (model {endpoint.model}) answered nothing: {refusals[0]}")
    return _completions(asked, answers, endpoint.model)


def _completions(asked: dict[str, list[str]], answers: dict[str, list[Choice]], model: str) -> pa.Table:
    """COMPLETION rows of every question, from the choices of its request."""
    rows = [
        {"question_id": question_id, "run": run, "model": model, **vars(choice)}
        for key, question_ids in asked.items()
        for question_id in question_ids
        for run, choice in enumerate(answers[key])
    ]
    return pa.Table.from_pylist(rows, schema=COMPLETION).sort_by([("question_id", "ascending"), ("run", "ascending")])


def _file_digest(path: str) -> str:
    """sha256 of an image file, which stands for its pixels in request keys: hashing a file is 50 times cheaper than
    decoding it. A file that cannot be read has none; the worker that tries to will say why."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return f"unreadable:{path}"


def _answers(
    pending: list[dict], endpoint: Endpoint, sampling: Sampling, cache: Path
) -> Iterator[dict[str, list[Choice]]]:
    """Send the requests through one Ray Data actor; yields request key -> choices, block by block as they finish.

    One actor is enough: it waits for the model most of the time, and its event loop keeps `endpoint.concurrency`
    requests in flight over the tasks that it runs at the same time. It declares no CPU, so that it starts even where
    an engine holds all of them. It runs beside the driver, for which a loopback address was meant.
    """
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)

    blocks = [pa.Table.from_pylist(pending[i : i + BLOCK], schema=REQUEST) for i in range(0, len(pending), BLOCK)]
    tasks = min(len(blocks), 2 + endpoint.concurrency // BLOCK)  # enough blocks that the slots never run dry
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    answered = ray.data.from_arrow(blocks).map_batches(
        Asker,
        fn_constructor_args=(endpoint, endpoint.key(), sampling, str(cache)),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=1, max_tasks_in_flight_per_actor=tasks, max_concurrent_calls_per_actor=tasks
        ),
        num_cpus=0,
        scheduling_strategy=here,
    )
    for block in answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        choices: dict[str, list[Choice]] = {}
        for row in block.to_pylist():
            key, run = row.pop("key"), row.pop("run")
            if run == FATAL:
                raise EndpointError(row["error"])
            choices.setdefault(key, []).append(Choice(**row))
        yield choices


class Asker:
    """A Ray Data actor that turns REQUEST batches into ANSWER batches."""

    def __init__(self, endpoint: Endpoint, key: str, sampling: Sampling, cache: str):
        self.client = Client(endpoint, key)
        self.sampling = sampling
        self.cache = Cache(Path(cache))  # read again: if this actor replaces one that died, its answers are there

    async def __call__(self, batch: pa.Table) -> pa.Table:
        tasks = [asyncio.create_task(self.answer(**row)) for row in batch.to_pylist()]
        try:
            answers = await asyncio.gather(*tasks)
        except EndpointError as error:  # as data: an exception would reach the driver inside a Ray traceback
            for task in tasks:
                task.cancel()
            return _table([("", FATAL, Choice("", None, None, "", str(error)))])
        return _table([row for rows in answers for row in rows])

    async def answer(self, key: str, uri: str, prompt: str) -> list[tuple[str, int, Choice]]:
        choices = self.cache.get(key)
        if choices is None:
            try:
                url = await asyncio.to_thread(lambda: data_url(read_image(uri)))
            except ValueError as error:
                choices = [Choice("", None, None, "", f"unreadable image: {error}")] * self.sampling.n
            else:
                choices = (await self.client.complete(messages(url, prompt), self.sampling)).choices
                if not any(choice.error for choice in choices):
                    self.cache.put(key, choices)
        return [(key, run, choice) for run, choice in enumerate(choices)]


def _table(rows: list[tuple[str, int, Choice]]) -> pa.Table:
    return pa.Table.from_pylist([{"key": key, "run": run, **vars(choice)} for key, run, choice in rows], schema=ANSWER)
