"""A real PostgreSQL for the session, and a fresh store on each of both databases for every test that asks for one; a
real Chromium, and a served console before it."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from reading_desk import Desk, chromium, programs
from reading_room import draw, furnish
from selenium.webdriver import Chrome
from small_store import Clock, stock

from medq_ray.config import Review
from medq_ray.review.queue import Queue
from medq_ray.review.store import Store

NAMES = itertools.count()
START_SECONDS = 60


def binaries() -> Path | None:
    """Where initdb and postgres are: on the PATH, or where Debian puts them, the newest."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda place: int(place.parent.name))


def unprivileged() -> dict:
    """As whom the server runs: not as root, which it refuses."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    person = known.get("postgres") or known["nobody"]
    return {"user": person.pw_uid, "group": person.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a private cluster on a socket in a folder of its own, up to the database's name."""
    place = binaries()
    if place is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no PostgreSQL here: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="medq-pg-"))  # short: a socket's path has at most 107 characters
    person = unprivileged()
    if person:
        os.chown(folder, person["user"], person["group"])
    plain = {"cwd": folder, "env": {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}, **person}
    data = folder / "data"
    subprocess.run([place / "initdb", "-D", data, "-U", "medq", "-A", "trust", "--no-sync"], check=True,
                   stdout=subprocess.DEVNULL, **plain)  # fmt: skip
    options = ["-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen([place / "postgres", "-D", data, *options], stdout=log, stderr=log, **plain)
    try:
        _await(folder, server)
        yield f"postgresql://medq@/{{}}?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # does not wait for clients
        server.wait(START_SECONDS)
        shutil.rmtree(folder)


def _await(folder: Path, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(f"postgresql://medq@/postgres?host={folder}").close()
            return
        except psycopg.OperationalError:
            alive = server.poll() is None and time.monotonic() < deadline
            assert alive, f"PostgreSQL did not start: {(folder / 'log').read_text()}"
            time.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that is not there yet."""
    if request.param == "sqlite":
        return str(tmp_path / "review.db")
    addresses, name = request.getfixturevalue("postgres"), f"store{next(NAMES)}"
    with psycopg.connect(addresses.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return addresses.format(name)


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
