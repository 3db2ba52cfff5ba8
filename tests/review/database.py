"""A real PostgreSQL: a private cluster in a folder of its own, for tests and for the benchmark of the console."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

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


@contextmanager
def cluster(place: Path, *options: str) -> Iterator[str]:
    """The address of a cluster up to the database's name: a format string; options: of the server, besides its own."""
    folder = Path(tempfile.mkdtemp(prefix="medq-pg-"))  # short: a socket's path has at most 107 characters
    person = unprivileged()
    if person:
        os.chown(folder, person["user"], person["group"])
    plain = {"cwd": folder, "env": {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}, **person}
    data = folder / "data"
    subprocess.run([place / "initdb", "-D", data, "-U", "medq", "-A", "trust", "--no-sync"], check=True,
                   stdout=subprocess.DEVNULL, **plain)  # fmt: skip
    own = ["-k", folder, "-c", "listen_addresses="]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen([place / "postgres", "-D", data, *own, *options], stdout=log, stderr=log, **plain)
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


def create(addresses: str, name: str) -> str:
    """The address of a new, empty database."""
    with psycopg.connect(addresses.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return addresses.format(name)
