"""The review store: what is to be reviewed, who holds it, and every verdict that was ever given.

SQLite by default, PostgreSQL by address, the same code. One store holds the reviews of one run. Here is how it is
opened and what is asked of it; tables and statements are in `tables.py`, the rules in `queue.py`.

Migrations are our own: a number in the store and `STEPS` from each number to the next, since there is one line of
versions and nobody goes back. Alembic would add a dependency, an environment, a template and a second definition of
every table for what `_migrate` does in one transaction under a lock.
"""

import itertools
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from sqlalchemy import Connection, Engine, Table, create_engine, event, func, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, OperationalError

from medq_ray.review import tables as t
from medq_ray.review.tables import audit, events, items, iterations, leases, queue, reviewers, version

VERSION = 2
STEPS: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE events ADD COLUMN colleague TEXT REFERENCES reviewers (name)",
        "ALTER TABLE queue ADD COLUMN colleague TEXT REFERENCES reviewers (name)",
        "ALTER TABLE queue ADD COLUMN given INTEGER NOT NULL DEFAULT 0",
        "UPDATE queue SET given = (SELECT count(*) FROM events WHERE events.item_id = queue.item_id "
        "AND NOT events.late AND events.stage = 'read' AND events.action IN ('accept', 'edit', 'reject') "
        "AND NOT EXISTS (SELECT * FROM events AS undo WHERE undo.undoes = events.event_id))",
        "CREATE INDEX queue_left ON queue (iteration, stage, given)",
        "CREATE INDEX queue_colleague ON queue (colleague)",
    ),
}
"""Version -> the statements that make the next one of it, in SQL that both databases understand."""
ROLES = ("reviewer", "lead", "admin")
BUSY_SECONDS = 30
"""How long a writer waits for others on SQLite; a transaction takes milliseconds."""
CONNECTIONS = 40
"""At most: as many as a server has threads that ask (Starlette: 40)."""
LARGEST = 2**31 - 1
"""Of the ids, from 1; who sends another made it up, and no database takes numbers of any size."""
ALONE = 0x6D656471
"""PostgreSQL's advisory lock of whoever changes the store as a whole."""


