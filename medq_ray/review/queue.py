"""Who reads what, and what becomes of it: leases, verdicts, blind double reads, adjudication.

An item is held by at most one reviewer, for `lease_minutes` after the last sign of life. Each lease has a fencing
token, higher than those of all leases of that item before it; a verdict names the token it was read under and counts
only while that lease is the item's last one and is not over. A verdict that comes too late is kept as an event all the
same. An item is done when it has as many verdicts in force as it needs reads and these agree; where two reads disagree,
a lead decides.

Every method is one transaction, whole or not at all. PermissionError: this reviewer may not do that; ValueError: what
was sent cannot be used; ConnectionError: the database cannot be reached, and nothing was written.
"""

import math
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from medq_ray.config import Review
from medq_ray.labels import readable
from medq_ray.review.accounts import NAME
from medq_ray.review.labels import meaning
from medq_ray.review.store import Store, Transaction
from medq_ray.review.tables import VERDICTS

LEADS = ("lead", "admin")
"""Roles that adjudicate, and may look at any item."""
HELD = 2
"""Items that a reviewer may hold: the one on the screen, and the next, whose image is being fetched."""
LONGEST = 4000
"""Characters of a label or a reason."""


@dataclass(frozen=True)
class Lease:
    """An item in a reviewer's hands."""

    token: int
    """Goes with everything that is sent about the item."""
    item_id: int
    stage: str
    """read | adjudicate"""
    taken_at: float
    """Seconds since 1970."""
    until: float
    """Its end, if nothing is heard; seconds since 1970."""
    payload: dict
    """What there is to see (`handover.payload_of`)."""
    before: str
    """The label put forward."""
    notes: list[dict] = field(default_factory=list)
    """{reviewer, colleague: whom they ask, or None, reason} of colleagues who flagged it."""
    reads: list[dict] = field(default_factory=list)
    """When adjudicating {reviewer, action, after, reason} of the reads that disagree; else nothing: reads are blind."""


@dataclass(frozen=True)
class Given:
    """An event as it was written."""

    event_id: int
    counts: bool
    why: str
    """Why it does not count, '' if it does."""


