"""Ray Data between the data set and the training step: samples are measured once, then read and encoded ahead of it.

Image decoding and preprocessing happen in CPU processes of their own, so that a step finds its rows ready. Every worker
has one stream for all of its epochs, in the order that `packing.schedule` says; what Ray Data holds ready is bounded by
its own memory limits.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medq_ray.evolve.adapters import adapter_of
from medq_ray.evolve.packing import Row

if TYPE_CHECKING:
    from ray.data import Dataset
    from torch import Tensor

    from medq_ray.evolve.encoding import SampleEncoder

    Fed = tuple[Row, dict[str, Tensor]]

BLOCK = 4
"""Rows handed over at once: 1 MB of the embedded model's, some hundred of an 8B model's. Our choice."""
CPUS = 0
"""That Ray counts for a process which encodes: `evolve.loaders` bounds them, and where workers had taken all that Ray
has, as an elastic training does, it would wait for itself."""
READY = 2
"""Rows that wait for a step as tensors. Our choice."""


def measure(samples: list[dict], checkpoint: Path, loaders: int) -> dict[str, int]:
    """Tokens of each sample (rows of schema.CHAT) by question id. Raises ValueError naming the first sample, by id,
    that cannot be encoded, and how many others, or what is wrong with the checkpoint (`adapter_of`)."""
    adapter_of(checkpoint)
    if not samples:
        return {}
    rows = from_items([{"sample": sample} for sample in samples], 4 * loaders)
    found = rows.map_batches(measured, batch_size=32, **in_processes(checkpoint, loaders)).take_all()
    if refused := sorted((row["question_id"], row["refused"]) for row in found if row["refused"]):
        more = f" (and {len(refused) - 1} more samples)" if len(refused) > 1 else ""
        raise ValueError(refused[0][1] + more)
    return {row["question_id"]: row["tokens"] for row in found}


def stream(rows: Iterable[Row], samples: list[dict], checkpoint: Path, loaders: int) -> Iterator["Fed"]:
    """Each row with its tensors (`encoding.pack`), in order; work on the first ones begins with the call.

    samples: rows of schema.CHAT, as `rows` index them. Raises ValueError naming a sample that can no longer be read.
    """
    rows, listed = tee(rows)
    items = [{"row": [samples[i] for i in row.samples]} for row in listed]
    if not items:
        return iter(())
    encoded = from_items(items, len(items) // BLOCK).map(packed, **in_processes(checkpoint, loaders))
    return ahead(zip(rows, tensors(encoded, items, checkpoint.resolve()), strict=True))


def from_items(items: list[dict], blocks: int) -> "Dataset":
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False  # there is one for the training (`sft.watched`)
    return ray.data.from_items(items, override_num_blocks=min(max(blocks, 1), len(items)))


def in_processes(checkpoint: Path, loaders: int) -> dict[str, Any]:
    import ray

    pool = ray.data.TaskPoolStrategy(size=loaders)
    return {"fn_kwargs": {"checkpoint": checkpoint.resolve()}, "compute": pool, "num_cpus": CPUS}


def measured(batch: dict[str, Any], checkpoint: Path) -> dict[str, list]:
    """Tokens of samples, image tokens included, or why one cannot be encoded."""
    tokens, refused = [], []
    for sample in batch["sample"]:
        try:
            tokens.append(len(encoder(checkpoint).read(sample)["input_ids"]))
            refused.append("")
        except ValueError as error:
            tokens.append(0)
            refused.append(" ".join(str(error).split()))
    names = [sample["question_id"] for sample in batch["sample"]]
    return {"question_id": names, "tokens": tokens, "refused": refused}


def packed(row: dict[str, list[dict]], checkpoint: Path) -> dict[str, Any]:
    """A row's samples as packed arrays."""
    from medq_ray.evolve.encoding import pack

    return {k: v.numpy() for k, v in pack([encoder(checkpoint).read(sample) for sample in row["row"]]).items()}


@cache
def encoder(checkpoint: Path) -> "SampleEncoder":
    """Of this process. Tasks and not actors, since what it imports takes some seconds: Ray gives a process that has
    measured samples those to encode, too."""
    import torch

    from medq_ray.evolve.encoding import SampleEncoder

    torch.set_num_threads(1)  # as many processes as are wanted do this beside the training
    return SampleEncoder(checkpoint)


def tensors(encoded: "Dataset", items: list[dict], checkpoint: Path) -> Iterator["dict[str, Tensor]"]:
    import ray
    import torch

    done = 0
    try:
        for done, row in enumerate(encoded.iter_rows(), 1):
            yield {name: torch.tensor(array) for name, array in row.items()}
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ray.exceptions.UserCodeException):  # keeps nothing of what our code raised
            left = {sample["question_id"]: sample for item in items[done:] for sample in item["row"]}  # each once
            for sample in left.values():
                encoder(checkpoint).read(sample)
        raise


def ahead(found: Iterator["Fed"]) -> Iterator["Fed"]:
    """The same, with READY of them taken beforehand by a thread."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
    waiting = deque(pool.submit(next, found, None) for _ in range(READY))

    def taken() -> Iterator["Fed"]:
        try:
            while (one := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, found, None))
                yield one
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return taken()