class Disk:
    """What makes SQLite's write-ahead log outlive a power cut. Who comes while a `flush` is under way shares the next
    one with all others who wait; SQLite's own (synchronous = FULL: 1 ms, now and then 6) would have each writer wait
    for it alone, with the lock of all in hand."""

    def __init__(self, file: str):
        self.log, self.lock, self.tickets, self.flushed = f"{file}-wal", threading.Lock(), itertools.count(1), 0

    def flush(self) -> None:
        """Return when what was committed before is on the disk. Raises OSError."""
        mine = next(self.tickets)
        with self.lock:
            if self.flushed > mine:
                return
            latest = next(self.tickets)
            descriptor = os.open(self.log, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self.flushed = latest


class Store:
    """An open store. Threads may share one; processes open their own."""

    def __init__(self, address: str | Path):
        """address: a file for SQLite, made where there is none, or postgresql://USER:PASSWORD@HOST/DATABASE.

        An older store is brought up to date. Raises ValueError for a store of a newer medq_ray and for what is no
        store, ConnectionError when the database cannot be reached.
        """
        url = _url(address)
        self.address = url.render_as_string(hide_password=True)
        file = url.get_backend_name() == "sqlite"
        if file:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        self._engine = create_engine(url, pool_size=8, max_overflow=CONNECTIONS - 8, pool_pre_ping=not file)
        self._reader = self._engine if file else self._engine.execution_options(isolation_level="REPEATABLE READ")
        self._writer = self._engine.execution_options(writing=True)
        # SQLite's writers wait for each other by sleeping up to 0.1 s; those of one process queue up here instead.
        self._turn: AbstractContextManager = threading.Lock() if file else nullcontext()
        self._disk = Disk(url.database) if file else None  # PostgreSQL has its own
        if file:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        try:
            with self.writing(alone=True) as transaction:
                _migrate(transaction.connection, self.address)
        except DatabaseError as error:
            self.close()
            raise ValueError(f"{self.address}: not a review store ({error.orig})") from error
        except (ValueError, OSError):
            self.close()
            raise

    def close(self) -> None:
        self._engine.dispose()

    def reading(self) -> AbstractContextManager["Transaction"]:
        """A transaction that sees the store as it is at one moment. Raises ConnectionError as `writing`."""
        return self._transaction(self._reader)

    @contextmanager
    def writing(self, alone: bool = False) -> Iterator["Transaction"]:
        """A transaction that is there as a whole or not at all when the block ends; alone: no other such runs beside
        it. Then it is also on the disk. Raises ConnectionError, one line, when the database is gone or busy for
        BUSY_SECONDS."""
        with self._turn, self._transaction(self._writer) as transaction:
            if alone and self._engine.name == "postgresql":  # SQLite has one writer at a time anyway
                transaction.connection.execute(select(func.pg_advisory_xact_lock(ALONE)))
            yield transaction
        if self._disk:
            try:
                self._disk.flush()
            except OSError as error:
                raise ConnectionError(f"review store {self.address}: {error.strerror}; what was under way may not "
                                      "outlive a power cut") from error  # fmt: skip

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator["Transaction"]:
        try:
            with engine.begin() as connection:
                yield Transaction(connection)
        except (OperationalError, InterfaceError) as error:
            why = " ".join(str(error.orig).split())
            raise ConnectionError(f"review store {self.address}: {why}; what was under way is not written") from error


class Transaction:
    """The statements, on one connection. Rows come back as dicts with the tables' columns."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def _rows(self, statement, **values) -> list[dict]:
        return [dict(row) for row in self.connection.execute(statement, values).mappings()]

    def _row(self, statement, **values) -> dict | None:
        row = self.connection.execute(statement, values).mappings().first()
        return None if row is None else dict(row)

    def _add(self, table: Table, row: dict) -> int:
        return self.connection.execute(table.insert(), row).inserted_primary_key[0]

    def add_iteration(self, row: dict, found: list[dict]) -> None:
        """An iteration and its items, in the order in which they are to be reviewed."""
        self.connection.execute(iterations.insert(), row)
        if not found:
            return
        self.connection.execute(items.insert(), found)
        numbered = select(items.c.item_id, items.c.question_id).where(items.c.iteration == row["iteration"])
        ids = {question_id: item_id for item_id, question_id in self.connection.execute(numbered)}
        places = [
            {"item_id": ids[item["question_id"]], "iteration": row["iteration"], "place": place, "stage": "read",
             "patient": item["patient"], "token": None, "held_until": 0.0, "given": 0, "colleague": None}
            for place, item in enumerate(found, 1)
        ]  # fmt: skip
        self.connection.execute(queue.insert(), places)

    def iteration(self, number: int) -> dict | None:
        return self._row(iterations.select().where(iterations.c.iteration == number))

    def iterations(self) -> list[dict]:
        return self._rows(iterations.select().order_by(iterations.c.iteration))

    def close_iteration(self, number: int, at: float) -> None:
        self.connection.execute(iterations.update().where(iterations.c.iteration == number).values(closed_at=at))

    def item(self, item_id: int) -> dict | None:
        return self._row(t.ITEM, item_id=item_id) if 0 < item_id <= LARGEST else None

    def items(self, columns: tuple[str, ...]) -> list[dict]:
        """These columns of all items."""
        return self._rows(select(*(items.c[name] for name in columns)).order_by(items.c.item_id))

    def outcomes(self) -> list[dict]:
        """The current view of every item: {item_id, stage, event_id: whose verdict holds, or None, given: reads}."""
        return self._rows(t.OUTCOMES)

    def events(self, item_id: int | None = None) -> list[dict]:
        """Of an item, or all, as they came, each with `counts`."""
        return self._rows(t.EVENTS) if item_id is None else self._rows(t.EVENTS_OF_ITEM, item_id=item_id)

    def add_event(self, row: dict) -> int:
        return self._add(events, row)

    def event_under(self, token: int) -> dict | None:
        """The event that was given under a lease in time."""
        return self._row(t.EVENT_UNDER, token=token)

    def event(self, event_id: int) -> dict | None:
        """With `undone`."""
        found = self._row(t.EVENT, event_id=event_id) if 0 < event_id <= LARGEST else None
        return found and found | {"undone": self._row(t.UNDO_OF, undoes=event_id) is not None}

    def last_event(self, reviewer: str) -> dict | None:
        """A reviewer's last event in force."""
        return self._row(t.LAST_OF_PERSON, reviewer=reviewer)

    def place(self, item_id: int) -> dict:
        """An item's row of `queue`, locked until the transaction ends."""
        return self._row(t.PLACE, item_id=item_id)

    def next_place(
        self, reviewer: str, stage: str, now: float, *, asked: bool = False, again: bool = False, lead: bool = False,
        patient: str | None = None, apart: bool = False,
    ) -> dict | None:  # fmt: skip
        """The first free row of `queue` at a stage, locked; rows that others are looking at are passed over.

        Of items that the reviewer has not dealt with; with `asked`, of those that are kept for them; with `again`, of
        those that they skipped (a lead: or flagged, or that are kept for others; to adjudicate: or read), the longest
        ago first. patient: of this one only; apart: of none whom somebody holds.
        """
        chosen = t.next_place(stage, again, lead, asked, patient is not None, apart)
        parameters = {"reviewer": reviewer, "now": now} | ({} if patient is None else {"patient": patient})
        return self._row(chosen, **parameters)

    def left(self) -> list[dict]:
        """Rows {iteration, stage, given: how many reads are in force, items}."""
        return self._rows(t.LEFT)

    def held_now(self, now: float) -> list[dict]:
        """Rows {iteration, held}: how many items somebody holds."""
        return self._rows(t.HELD_NOW, now=now)

    def add_lease(self, row: dict, until: float) -> int:
        """Lease an item whose row of `queue` is locked; the fencing token."""
        token = self._add(leases, row)
        self._move(row["item_id"], token=token, held_until=until)
        return token

    def hold(self, item_id: int, until: float) -> None:
        """Set the end of an item's last lease (0: given back)."""
        self._move(item_id, held_until=until)

    def to_front(self, item_id: int) -> None:
        self._move(item_id, place=0)

    def settle(self, item_id: int) -> None:
        """Let the queue know what the events of an item say now. It is kept for a colleague as long as the last event
        in force is a flag that names them."""
        found, last = self._row(t.OUTCOME, item_id=item_id), self._row(t.LAST_OF_ITEM, item_id=item_id)
        colleague = last and last["colleague"]
        self._move(item_id, stage=found["stage"], given=found["given"], colleague=colleague)

    def _move(self, item_id: int, **columns) -> None:
        self.connection.execute(t.MOVE, {"moved": item_id} | columns)

    def lease(self, token: int) -> dict | None:
        return self._row(t.LEASE, token=token) if 0 < token <= LARGEST else None

    def held(self, reviewer: str, now: float) -> list[dict]:
        """A reviewer's leases in force, oldest first, with `held_until`."""
        return self._rows(t.HELD, reviewer=reviewer, now=now)

    def last_patient(self, reviewer: str) -> str | None:
        """Whose item a reviewer leased last."""
        return self.connection.execute(t.LAST_PATIENT, {"reviewer": reviewer}).scalar()

    def has_held(self, reviewer: str, item_id: int) -> bool:
        return self.connection.execute(t.HAS_HELD, {"reviewer": reviewer, "item_id": item_id}).scalar()

    def add_reviewer(self, row: dict) -> None:
        self.connection.execute(reviewers.insert(), row)

    def reviewer(self, name: str, lock: bool = False) -> dict | None:
        """lock: nothing else is done in this reviewer's name until the transaction ends."""
        return self._row(t.PERSON_LOCKED if lock else t.PERSON, name=name)

    def reviewers(self) -> list[dict]:
        return self._rows(reviewers.select().order_by(reviewers.c.name))

    def change_reviewer(self, name: str, columns: dict) -> None:
        self.connection.execute(reviewers.update().where(reviewers.c.name == name).values(columns))

    def log(self, at: float, reviewer: str, action: str, item_id: int | None = None, detail: str = "") -> None:
        """Add a line to the audit log. Names and details may be a stranger's: what no database takes is replaced."""
        reviewer, detail = (part.encode(errors="replace").decode().replace("\0", "?") for part in (reviewer, detail))
        self._add(audit, {"at": at, "reviewer": reviewer, "action": action, "item_id": item_id, "detail": detail})

    def logged(self, since: int = 0) -> list[dict]:
        """The audit log after the line with id `since`."""
        return self._rows(audit.select().where(audit.c.audit_id > since).order_by(audit.c.audit_id))


def _url(address: str | Path):
    """SQLAlchemy's URL of an address. Raises ValueError for other databases."""
    if "://" not in str(address):
        return make_url("sqlite://").set(database=str(address))
    try:
        url = make_url(str(address))
    except (ArgumentError, ValueError) as error:  # the second is its own, of a port
        raise ValueError("the review store's address cannot be read; expected postgresql://HOST/DATABASE") from error
    if url.get_backend_name() != "postgresql":
        raise ValueError(f"review store {url.drivername}://: expected a file or postgresql://HOST/DATABASE")
    return url.set(drivername="postgresql+psycopg")


def _prepare_sqlite(connection, _record) -> None:
    connection.isolation_level = None  # the driver begins no transactions of its own: `_begin_sqlite` does
    connection.execute(f"PRAGMA busy_timeout = {1000 * BUSY_SECONDS}")
    connection.execute("PRAGMA foreign_keys = ON")
    _to_wal(connection)
    connection.execute("PRAGMA synchronous = NORMAL")  # `Disk.flush` is what makes a verdict outlive a power cut


def _to_wal(connection: sqlite3.Connection) -> None:
    """Let readers not wait for the writer. Who opens a new store while another does so is told at once that it is
    locked: this one statement does not heed busy_timeout."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes the lock at once: two that read first and write then would have to be undone."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writing") else "BEGIN")


def _migrate(connection: Connection, address: str) -> None:
    """Make the tables, or bring them up to date. Raises ValueError for those of a newer medq_ray."""
    if not inspect(connection).has_table(version.name):
        t.tables.create_all(connection)
        connection.execute(version.insert(), {"version": VERSION})
        return
    found = connection.execute(select(version.c.version)).scalar_one()
    if found > VERSION:
        raise ValueError(f"{address}: made by a newer medq_ray (version {found}, this one knows {VERSION}): update it")
    for number in range(found, VERSION):
        for statement in STEPS[number]:
            connection.exec_driver_sql(statement)
    if found < VERSION:
        connection.execute(version.update().values(version=VERSION))
