"""Ask a model many questions: Ray Data sends them, the cache keeps what was answered, rows come back as COMPLETION.

Floor 2. Resume is the cache: a question whose answer is on disk is not sent again, and when all are there no worker
is started. Images are read where the requests are made, so that pixels of more than a few questions never pass through
the driver; nor do answers, which are read from the cache at the end, into Arrow. So the driver of 20,000 questions
needs no more memory than that of 1,000, but for the two tables.
"""

import asyncio
import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray import console
from medq_ray.model.account import note_cached, requests
from medq_ray.model.asker import HOPELESS, Asker
from medq_ray.model.batch import ask_batches, under_way
from medq_ray.model.cache import Cache, request_key
from medq_ray.model.chat import Choice, Endpoint, EndpointError, Sampling
from medq_ray.schema import COMPLETION, PROMPT
from medq_ray.serving import start_ray
from medq_ray.tables import rows_of, table_of

FEW = 128
"""Requests that are made in this process: Ray Data takes three seconds to start its actor."""
BLOCK = 32
"""Requests that one Ray Data task makes, at least: progress and fault tolerance are by block."""
BLOCKS = 32
"""Most tasks: Ray Data keeps 40 KB of each in the driver."""
Answer = Callable[[pa.Table, Sampling, str], pa.Table]
"""A phase's way to ask one model: answer(schema.PROMPT, sampling, label for the progress bar) -> schema.COMPLETION."""
REQUEST = pa.schema([("key", pa.string()), PROMPT.field("uris"), PROMPT.field("prompt")])


def ask(
    prompts: pa.Table, endpoint: Endpoint, sampling: Sampling, cache: Path, label: str, purpose: str = "",
    serve: Callable[[], str] | None = None,
) -> pa.Table:
    """Ask each row of `prompts` (schema.PROMPT) `sampling.n` times.

    Returns COMPLETION rows sorted by (question_id, run). An unreadable image, a refused request and a question that
    nothing came of give rows with an error; two questions with the same images and prompt are one request. Starts Ray,
    where none runs, when more than FEW requests are left, and needs no running event loop otherwise. Raises
    EndpointError (one line) when the endpoint cannot be used, has no budget left, or answers none of many questions;
    answers given until then are in the folder `cache`, which is this endpoint's alone, and so is what they cost
    (`model.account`), for `purpose`, or `label` where there is none. serve: starts the endpoint and returns its base
    URL; called only if something is left to ask.
    """  # fmt: skip
    prompts = in_order(prompts.select(PROMPT.names))
    keys = request_keys(prompts, endpoint, sampling)
    pending = unanswered(prompts, keys, cache)
    if serve is not None and (pending.num_rows or under_way(cache)):
        endpoint = replace(endpoint, base_url=serve())
    errors = get_answers(prompts, keys, pending, endpoint, sampling, cache, label, purpose or label)
    given = Cache(cache)
    if errors and len(errors) == (asked := len(pc.unique(keys))) and (asked >= HOPELESS or len(given) == 0):
        # a wrong parameter or server, and no fact about the model; a few questions may well be refused each
        first = next(iter(errors.values()))
        raise EndpointError(f"{endpoint.base_url} (model {endpoint.model}) answered nothing: {first}")
    return completions(prompts["question_id"], keys, errors, endpoint.model, sampling, given)


def in_order(prompts: pa.Table) -> pa.Table:
    """Sorted by question_id, and no copy of those that are."""
    names = prompts["question_id"]
    return prompts if pc.all(pc.less_equal(names[:-1], names[1:])).as_py() else prompts.sort_by("question_id")


def get_answers(
    prompts: pa.Table, keys: pa.ChunkedArray, pending: pa.Table, endpoint: Endpoint, sampling: Sampling, cache: Path,
    label: str, purpose: str,
) -> dict[str, str]:
    """Fill the cache with what is pending; request key -> why nothing came of it. Raises EndpointError."""  # fmt: skip
    errors: dict[str, str] = {}
    with console.progress(prompts.num_rows, label, unit="question") as bar:
        bar.initial = prompts.num_rows - pending.num_rows  # the rate is of new answers
        bar.update(bar.initial)
        note_cached(cache, purpose, len(pc.unique(keys)) - pending.num_rows)
        if (endpoint.tariff.batch and pending.num_rows) or under_way(cache):
            for i in range(pending.num_rows if endpoint.tariff.max_cost is not None else 0):
                if any(line["tokens"] for line in requests(cache)):
                    break
                list(send(pending.slice(i, 1), endpoint, sampling, cache, purpose, bar.update))  # what a picture costs
            ask_batches(pending.to_pylist(), endpoint, sampling, cache, purpose, bar.update)
            pending = unanswered(prompts, keys, cache)
            bar.n = prompts.num_rows - pending.num_rows
        for answered in send(pending, endpoint, sampling, cache, purpose, bar.update) if pending.num_rows else ():
            failed = answered.filter(pc.not_equal(answered["error"], ""))
            errors |= dict(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))
    return errors


