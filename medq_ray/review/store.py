"""The review store: what is to be reviewed, who holds it, and every verdict that was ever given.

SQLite by default, PostgreSQL by address, the same code. Items, leases, events and the audit log are only ever added to.
Which verdict holds for an item is nowhere written down: `_outcome` derives it from the events. What moves is `queue`,
an index of who may be given what: its stage of an item is `_outcome`'s answer, taken again with every event.

One store holds the reviews of one run. This module knows tables and statements, and is long because SQLAlchemy has one
home; the rules are in `queue.py`.

Migrations are our own: a number in the store and `STEPS` from each number to the next, since there is one line of
versions and nobody goes back. Alembic would add a dependency, an environment, a template and a second definition of
every table for what `_migrate` does in one transaction under a lock.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from sqlalchemy import (
    JSON, Boolean, Column, Connection, Double, Engine, ForeignKey, Index, Integer, MetaData, Table, Text,
    UniqueConstraint, and_, case, create_engine, event, exists, func, inspect, make_url, select,
)  # fmt: skip
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, OperationalError

VERSION = 1
STEPS: dict[int, tuple[str, ...]] = {}
"""Version -> the statements that make the next one of it, in SQL that both databases understand."""
ROLES = ("reviewer", "lead", "admin")
VERDICTS = ("accept", "edit", "reject")
BUSY_SECONDS = 30
"""How long a writer waits for others on SQLite; a transaction takes milliseconds."""
CONNECTIONS = 40
"""At most: as many as a server has threads that ask (Starlette: 40)."""
LARGEST = 2**31 - 1
"""Of the ids; who sends a larger one made it up."""
ALONE = 0x6D656471
"""PostgreSQL's advisory lock of whoever changes the store as a whole."""

