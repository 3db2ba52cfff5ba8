"""People as reviewers: the run hands them what needs review, waits, and takes their verdicts."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from medq_ray.config import Config
from medq_ray.console import progress, say
from medq_ray.review.handover import export, fill

if TYPE_CHECKING:
    from medq_ray.review.queue import Queue

POLL = 5.0
"""Seconds between two looks at the store while waiting; a look takes a hundredth of one."""


class AwaitingReview(RuntimeError):
    """People have items left; the message is one line: how many, where, and what to do."""


def review(run_dir: Path, *, config: Config, iteration: int, wait: bool) -> dict:
    """Put the iteration's annotations before people, and write their verdicts once all are given; counts.

    What is in the store stays there, so that the same again goes on. wait: until people are done, instead of raising
    AwaitingReview while they are not. Raises as `handover.fill` and `handover.export`, ConnectionError when the store
    cannot be reached.
    """
    from medq_ray.review.queue import Queue
    from medq_ray.review.store import Store

    store = Store(config.review.store or Path(run_dir) / "review.db")
    try:
        items = fill(store, run_dir, iteration, config)["items"]
        queue = Queue(store, config.review)
        if wait:
            await_people(queue, iteration, items)
        elif left := items - done(queue, iteration):
            raise AwaitingReview(f"awaiting review: {left:,} items of iteration {iteration} in {store.address}; when "
                                 "they are done, the same command goes on (`medq run --wait` waits)")  # fmt: skip
        return export(store, run_dir, iteration)
    finally:
        store.close()


def await_people(queue: "Queue", iteration: int, items: int) -> None:
    """Return when every item is done; shows how many are. A store that cannot be reached may come back."""
    with progress(items, "review", unit="item") as bar:
        while bar.n < items:
            try:
                bar.update(done(queue, iteration) - bar.n)
            except ConnectionError as error:
                say(f"  {error}; looking again")
            if bar.n < items:
                time.sleep(POLL)


def done(queue: "Queue", iteration: int) -> int:
    return queue.left().get(iteration, {"done": 0})["done"]