def unanswered(prompts: pa.Table, keys: pa.ChunkedArray, cache: Path) -> pa.Table:
    """REQUEST rows, each once, of what is not in the cache."""
    fresh = once_each(keys, Cache(cache))
    return prompts.drop_columns("question_id").add_column(0, "key", keys).filter(fresh).cast(REQUEST)


def request_keys(prompts: pa.Table, endpoint: Endpoint, sampling: Sampling) -> pa.ChunkedArray:
    """The request key of each of the sorted prompts."""
    digest = functools.cache(file_digest)
    rows = (
        {"key": request_key(endpoint, [digest(uri) for uri in row["uris"]], row["prompt"], sampling)}
        for row in rows_of(prompts)
    )
    return table_of(rows, pa.schema([REQUEST.field("key")]))["key"]


def once_each(keys: pa.ChunkedArray, known: Cache) -> pa.Array:
    """bool for each key: whether it is not known, and the first of its kind."""
    seen: set[str] = set()

    def is_new(key: str) -> bool:
        if key in known or key in seen:
            return False
        seen.add(key)
        return True

    return pa.array((is_new(key.as_py()) for key in keys), pa.bool_())


def completions(
    questions: pa.ChunkedArray,
    keys: pa.ChunkedArray,
    errors: dict[str, str],
    model: str,
    sampling: Sampling,
    cache: Cache,
) -> pa.Table:
    """COMPLETION rows of sorted questions, from the cache or from the error of their request."""
    sent = {"model": model, "temperature": sampling.temperature, "seed": sampling.seed}

    def rows() -> Iterator[dict]:
        for question, key in ((question.as_py(), key.as_py()) for question, key in zip(questions, keys, strict=True)):
            choices = [Choice("", error=errors[key])] * sampling.n if key in errors else cache.get(key)
            for run, choice in enumerate(choices):
                yield {"question_id": question, "run": run} | sent | vars(choice)

    return table_of(rows(), COMPLETION)


def file_digest(path: str) -> str:
    """sha256 of an image file, which stands for its pixels in request keys: hashing a file is 50 times cheaper than
    decoding it. A file that cannot be read has none; the worker that tries to will say why."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return f"unreadable:{path}"


def send(
    pending: pa.Table, endpoint: Endpoint, sampling: Sampling, cache: Path, purpose: str, tell: Callable[[int], object]
) -> Iterator[pa.Table]:
    """ANSWERED rows of all requests, block by block as they come in: a few from this process, more from Ray Data.

    tell: is given the number of requests that have just been answered. Raises EndpointError.
    """
    few = pending.num_rows <= FEW
    if few:
        blocks = iter([asyncio.run(Asker(endpoint, endpoint.key(), sampling, str(cache), purpose).once(pending, tell))])
    else:
        blocks = by_ray(pending, endpoint, sampling, cache, purpose)
    for block in blocks:
        fatal = block.filter(block["fatal"])
        if fatal.num_rows:
            raise EndpointError(fatal["error"][0].as_py())
        if not few:
            tell(block.num_rows)
        yield block


def by_ray(pending: pa.Table, endpoint: Endpoint, sampling: Sampling, cache: Path, purpose: str) -> Iterator[pa.Table]:
    """ANSWERED rows of all requests from an actor of Ray Data.

    One actor is enough: it waits for the model most of the time, and its event loop keeps `endpoint.concurrency`
    requests in flight over the tasks that it runs at the same time. It declares no CPU, so that it starts even where
    an engine holds all of them. It runs beside the driver, for which a loopback address was meant.
    """
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    start_ray()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    size = max(BLOCK, math.ceil(pending.num_rows / BLOCKS))
    blocks = [pending.slice(i, size) for i in range(0, pending.num_rows, size)]
    # so many blocks that the slots do not run dry while some wait for their last answers
    tasks = min(len(blocks), 2 + 2 * math.ceil(endpoint.concurrency / size))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    answered = ray.data.from_arrow(blocks).map_batches(
        Asker,
        fn_constructor_args=(endpoint, endpoint.key(), sampling, str(cache), purpose),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=1, max_tasks_in_flight_per_actor=tasks, max_concurrent_calls_per_actor=tasks
        ),
        num_cpus=0,
        scheduling_strategy=here,
    )
    yield from answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