class Queue:
    def __init__(self, store: Store, settings: Review, now: Callable[[], float] = time.time):
        """now: seconds since 1970. Of the settings lease_minutes and patients_together are used."""
        self.store, self.settings, self.now = store, settings, now

    def lease(self, reviewer: str, after: int | None = None) -> Lease | None:
        """The item to read now, None when there is nothing for this reviewer; after: the one after that of this token.

        What the reviewer holds already comes first, so that a page that is loaded again shows the same item. New ones
        come by priority, for a lead adjudications before all. What they skipped comes again when nothing else is left.
        Raises PermissionError, also when they hold HELD items, all up to `after`.
        """
        now = self.now()
        with self.store.writing() as transaction:
            person = _acting(transaction, reviewer)
            held = transaction.held(reviewer, now)
            waiting = [lease for lease in held if after is None or lease["token"] > after]
            if waiting:
                return _shown(transaction, waiting[0])
            if len(held) >= HELD:
                raise PermissionError(f"{reviewer} holds {len(held)} items already: decide, skip or release one")
            place = self._choose(transaction, person, now)
            return None if place is None else self._take(transaction, reviewer, place, now)

    def renew(self, reviewer: str, token: int) -> float | None:
        """The sign of life: the lease's new end in seconds since 1970, None when it is over and cannot be had again. A
        lease that ran out is renewed if nobody has taken the item since."""
        now = self.now()
        with self.store.writing() as transaction:
            lease, place = _own(transaction, reviewer, token)
            if not _last(lease, place):
                return None
            until = self._end(now)
            transaction.hold(lease["item_id"], until)
            return until

    def release(self, reviewer: str, token: int) -> None:
        """Give an item back unread; nothing happens if the lease is over."""
        with self.store.writing() as transaction:
            lease, place = _own(transaction, reviewer, token)
            if _last(lease, place):
                transaction.hold(lease["item_id"], 0.0)
                transaction.log(self.now(), reviewer, "release", lease["item_id"], f"lease {token}")

    def verdict(
        self, reviewer: str, token: int, action: str, *, seconds: float, after: str = "", reason: str = ""
    ) -> Given:
        """Accept, edit (into the label `after`) or reject (for a `reason`) the item of a lease; seconds: active time,
        of which no more is believed than has passed since the lease began.

        The same verdict sent again is the same event. Raises ValueError for another action, an edit that changes
        nothing or that training could not read, an unreadable label that is accepted, a rejection without a reason.
        """
        if action not in VERDICTS:
            raise ValueError(f"action {action!r}: expected {', '.join(VERDICTS)}")
        return self._give(reviewer, token, action, seconds, _text("after", after), _text("reason", reason))

    def skip(self, reviewer: str, token: int, reason: str, *, seconds: float) -> Given:
        """Leave the item of a lease to others, for a reason; it comes back only when nothing else is left."""
        return self._give(reviewer, token, "skip", seconds, "", _text("reason", reason))

    def flag(
        self, reviewer: str, token: int, reason: str, *, seconds: float, colleague: str | None = None
    ) -> Given:
        """Ask for a colleague's opinion, this one's or anybody's: the item goes to the front of the queue, with the
        reason as a note, and comes back to this reviewer only if they are a lead and nothing else is left.

        Who is named is given it before all else, and nobody else is until they have dealt with it or are dismissed, but
        a lead for whom nothing else is left. Raises ValueError for who may not review it, or has read it.
        """
        return self._give(reviewer, token, "flag", seconds, "", _text("reason", reason), colleague)

    def colleagues(self, reviewer: str) -> list[dict]:
        """{name, role} of all others who may review."""
        with self.store.reading() as transaction:
            return [{key: person[key] for key in ("name", "role")} for person in transaction.reviewers()
                    if person["active"] and person["name"] != reviewer]  # fmt: skip

    def undo(self, reviewer: str, event_id: int | None = None) -> Lease | None:
        """Take one's last verdict, skip or flag back, and have its item again; None when colleagues have it, or one
        was asked about it since. event_id: which one that is; where it is taken back already, as by a request whose
        reply was lost, no other is.

        Raises ValueError when there is nothing to undo, that event is not the last, a lead has taken the item up, or
        the iteration is closed.
        """
        now = self.now()
        with self.store.writing(alone=True) as transaction:  # so that no iteration closes meanwhile
            person = _acting(transaction, reviewer)
            last = transaction.last_event(reviewer)
            meant = None if event_id is None else transaction.event(event_id)
            if meant and meant["reviewer"] == reviewer and meant["undone"]:
                own = (lease for lease in transaction.held(reviewer, now) if lease["item_id"] == meant["item_id"])
                return next((_shown(transaction, lease) for lease in own), None)
            if last is None:
                raise ValueError(f"{reviewer} has nothing to undo")
            if event_id not in (None, last["event_id"]):
                raise ValueError(f"event {event_id} is not the last that {reviewer} gave: it stays")
            item_id = last["item_id"]
            iteration = transaction.item(item_id)["iteration"]
            if transaction.iteration(iteration)["closed_at"] is not None:
                raise ValueError(f"item {item_id}: the review of iteration {iteration} is closed")
            place = transaction.place(item_id)
            holder = transaction.lease(place["token"]) if place["held_until"] > now else None
            taken = holder is not None and holder["reviewer"] != reviewer
            if last["stage"] == "read" and last["action"] in VERDICTS:
                ruled = any(e["counts"] and e["stage"] == "adjudicate" and e["action"] in VERDICTS
                            for e in transaction.events(item_id))  # fmt: skip
                if ruled or (taken and holder["stage"] == "adjudicate"):
                    raise ValueError(f"item {item_id}: a lead has taken it up; tell them")
            row = {"item_id": item_id, "reviewer": reviewer, "token": None, "stage": last["stage"], "action": "undo",
                   "reason": "", "before": last["after"], "after": "", "meaning": "", "seconds": 0.0, "at": now,
                   "late": False, "undoes": last["event_id"], "colleague": None}  # fmt: skip
            event_id = transaction.add_event(row)
            transaction.settle(item_id)
            transaction.log(now, reviewer, "undo", item_id, f"event {event_id} undoes {last['event_id']}")
            place = transaction.place(item_id)
            kept = place["colleague"] not in (None, reviewer) and person["role"] not in LEADS
            if taken or kept or place["stage"] != last["stage"]:  # others have read on after a skip
                return None
            return self._take(transaction, reviewer, place, now)

    def left(self) -> dict[int, dict[str, int]]:
        """Iteration -> how many items are {unread, second (one of two reads is there), adjudicate, done}, and how many
        of the first three somebody holds {held}."""
        with self.store.reading() as transaction:
            rows, known = transaction.left(), transaction.iterations()
            held = transaction.held_now(self.now())
        names = ("unread", "second", "adjudicate", "done", "held")
        found = {row["iteration"]: dict.fromkeys(names, 0) for row in known}
        for row in rows:
            name = row["stage"] if row["stage"] != "read" else "second" if row["given"] else "unread"
            found[row["iteration"]][name] += row["items"]
        for row in held:
            found[row["iteration"]]["held"] = row["held"]
        return found

    def may_see(self, reviewer: str, item_id: int) -> bool:
        """Whether they may be shown the item's images: leads, and those who hold or held it."""
        with self.store.reading() as transaction:
            person = transaction.reviewer(reviewer)
            known = person is not None and person["active"] and transaction.item(item_id) is not None
            return known and (person["role"] in LEADS or transaction.has_held(reviewer, item_id))

    def _choose(self, transaction: Transaction, person: dict, now: float) -> dict | None:
        """The first that there is of: what a colleague asks them about, adjudications, the patient whom they saw last,
        one whom nobody else sees, any, and what they skipped."""
        lead = person["role"] in LEADS
        reads: list[dict] = [{}]
        if self.settings.patients_together:
            patient = transaction.last_patient(person["name"])
            reads = [{"patient": patient}] * (patient is not None) + [{"apart": True}, {}]
        asked, again = {"asked": True}, {"again": True, "lead": lead}
        tries = [("read", wanted) for wanted in (*reads, again)]
        if lead:
            tries = [("adjudicate", asked), ("adjudicate", {}), *tries, ("adjudicate", again)]
        tries = [("read", asked), *tries]
        found = (transaction.next_place(person["name"], stage, now, **wanted) for stage, wanted in tries)
        return next((place for place in found if place is not None), None)

    def _take(self, transaction: Transaction, reviewer: str, place: dict, now: float) -> Lease:
        row = {"item_id": place["item_id"], "reviewer": reviewer, "stage": place["stage"], "taken_at": now}
        until = self._end(now)
        token = transaction.add_lease(row, until)
        transaction.log(now, reviewer, "lease", place["item_id"], f"lease {token}")
        return _shown(transaction, row | {"token": token, "held_until": until})

    def _end(self, now: float) -> float:
        return now + 60 * self.settings.lease_minutes

    def _give(
        self, reviewer: str, token: int, action: str, seconds: float, after: str, reason: str,
        colleague: str | None = None,
    ) -> Given:  # fmt: skip
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"seconds {seconds!r}: expected a number of 0 or more")
        if action not in ("accept", "edit") and not reason:
            raise ValueError(f"{action} needs a reason")
        now = self.now()
        with self.store.writing() as transaction:
            lease, place = _own(transaction, reviewer, token)
            item = transaction.item(lease["item_id"])
            after, meant = _label(item, action, after)
            row = {"item_id": item["item_id"], "reviewer": reviewer, "token": token, "stage": lease["stage"],
                   "action": action, "reason": reason, "before": item["before"], "after": after, "meaning": meant,
                   "seconds": min(seconds, max(0.0, now - lease["taken_at"])), "at": now, "undoes": None,
                   "colleague": colleague}  # fmt: skip
            known = transaction.event_under(token)
            if known and all(known[name] == row[name] for name in ("action", "reason", "after", "colleague")):
                return Given(known["event_id"], True, "")
            if colleague is not None:
                _check_colleague(transaction, lease, colleague)
            why = _over(lease, place, now)
            row["event_id"] = transaction.add_event(row | {"late": bool(why)})
            if not why:
                transaction.hold(item["item_id"], 0.0)
                if action == "flag":
                    transaction.to_front(item["item_id"])
                transaction.settle(item["item_id"])
            detail = f"event {row['event_id']} under lease {token}"
            transaction.log(now, reviewer, action, item["item_id"], f"{detail}, {why}" if why else detail)
            return Given(row["event_id"], not why, why)