tables = MetaData()
version = Table("version", tables, Column("version", Integer, nullable=False))
iterations = Table(
    "iterations",
    tables,
    Column("iteration", Integer, primary_key=True, autoincrement=False),
    Column("fingerprint", Text, nullable=False),  # of the finished step that annotated
    Column("annotations", Integer, nullable=False),  # that were not dropped; review rates are shares of them
    Column("closed_at", Double),  # when its verdicts were taken out for good
)
items = Table(
    "items",
    tables,
    Column("item_id", Integer, primary_key=True),
    Column("iteration", ForeignKey("iterations.iteration"), nullable=False),
    Column("question_id", Text, nullable=False),
    Column("image_id", Text, nullable=False),
    Column("patient", Text, nullable=False),  # hash, or the image where nobody knows whose it is
    Column("kind", Text, nullable=False),
    Column("before", Text, nullable=False),  # the label put forward
    Column("priority", Double, nullable=False),  # 0 to 2, the highest first
    Column("reads", Integer, nullable=False),  # reviewers who read it: 1, or 2 for a blind double read
    Column("payload", JSON, nullable=False),  # what the page shows (`handover.payload_of`)
    UniqueConstraint("iteration", "question_id"),
)
reviewers = Table(
    "reviewers",
    tables,
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("salt", Text, nullable=False),
    Column("digest", Text, nullable=False),  # of salt and token
)
leases = Table(
    "leases",
    tables,
    Column("token", Integer, primary_key=True),  # the fencing token: of an item's leases, a later one has a higher one
    Column("item_id", ForeignKey("items.item_id"), nullable=False),
    Column("reviewer", ForeignKey("reviewers.name"), nullable=False),
    Column("stage", Text, nullable=False),  # read | adjudicate
    Column("taken_at", Double, nullable=False),
    Index("leases_reviewer", "reviewer", "token"),
    Index("leases_item", "item_id", "reviewer"),
    sqlite_autoincrement=True,
)
events = Table(
    "events",
    tables,
    Column("event_id", Integer, primary_key=True),
    Column("item_id", ForeignKey("items.item_id"), nullable=False),
    Column("reviewer", ForeignKey("reviewers.name"), nullable=False),
    Column("token", ForeignKey("leases.token")),  # null for undo
    Column("stage", Text, nullable=False),  # the lease's
    Column("action", Text, nullable=False),  # accept | edit | reject | skip | flag | undo
    Column("reason", Text, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),  # '' where the action gives no label
    Column("meaning", Text, nullable=False),  # `labels.meaning` of after: two reads with equal ones agree
    Column("seconds", Double, nullable=False),  # the reviewer's active time
    Column("at", Double, nullable=False),  # seconds since 1970
    Column("late", Boolean, nullable=False),  # given when the lease was over: kept, but it does not count
    Column("undoes", ForeignKey("events.event_id"), unique=True),
    Index("events_item", "item_id", "reviewer"),
    Index("events_reviewer", "reviewer", "event_id"),
    sqlite_autoincrement=True,
)
one_a_lease = events.c.late.is_(False)
Index("events_one_a_lease", events.c.token, unique=True, sqlite_where=one_a_lease, postgresql_where=one_a_lease)
queue = Table(
    "queue",
    tables,
    Column("item_id", ForeignKey("items.item_id"), primary_key=True),
    Column("iteration", Integer, nullable=False),
    Column("place", Integer, nullable=False),  # from 1; 0 where a colleague asked for another look
    Column("patient", Text, nullable=False),
    Column("stage", Text, nullable=False),  # read | adjudicate | done
    Column("token", ForeignKey("leases.token")),  # of the last lease
    Column("held_until", Double, nullable=False),  # its end, 0 where it was given back
    Index("queue_next", "stage", "iteration", "place"),
    Index("queue_patient", "patient"),
    Index("queue_held", "held_until"),
)
audit = Table(
    "audit",
    tables,
    Column("audit_id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("reviewer", Text, nullable=False),  # as they called themselves: also who was refused is here
    Column("action", Text, nullable=False),
    Column("item_id", Integer),
    Column("detail", Text, nullable=False),
    sqlite_autoincrement=True,
)

undo = events.alias("undo")
counts = and_(
    events.c.late.is_(False), events.c.action != "undo", ~exists().where(undo.c.undoes == events.c.event_id)
)
"""Events in force: in time, and not undone."""


def _outcome(item_id: int | None = None):
    """The current view: {item_id, stage, event_id} of an item, or of all, with the event whose verdict holds, null for
    none. An adjudication holds before any read; reads hold when there are enough and they agree, the first of them."""
    read, ruled = (events.c.stage == stage for stage in ("read", "adjudicate"))
    verdicts = select(
        events.c.item_id,
        func.count(case((read, 1))).label("given"),
        func.min(case((read, events.c.meaning))).label("low"),
        func.max(case((read, events.c.meaning))).label("high"),
        func.min(case((read, events.c.event_id))).label("first"),
        func.max(case((ruled, events.c.event_id))).label("ruling"),
    ).where(counts, events.c.action.in_(VERDICTS))
    if item_id is not None:  # here too: SQLite would count all events for one item
        verdicts = verdicts.where(events.c.item_id == item_id)
    told = verdicts.group_by(events.c.item_id).subquery()
    enough = func.coalesce(told.c.given, 0) >= items.c.reads
    done = and_(enough, told.c.low == told.c.high)
    stage = case((told.c.ruling.is_not(None), "done"), (done, "done"), (enough, "adjudicate"), else_="read")
    holds = case((told.c.ruling.is_not(None), told.c.ruling), (done, told.c.first))
    chosen = select(items.c.item_id, stage.label("stage"), holds.label("event_id"))
    chosen = chosen.outerjoin(told, told.c.item_id == items.c.item_id)
    return chosen if item_id is None else chosen.where(items.c.item_id == item_id)


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
        it. Raises ConnectionError, one line, when the database is gone or busy for BUSY_SECONDS."""
        with self._turn, self._transaction(self._writer) as transaction:
            if alone and self._engine.name == "postgresql":  # SQLite has one writer at a time anyway
                transaction.connection.execute(select(func.pg_advisory_xact_lock(ALONE)))
            yield transaction

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

    def _rows(self, statement) -> list[dict]:
        return [dict(row) for row in self.connection.execute(statement).mappings()]

    def _row(self, statement) -> dict | None:
        row = self.connection.execute(statement).mappings().first()
        return None if row is None else dict(row)

    def _add(self, table: Table, row: dict) -> int:
        return self.connection.execute(table.insert().values(row)).inserted_primary_key[0]

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
             "patient": item["patient"], "token": None, "held_until": 0.0}
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
        return None if item_id > LARGEST else self._row(items.select().where(items.c.item_id == item_id))

    def items(self, columns: tuple[str, ...]) -> list[dict]:
        """These columns of all items."""
        return self._rows(select(*(items.c[name] for name in columns)).order_by(items.c.item_id))

    def outcomes(self) -> list[dict]:
        """The current view of every item, as `_outcome` says."""
        return self._rows(_outcome().order_by(items.c.item_id))

    def events(self, item_id: int | None = None) -> list[dict]:
        """Of an item, or all, as they came, each with `counts`."""
        chosen = select(events, counts.label("counts")).order_by(events.c.event_id)
        return self._rows(chosen if item_id is None else chosen.where(events.c.item_id == item_id))

    def add_event(self, row: dict) -> int:
        return self._add(events, row)

    def event_under(self, token: int) -> dict | None:
        """The event that was given under a lease in time."""
        return self._row(events.select().where(events.c.token == token, events.c.late.is_(False)))

    def last_event(self, reviewer: str) -> dict | None:
        """A reviewer's last event in force."""
        own = events.select().where(events.c.reviewer == reviewer, counts)
        return self._row(own.order_by(events.c.event_id.desc()).limit(1))

    def place(self, item_id: int) -> dict:
        """An item's row of `queue`, locked until the transaction ends."""
        return self._row(queue.select().where(queue.c.item_id == item_id).with_for_update())

    def next_place(
        self, reviewer: str, stage: str, now: float, *, again: bool = False, lead: bool = False,
        patient: str | None = None, apart: bool = False,
    ) -> dict | None:  # fmt: skip
        """The first free row of `queue` at a stage, locked; rows that others are looking at are passed over.

        Of items that the reviewer has not dealt with or, with `again`, of those that they skipped (a lead: or flagged;
        to adjudicate: or read), the longest ago first. patient: of this one only; apart: of none whom somebody holds.
        """
        own = and_(events.c.item_id == queue.c.item_id, events.c.reviewer == reviewer, counts)
        chosen = queue.select().where(queue.c.stage == stage, queue.c.held_until <= now)
        if not again:
            chosen = chosen.where(~exists().where(own))
        elif stage == "read":  # the second reader is never the first
            final = VERDICTS if lead else (*VERDICTS, "flag")
            chosen = chosen.where(~exists().where(own, events.c.action.in_(final)))
        if patient is not None:
            chosen = chosen.where(queue.c.patient == patient)
        if apart:
            held = queue.alias("held")
            chosen = chosen.where(queue.c.patient.not_in(select(held.c.patient).where(held.c.held_until > now)))
        if again:
            chosen = chosen.order_by(select(func.max(events.c.event_id)).where(own).scalar_subquery())
        chosen = chosen.order_by(queue.c.iteration, queue.c.place, queue.c.item_id).limit(1)
        return self._row(chosen.with_for_update(skip_locked=True, of=queue))

    def left(self, now: float) -> list[dict]:
        """Rows {iteration, stage, begun, items, held}: begun: 1 where one of two reads is there."""
        read = exists().where(events.c.item_id == queue.c.item_id, events.c.action.in_(VERDICTS), counts)
        begun = case((and_(queue.c.stage == "read", read), 1), else_=0).label("begun")
        held = case((queue.c.held_until > now, 1), else_=0).label("held")
        rows = select(queue.c.iteration, queue.c.stage, begun, held).subquery()
        group = (rows.c.iteration, rows.c.stage, rows.c.begun)
        sums = (func.count().label("items"), func.sum(rows.c.held).label("held"))
        return self._rows(select(*group, *sums).group_by(*group).order_by(*group))

    def add_lease(self, row: dict, until: float) -> int:
        """Lease an item whose row of `queue` is locked; the fencing token."""
        token = self._add(leases, row)
        self.hold(row["item_id"], until, token=token)
        return token

    def hold(self, item_id: int, until: float, **columns) -> None:
        """Set the end of an item's last lease (0: given back) and other columns of `queue`."""
        changed = {"held_until": until} | columns
        self.connection.execute(queue.update().where(queue.c.item_id == item_id).values(changed))

    def settle(self, item_id: int) -> None:
        """Let the queue know what the events of an item say now."""
        stage = self._row(_outcome(item_id))["stage"]
        self.connection.execute(queue.update().where(queue.c.item_id == item_id).values(stage=stage))

    def lease(self, token: int) -> dict | None:
        return None if token > LARGEST else self._row(leases.select().where(leases.c.token == token))

    def held(self, reviewer: str, now: float) -> list[dict]:
        """A reviewer's leases in force, oldest first, with `held_until`."""
        joined = select(leases, queue.c.held_until).join(queue, queue.c.token == leases.c.token)
        own = joined.where(queue.c.held_until > now, leases.c.reviewer == reviewer)
        return self._rows(own.order_by(leases.c.token))

    def last_patient(self, reviewer: str) -> str | None:
        """Whose item a reviewer leased last."""
        joined = select(items.c.patient).join(leases, leases.c.item_id == items.c.item_id)
        own = joined.where(leases.c.reviewer == reviewer).order_by(leases.c.token.desc()).limit(1)
        return self.connection.execute(own).scalar()

    def has_held(self, reviewer: str, item_id: int) -> bool:
        own = exists().where(leases.c.reviewer == reviewer, leases.c.item_id == item_id)
        return self.connection.execute(select(own)).scalar()

    def add_reviewer(self, row: dict) -> None:
        self.connection.execute(reviewers.insert(), row)

    def reviewer(self, name: str, lock: bool = False) -> dict | None:
        """lock: nothing else is done in this reviewer's name until the transaction ends."""
        chosen = reviewers.select().where(reviewers.c.name == name)
        return self._row(chosen.with_for_update(key_share=True) if lock else chosen)

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
    connection.execute("PRAGMA synchronous = FULL")  # a verdict outlives a power cut, not only a killed process


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
        tables.create_all(connection)
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
