"""Which sample lies in which row: each exactly once an epoch, whatever the number of workers."""

import numpy as np
import pytest

from medq_ray.evolve.packing import batches, divide, schedule

TOKENS = np.random.default_rng(0).integers(20, 120, 25).tolist()


def rows_of(world: int, done: int = 0, most: int = 200, epochs: int = 2) -> list[list]:
    arguments = {"size": 8, "seed": [0, 1], "epochs": epochs, "world": world, "most": most, "done": done}
    return [list(schedule(TOKENS, rank=rank, **arguments)) for rank in range(world)]


def seen(rows: list[list]) -> dict[int, list[int]]:
    """Step -> what is counted in it, by all workers."""
    found: dict[int, list[int]] = {}
    for row in (row for own in rows for row in own if row.counted):
        found.setdefault(row.step, []).extend(row.samples)
    return {step: sorted(samples) for step, samples in sorted(found.items())}


def test_batches_hold_every_sample_once_and_depend_on_seed_and_epoch():
    first = list(batches(25, 4, [0, 1], 0))
    assert [len(batch) for batch in first] == [4] * 6 + [1]
    assert sorted(i for batch in first for i in batch) == list(range(25))
    assert first == list(batches(25, 4, [0, 1], 0))
    assert first not in (list(batches(25, 4, [0, 1], 1)), list(batches(25, 4, [0, 2], 0)))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("most", [120, 200, 10_000])
def test_division_keeps_every_sample_within_the_limit_and_workers_abreast(world, most):
    batch = list(range(len(TOKENS)))
    rows = divide(batch, TOKENS, world, most)
    assert sorted(sample for own in rows for row in own for sample in row) == batch
    assert all(sum(TOKENS[sample] for sample in row) <= most for own in rows for row in own)
    assert len(rows) == world and len({len(own) for own in rows}) == 1
    loads = [sum(TOKENS[sample] for row in own for sample in row) for own in rows]
    assert max(loads) - min(loads) <= max(TOKENS)
    assert rows == divide(batch[::-1], TOKENS, world, most)


def test_rows_are_nearly_full():
    """First-fit decreasing needs at most 11/9 of the fewest possible, and one."""
    (rows,) = divide(list(range(len(TOKENS))), TOKENS, 1, 200)
    assert len(rows) <= 11 / 9 * -(-sum(TOKENS) // 200) + 1


@pytest.mark.parametrize("world", [2, 3, 11])
def test_any_number_of_workers_takes_the_same_steps(world):
    rows, alone = rows_of(world), rows_of(1)
    assert seen(rows) == seen(alone)
    assert len({len(own) for own in rows}) == 1, "a worker that has fewer rows would leave the others waiting"
    for together in zip(*rows, strict=True):
        assert len({(row.step, row.batch, row.last) for row in together}) == 1
    idle = [row for own in rows for row in own if not row.counted]
    assert all(len(row.samples) == 1 for row in idle)
    assert bool(idle) == (world > 1)  # the last batch of an epoch has one sample


def test_a_step_ends_with_its_last_row_and_knows_its_batch():
    (rows,) = rows_of(1, most=120)
    for step, samples in seen([rows]).items():
        own = [row for row in rows if row.step == step]
        assert [row.last for row in own] == [False] * (len(own) - 1) + [True]
        assert {row.batch for row in own} == {len(samples)}


def test_going_on_after_a_step_with_fewer_workers_shows_the_rest_once():
    whole = seen(rows_of(2))
    assert {**{step: whole[step] for step in (1, 2, 3)}, **seen(rows_of(1, done=3))} == whole
    assert sorted(sample for samples in whole.values() for sample in samples) == sorted(2 * list(range(25)))
