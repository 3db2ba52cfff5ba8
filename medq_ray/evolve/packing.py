"""Which samples lie in which row of which worker: known to every worker beforehand, from token counts alone.

A global batch is drawn from the seed and never depends on the number of workers; only its division does. So a run that
goes on with fewer workers takes the same steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """Samples that one worker computes on at once."""

    step: int
    """From 1."""
    samples: tuple[int, ...]
    batch: int
    """Samples of the step's global batch."""
    last: bool
    """Whether the step ends with it."""
    counted: bool = True
    """False for what a worker without samples of its own computes along, so that all take part in all collectives; its
    loss is not counted."""


def batches(count: int, size: int, seed: list[int], epoch: int) -> Iterator[list[int]]:
    """Global batches of one epoch: each of `count` samples once, the last batch possibly shorter."""
    order = np.random.default_rng(np.random.SeedSequence([*seed, epoch])).permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size].tolist()


def divide(batch: list[int], tokens: list[int], world: int, most: int) -> list[list[list[int]]]:
    """A global batch as rows: for each worker as many lists of samples, of at most `most` tokens together each.

    Longest first, each to the worker with the fewest tokens so far, there into the first row with room (first-fit
    decreasing); a worker with fewer rows than another gets empty ones. Our choice. tokens: of each sample, none above
    `most`.
    """
    rows: list[list[list[int]]] = [[] for _ in range(world)]
    load = [0] * world
    for sample in sorted(batch, key=lambda one: (-tokens[one], one)):
        worker = load.index(min(load))
        load[worker] += tokens[sample]
        room = (row for row in rows[worker] if sum(tokens[one] for one in row) + tokens[sample] <= most)
        row = next(room, None)
        if row is None:
            rows[worker].append([sample])
        else:
            row.append(sample)
    height = max(len(own) for own in rows)
    return [own + [[] for _ in range(height - len(own))] for own in rows]


def schedule(
    tokens: list[int], *, size: int, seed: list[int], epochs: int, rank: int, world: int, most: int, done: int
) -> Iterator[Row]:
    """The rows of one worker in order, from after step `done` to the end of the last epoch; equal in number on all."""
    step = 0
    for epoch in range(epochs):
        for batch in batches(len(tokens), size, seed, epoch):
            step += 1
            if step <= done:
                continue
            rows = divide(batch, tokens, world, most)[rank]
            for number, row in enumerate(rows, 1):
                own = row or [min(batch, key=lambda one: (tokens[one], one))]
                yield Row(step, tuple(own), len(batch), number == len(rows), bool(row))
