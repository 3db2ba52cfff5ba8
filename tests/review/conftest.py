"""A real PostgreSQL for the session, and a fresh store on each of both databases for every test that asks for one; a
real Chromium, and a served console before it."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from database import binaries, cluster, create
from reading_desk import Desk, chromium, programs
from reading_room import draw, furnish
from selenium.webdriver import Chrome
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


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    if not programs():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no browser: apt-get install chromium chromium-driver")
    driver = chromium()
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory) -> Path:
    """Where screenshots are kept."""
    folder = Path(os.environ.get("CI_ARTIFACTS") or tmp_path_factory.mktemp("screenshots")) / "review-console"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def large(tmp_path_factory) -> dict[str, str]:
    """Pictures as large as a screen shows them."""
    return draw(tmp_path_factory.mktemp("pictures"), size=448)


@pytest.fixture
def desk(browser, tmp_path) -> Iterator[Callable[..., Desk]]:
    """desk(items, people) -> a Desk."""
    made = []

    def build(pieces: list[dict], people: dict[str, str]) -> Desk:
        store = Store(tmp_path / "review.db")
        tokens = furnish(store, pieces, people)
        store.close()
        made.append(Desk(browser, tmp_path / "review.db", tokens))
        return made[-1]

    yield build
    browser.get("about:blank")  # or the page asks a server that is gone
    browser.get_log("browser")
    for one in made:
        one.stop()
