"""The review store's tables, and the statements of every request.

Items, leases, events and the audit log are only ever added to. Which verdict holds for an item is nowhere written down:
`OUTCOME` derives it from the events. What moves is `queue`, an index of who may be given what: its stage of an item is
what `OUTCOME` says, taken again with every event.
"""

from functools import cache

from sqlalchemy import (
    JSON, BindParameter, Boolean, Column, Double, ForeignKey, Index, Integer, MetaData, Select, Table, Text,
    UniqueConstraint, and_, bindparam, case, exists, func, select,
)  # fmt: skip

VERDICTS = ("accept", "edit", "reject")

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
    Column("colleague", ForeignKey("reviewers.name")),  # whose opinion a flag asks for, null for anybody's
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
    Column("given", Integer, nullable=False),  # reads in force
    Column("colleague", ForeignKey("reviewers.name")),  # for whom it is kept, null for anybody
    Index("queue_next", "stage", "iteration", "place"),
    Index("queue_patient", "patient"),
    Index("queue_held", "held_until"),
    Index("queue_left", "iteration", "stage", "given"),
    Index("queue_colleague", "colleague"),
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


def _outcome(item_id: BindParameter | None = None) -> Select:
    """The current view: {item_id, stage, event_id, given} of an item, or of all: the event whose verdict holds, null
    for none, and how many reads are in force. An adjudication holds before any read; reads hold when there are enough
    and they agree, the first of them."""
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
    given = func.coalesce(told.c.given, 0)
    enough = given >= items.c.reads
    done = and_(enough, told.c.low == told.c.high)
    stage = case((told.c.ruling.is_not(None), "done"), (done, "done"), (enough, "adjudicate"), else_="read")
    holds = case((told.c.ruling.is_not(None), told.c.ruling), (done, told.c.first))
    chosen = select(items.c.item_id, stage.label("stage"), holds.label("event_id"), given.label("given"))
    chosen = chosen.outerjoin(told, told.c.item_id == items.c.item_id)
    return chosen if item_id is None else chosen.where(items.c.item_id == item_id)


# Statements, each built once: to build one takes SQLAlchemy 0.1 to 2 ms, to run it SQLite 0.02 to 0.1.


def by(column: Column) -> Select:
    """Rows whose column is the parameter of its name."""
    return column.table.select().where(column == bindparam(column.name))


OUTCOMES = _outcome().order_by(items.c.item_id)
OUTCOME = _outcome(bindparam("item_id"))
ITEM = by(items.c.item_id)
PLACE = by(queue.c.item_id).with_for_update()
MOVE = queue.update().where(queue.c.item_id == bindparam("moved"))
LEASE = by(leases.c.token)
PERSON = by(reviewers.c.name)
PERSON_LOCKED = PERSON.with_for_update(key_share=True)
EVENTS = select(events, counts.label("counts")).order_by(events.c.event_id)
EVENTS_OF_ITEM = EVENTS.where(events.c.item_id == bindparam("item_id"))
EVENT = by(events.c.event_id)
UNDO_OF = by(events.c.undoes)
EVENT_UNDER = by(events.c.token).where(events.c.late.is_(False))
LAST_OF_PERSON = by(events.c.reviewer).where(counts).order_by(events.c.event_id.desc()).limit(1)
LAST_OF_ITEM = by(events.c.item_id).where(counts).order_by(events.c.event_id.desc()).limit(1)
HELD = (
    select(leases, queue.c.held_until)
    .join(queue, queue.c.token == leases.c.token)
    .where(queue.c.held_until > bindparam("now"), leases.c.reviewer == bindparam("reviewer"))
    .order_by(leases.c.token)
)
LAST_PATIENT = (
    select(items.c.patient)
    .join(leases, leases.c.item_id == items.c.item_id)
    .where(leases.c.reviewer == bindparam("reviewer"))
    .order_by(leases.c.token.desc())
    .limit(1)
)
HAS_HELD = select(
    exists().where(leases.c.reviewer == bindparam("reviewer"), leases.c.item_id == bindparam("item_id"))
)  # fmt: skip
COUNTED = (queue.c.iteration, queue.c.stage, queue.c.given)
LEFT = select(*COUNTED, func.count().label("items")).group_by(*COUNTED)
HELD_NOW = (
    select(queue.c.iteration, func.count().label("held"))
    .where(queue.c.held_until > bindparam("now"))
    .group_by(queue.c.iteration)
)


@cache
def next_place(stage: str, again: bool, lead: bool, asked: bool, of_patient: bool, apart: bool) -> Select:
    """The first free row of `queue`, as `Transaction.next_place` says; parameters: reviewer, now, patient."""
    me, now = bindparam("reviewer"), bindparam("now")
    own = and_(events.c.item_id == queue.c.item_id, events.c.reviewer == me, counts)
    chosen = queue.select().where(queue.c.stage == stage, queue.c.held_until <= now)
    if asked:
        chosen = chosen.where(queue.c.colleague == me)
    elif not (again and lead):
        there = exists().where(reviewers.c.name == queue.c.colleague, reviewers.c.active.is_(True))
        chosen = chosen.where(~there)
    if not (again or asked):
        chosen = chosen.where(~exists().where(own))
    elif stage == "read":  # the second reader is never the first
        final = VERDICTS if lead or asked else (*VERDICTS, "flag")
        chosen = chosen.where(~exists().where(own, events.c.action.in_(final)))
    if of_patient:
        chosen = chosen.where(queue.c.patient == bindparam("patient"))
    if apart:
        held = queue.alias("held")
        chosen = chosen.where(queue.c.patient.not_in(select(held.c.patient).where(held.c.held_until > now)))
    if again:
        last = select(func.max(events.c.event_id)).where(own).scalar_subquery()
        chosen = chosen.order_by(func.coalesce(last, 0))
    chosen = chosen.order_by(queue.c.iteration, queue.c.place, queue.c.item_id).limit(1)
    return chosen.with_for_update(skip_locked=True, of=queue)
