"""Ask a model many questions: Ray Data sends them, the cache keeps what was answered, rows come back as COMPLETION.

Floor 2. Resume is the cache: a question whose answer is on disk is not sent again, and when all are there no worker
is started. Images are read where the requests are made, so pixels never pass through the driver; answers do not pass
through it either, but are read from the cache at the end, into Arrow.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import astuple, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray import console
from medq_ray.model.asker import HOPELESS, Asker
from medq_ray.model.cache import Cache, request_key
from medq_ray.model.chat import Choice, Endpoint, EndpointError, Sampling
from medq_ray.schema import COMPLETION, PROMPT

BLOCK = 32
"""Requests that one Ray Data task makes: progress and fault tolerance are by block."""
CHUNK = 2048
"""Questions whose answers are Python objects at one time."""
Answer = Callable[[pa.Table, Sampling, str], pa.Table]
"""A phase's way to ask one model: answer(schema.PROMPT, sampling, label for the progress bar) -> schema.COMPLETION."""
REQUEST = pa.schema([("key", pa.string()), PROMPT.field("uris"), PROMPT.field("prompt")])


def ask(prompts: pa.Table, endpoint: Endpoint, sampling: Sampling, cache: Path, label: str) -> pa.Table:
    """Ask each row of `prompts` (schema.PROMPT) `sampling.n` times.

    Returns COMPLETION rows sorted by (question_id, run). An unreadable image, a refused request and a question that
    nothing came of give rows with an error; two questions with the same images and prompt are one request. Needs a
    running Ray only when something is left to ask. Raises EndpointError (one line) when the endpoint cannot be used, or
    answers none of many questions; answers given until then are in the folder `cache`, which is this endpoint's alone.
    """
    prompts = prompts.select(PROMPT.names).sort_by("question_id")
    keys = request_keys(prompts, endpoint, sampling)
    known = Cache(cache).keys()
    requests = prompts.drop_columns("question_id").add_column(0, "key", keys).cast(REQUEST)
    pending = once_each(requests.filter(pc.invert(pc.is_in(keys, pa.array(sorted(known), pa.string())))))
    errors: dict[str, str] = {}
    with console.progress(prompts.num_rows, label, unit="question") as bar:
        bar.initial = prompts.num_rows - pending.num_rows  # the rate is of new answers
        bar.update(bar.initial)
        for answered in send(pending, endpoint, sampling, cache) if pending.num_rows else ():
            failed = answered.filter(pc.not_equal(answered["error"], ""))
            errors |= dict(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))
            bar.update(answered.num_rows)
    given = Cache(cache)
    asked = set(keys.to_pylist())
    if errors and len(errors) == len(asked) and (len(asked) >= HOPELESS or len(given) == 0):
        # a wrong parameter or server, and no fact about the model; a few questions may well be refused each
        first = next(iter(errors.values()))
        raise EndpointError(f"{endpoint.base_url} (model {endpoint.model}) answered nothing: {first}")
    return completions(prompts["question_id"], keys, errors, endpoint.model, sampling, given)


def request_keys(prompts: pa.Table, endpoint: Endpoint, sampling: Sampling) -> pa.Array:
    """The request key of each prompt."""
    digest = functools.cache(file_digest)
    rows = zip(prompts["uris"].to_pylist(), prompts["prompt"].to_pylist(), strict=True)
    keys = [request_key(endpoint, [digest(uri) for uri in uris], prompt, sampling) for uris, prompt in rows]
    return pa.array(keys, pa.string())


def once_each(requests: pa.Table) -> pa.Table:
    """The first of the requests with each key."""
    places = pa.array(range(requests.num_rows), pa.int64())
    first = requests.select(["key"]).append_column("place", places).group_by("key").aggregate([("place", "min")])
    return requests.take(first["place_min"].combine_chunks().sort())


def completions(
    questions: pa.ChunkedArray, keys: pa.Array, errors: dict[str, str], model: str, sampling: Sampling, cache: Cache
) -> pa.Table:
    """COMPLETION rows of sorted questions, from the cache or from the error of their request."""
    sent = {"model": model, "temperature": sampling.temperature, "seed": sampling.seed}
    names = [field.name for field in fields(Choice)]
    tables = []
    for start in range(0, len(keys), CHUNK):
        rows = []
        part = zip(questions[start : start + CHUNK].to_pylist(), keys[start : start + CHUNK].to_pylist(), strict=True)
        for question, key in part:
            choices = [Choice("", error=errors[key])] * sampling.n if key in errors else cache.get(key)
            for run, choice in enumerate(choices):
                said = dict(zip(names, astuple(choice), strict=True))
                rows.append({"question_id": question, "run": run} | sent | said)
        tables.append(pa.Table.from_pylist(rows, schema=COMPLETION))
    return pa.concat_tables([COMPLETION.empty_table(), *tables])


def file_digest(path: str) -> str:
    """sha256 of an image file, which stands for its pixels in request keys: hashing a file is 50 times cheaper than
    decoding it. A file that cannot be read has none; the worker that tries to will say why."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return f"unreadable:{path}"


def send(pending: pa.Table, endpoint: Endpoint, sampling: Sampling, cache: Path) -> Iterator[pa.Table]:
    """ANSWERED rows of all requests, block by block, as they come in. Raises EndpointError.

    One actor is enough: it waits for the model most of the time, and its event loop keeps `endpoint.concurrency`
    requests in flight over the tasks that it runs at the same time. It declares no CPU, so that it starts even where
    an engine holds all of them. It runs beside the driver, for which a loopback address was meant.
    """
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    blocks = [pending.slice(i, BLOCK) for i in range(0, pending.num_rows, BLOCK)]
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
        fatal = block.filter(block["fatal"])
        if fatal.num_rows:
            raise EndpointError(fatal["error"][0].as_py())
        yield block