def _acting(transaction: Transaction, reviewer: str) -> dict:
    """The reviewer's row, locked: what is done in one name is done one by one. Raises PermissionError for nobody."""
    person = transaction.reviewer(reviewer, lock=True)
    if person is None or not person["active"]:
        raise PermissionError(f"{reviewer!r} is no reviewer here")
    return person


def _own(transaction: Transaction, reviewer: str, token: int) -> tuple[dict, dict]:
    """A lease of the reviewer's, in force or not, and its item's row of the queue, locked. Raises PermissionError for
    any other: whether there is such a lease is nobody else's business."""
    _acting(transaction, reviewer)
    lease = transaction.lease(token)
    if lease is None or lease["reviewer"] != reviewer:
        raise PermissionError(f"lease {token} is not {reviewer}'s")
    return lease, transaction.place(lease["item_id"])


def _check_colleague(transaction: Transaction, lease: dict, name: str) -> None:
    """Raises ValueError unless this colleague of the lease's holder can give an opinion on its item."""
    person = transaction.reviewer(name) if NAME.fullmatch(name) else None  # PostgreSQL takes no NUL even in a question
    if name == lease["reviewer"]:
        raise ValueError("a flag asks a colleague, not oneself")
    if person is None or not person["active"]:
        raise ValueError(f"{name!r} is no reviewer here")
    if lease["stage"] == "adjudicate" and person["role"] not in LEADS:
        raise ValueError(f"{name} is no lead: leads adjudicate")
    if lease["stage"] == "read" and any(event["counts"] and event["reviewer"] == name and event["action"] in VERDICTS
                                        for event in transaction.events(lease["item_id"])):  # fmt: skip
        raise ValueError(f"{name} has read this item already")


