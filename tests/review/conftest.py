"""A real PostgreSQL for the session, and a fresh store on each of both databases for every test that asks for one."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from database import binaries, cluster, create
from small_store import Clock, stock

from medq_ray.config import Review
from medq_ray.review.queue import Queue
from medq_ray.review.store import Store

NAMES = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a private cluster, up to the database's name."""
    place = binaries()
    if place is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no PostgreSQL here: apt-get install postgresql")
    with cluster(place, "-c", "fsync=off") as addresses:
        yield addresses


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that is not there yet."""
    if request.param == "sqlite":
        return str(tmp_path / "review.db")
    return create(request.getfixturevalue("postgres"), f"store{next(NAMES)}")


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    """Empty."""
    opened = Store(address)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stocked(store: Store, clock: Clock) -> Callable[..., Queue]:
    """stocked(items, people, **review settings) -> a queue over them."""

    def build(items: list[dict], people: dict[str, str], **settings) -> Queue:
        stock(store, items, people)
        return Queue(store, Review(**{"patients_together": False} | settings), clock)

    return build
