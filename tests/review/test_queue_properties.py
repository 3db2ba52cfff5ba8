"""What holds whatever reviewers do in whatever order: random interleavings against a model of who holds what."""

import random
from collections import Counter, defaultdict

import pytest
from small_store import item

PEOPLE = {"ann": "reviewer", "ben": "reviewer", "cy": "reviewer", "lea": "lead", "leo": "admin"}
ITEMS, STEPS = 12, 150
LEASE = 600.0


class Model:
    """Leases as they were given out, and what the store must say therefore."""

    def __init__(self, queue, clock, seed: int):
        self.queue, self.clock, self.rng = queue, clock, random.Random(seed)
        self.leases: dict[int, dict] = {}
        """token -> {item, reviewer, until}; until 0: given back or used."""
        self.last: dict[int, int] = defaultdict(int)
        """item -> token of its last lease."""
        self.written: list[dict] = []

    @property
    def kept(self) -> dict[int, str | None]:
        """Item -> for whom it is kept, as its events say."""
        with self.queue.store.reading() as transaction:
            force = {event["item_id"]: event["colleague"] for event in transaction.events() if event["counts"]}
        return defaultdict(lambda: None, force)

    def live(self, token: int) -> bool:
        lease = self.leases[token]
        return self.last[lease["item"]] == token and self.clock.time < lease["until"]

    def took(self, reviewer: str, lease) -> None:
        if lease is None or lease.token in self.leases:
            if lease is not None:
                assert self.live(lease.token) and self.leases[lease.token]["reviewer"] == reviewer
            return
        holder = self.last[lease.item_id]
        assert lease.token > holder, "fencing tokens rise"
        if holder and self.live(holder):
            assert self.leases[holder]["reviewer"] == reviewer, "two hold one item"
        assert not (holder and self.live(holder)), "an item is leased that is held"
        kept = self.kept[lease.item_id]
        assert kept in (None, reviewer) or PEOPLE[reviewer] != "reviewer", "it is kept for another"
        self.leases[lease.token] = {"item": lease.item_id, "reviewer": reviewer, "until": lease.until}
        self.last[lease.item_id] = lease.token
        assert lease.reads == [] or (lease.stage == "adjudicate" and PEOPLE[reviewer] != "reviewer")

    def step(self) -> None:
        act = self.rng.choices(("lease", "give", "renew", "release", "undo", "wait"), (5, 6, 1, 1, 1, 1))[0]
        reviewer = self.rng.choice(list(PEOPLE))
        own = [token for token, lease in self.leases.items() if lease["reviewer"] == reviewer]
        token = self.rng.choice(own[-3:]) if own else None
        if act == "wait":
            self.clock.time += self.rng.choice((1.0, 50.0, LEASE, LEASE / 2))
        elif act == "lease":
            held = sorted(token for token in own if self.live(token))
            after = self.rng.choice([None, *held])
            if len(held) >= 2 and after == held[-1]:
                with pytest.raises(PermissionError):
                    self.queue.lease(reviewer, after)
            else:
                self.took(reviewer, self.queue.lease(reviewer, after))
        elif act == "undo":
            try:
                self.took(reviewer, self.queue.undo(reviewer))
            except ValueError as error:
                assert "nothing to undo" in str(error) or "a lead has taken it up" in str(error)
        elif token is not None:
            self.use(act, reviewer, token)

    def use(self, act: str, reviewer: str, token: int) -> None:
        lease, live = self.leases[token], self.live(token)
        last = self.last[lease["item"]] == token and lease["until"] > 0
        if act == "renew":
            until = self.queue.renew(reviewer, token)
            assert (until is not None) == last
            lease["until"] = until or lease["until"]
        elif act == "release":
            self.queue.release(reviewer, token)
            lease["until"] = 0.0 if last else lease["until"]
        else:
            action = self.rng.choice(("accept", "accept", "edit", "reject", "skip", "flag"))
            reason = f"{self.rng.random()}"  # so that nothing is taken for the same thing sent again
            if action == "flag":
                given = self.flag(reviewer, token, reason)
                if given is None:
                    return
            elif action == "skip":
                given = self.queue.skip(reviewer, token, reason, seconds=1.0)
            else:
                after = "B" if action == "edit" else ""
                given = self.queue.verdict(reviewer, token, action, after=after, reason=reason, seconds=1.0)
            assert given.counts == live
            lease["until"] = 0.0 if live else lease["until"]
            self.written.append({"event_id": given.event_id, "reviewer": reviewer, "token": token, "action": action,
                                 "reason": reason, "late": not live})  # fmt: skip

    def flag(self, reviewer: str, token: int, reason: str):
        """Half of the time for somebody; None where they cannot be asked."""
        colleague = self.rng.choice([None, *PEOPLE] if self.rng.random() < 0.5 else [None])
        try:
            return self.queue.flag(reviewer, token, reason, seconds=1.0, colleague=colleague)
        except ValueError as error:
            assert colleague and any(why in str(error) for why in ("not oneself", "has read", "is no lead"))
            return None

    def check(self) -> None:
        with self.queue.store.reading() as transaction:
            events, outcomes = transaction.events(), transaction.outcomes()
            places = {row["item_id"]: transaction.place(row["item_id"]) for row in outcomes}
            twice = {row["item_id"]: row["reads"] for row in transaction.items(("item_id", "reads"))}
        by_id = {event["event_id"]: event for event in events}
        for row in self.written:
            assert row.items() <= by_id[row["event_id"]].items(), "a verdict is lost or changed"
        own = [event for event in events if event["action"] != "undo"]
        assert len(own) == len(self.written), "an event that nobody sent"
        force = Counter((e["item_id"], e["reviewer"]) for e in own if e["counts"] and e["stage"] == "read"
                        and e["action"] in ("accept", "edit", "reject"))  # fmt: skip
        reads = Counter(item_id for item_id, _ in force)
        assert not force or max(force.values()) == 1, "a second reader is the first"
        for row in outcomes:
            assert places[row["item_id"]]["stage"] == row["stage"], "the queue disagrees with the events"
            assert (row["event_id"] is None) == (row["stage"] != "done")
            assert reads[row["item_id"]] <= twice[row["item_id"]]
            if row["event_id"] is not None:
                held = by_id[row["event_id"]]
                assert held["counts"] and held["item_id"] == row["item_id"] and held["action"] in (
                    "accept", "edit", "reject")  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_random_interleavings(stocked, clock, seed):
    """No item is held by two, no verdict is lost, none counts that came late, and the queue is what events say."""
    items = [item(n, reads=1 + (n % 3 == 0), patient=f"p{n // 3}") for n in range(1, ITEMS + 1)]
    model = Model(stocked(items, PEOPLE, patients_together=bool(seed % 2)), clock, seed)
    for _ in range(STEPS):
        model.step()
        model.check()


@pytest.mark.parametrize("seed", range(2))
def test_everything_is_done_in_the_end(stocked, clock, seed):
    """After any beginning, reviewers who go on until they are given nothing more leave nothing."""
    items = [item(n, reads=1 + (n % 2)) for n in range(1, ITEMS + 1)]
    queue = stocked(items, PEOPLE)
    model = Model(queue, clock, seed)
    for _ in range(STEPS // 2):
        model.step()
    clock.time += LEASE
    while leases := [(name, lease) for name in PEOPLE for lease in [queue.lease(name)] if lease is not None]:
        for name, lease in leases:
            assert queue.verdict(name, lease.token, "edit", after="B", seconds=1.0).counts
    assert queue.left()[0] == {"unread": 0, "second": 0, "adjudicate": 0, "done": ITEMS, "held": 0}