def _last(lease: dict, place: dict) -> bool:
    """Whether nobody has had the item since, and it was not given back."""
    return place["token"] == lease["token"] and place["held_until"] > 0


def _over(lease: dict, place: dict, now: float) -> str:
    """Why a lease is over, '' if it is not."""
    if place["token"] != lease["token"]:
        return "somebody has taken the item since"
    if place["held_until"] == 0:
        return "the lease was given back"
    return "" if now < place["held_until"] else "the lease had run out"


def _shown(transaction: Transaction, lease: dict) -> Lease:
    """What the holder of a lease may see."""
    item = transaction.item(lease["item_id"])
    told = [event for event in transaction.events(lease["item_id"]) if event["counts"]]
    notes = [{name: event[name] for name in ("reviewer", "colleague", "reason")} for event in told
             if event["action"] == "flag"]  # fmt: skip
    reads = [
        {name: event[name] for name in ("reviewer", "action", "after", "reason")}
        for event in told
        if event["action"] in VERDICTS and event["stage"] == "read" and lease["stage"] == "adjudicate"
    ]
    return Lease(lease["token"], lease["item_id"], lease["stage"], lease["taken_at"], lease["held_until"],
                 item["payload"], item["before"], notes, reads)  # fmt: skip


def _label(item: dict, action: str, after: str) -> tuple[str, str]:
    """(label after an action, its meaning). Raises ValueError for a label that training could not use."""
    if action not in ("accept", "edit"):
        return "", ""
    question, before = item["payload"]["question"], item["before"]
    kind, options = question["kind"], len(question["options"])
    if action == "accept":
        if readable(kind, before, options) is None:
            raise ValueError(f"item {item['item_id']}: its label cannot be read: edit or reject it")
        return before, meaning(question, before)
    if readable(kind, after, options) is None:
        form = f"one of the {options} letters" if options else "a description that ends in a verdict, as the one shown"
        raise ValueError(f"item {item['item_id']}: edited into {after!r:.60}; expected {form}")
    if readable(kind, after, options) == readable(kind, before, options):  # 'B' for 'B. motion'
        raise ValueError(f"item {item['item_id']}: the edit changes nothing: accept it instead")
    return after, meaning(question, after)


def _text(what: str, text: str) -> str:
    """Text without outer blanks. Raises ValueError when it is too long or has control characters, which no database
    and no table takes whole."""
    text = text.strip()
    if len(text) > LONGEST:
        raise ValueError(f"{what} has {len(text):,} characters; at most {LONGEST:,} are kept")
    if any(unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t" for sign in text):
        raise ValueError(f"{what} has control characters")
    return text
