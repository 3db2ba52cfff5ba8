"""The rules of the queue on both databases: leases, late verdicts, skips, flags, undo, double reads, adjudication."""

import pytest
from small_store import item

from medq_ray.questions import describe
from medq_ray.review.accounts import dismiss

ANN_BEN = {"ann": "reviewer", "ben": "reviewer"}
TEAM = ANN_BEN | {"lea": "lead"}
FOUR = TEAM | {"cy": "reviewer"}


def events(queue) -> list[dict]:
    with queue.store.reading() as transaction:
        return transaction.events()


def outcome(queue, item_id: int = 1) -> dict:
    """{stage, verdict: the event that holds or None}"""
    with queue.store.reading() as transaction:
        found = next(row for row in transaction.outcomes() if row["item_id"] == item_id)
        assert transaction.place(item_id)["stage"] == found["stage"]
        held = [event for event in transaction.events() if event["event_id"] == found["event_id"]]
        return {"stage": found["stage"], "verdict": held[0] if held else None}


def read(queue, reviewer: str, action: str = "accept", **given):
    """Lease the next item and give a verdict on it."""
    lease = queue.lease(reviewer)
    return lease, queue.verdict(reviewer, lease.token, action, seconds=1.0, **given)


def test_items_come_in_their_order_and_to_one_reviewer_only(stocked, clock):
    queue = stocked([item(1), item(2)], ANN_BEN)
    first, second = queue.lease("ann"), queue.lease("ben")
    assert (first.item_id, second.item_id) == (1, 2)
    assert first.payload == item(1)["payload"] and first.before == "A"
    assert (first.taken_at, first.until) == (clock.time, clock.time + 600)
    assert queue.lease("ann") == first  # a page that is loaded again
    queue.verdict("ann", first.token, "accept", seconds=1.0)
    assert queue.lease("ann") is None


def test_the_next_one_can_be_fetched_ahead_and_no_more(stocked):
    queue = stocked([item(n) for n in range(1, 5)], ANN_BEN)
    shown = queue.lease("ann")
    ahead = queue.lease("ann", after=shown.token)
    assert ahead.item_id == 2 and queue.lease("ann", after=shown.token) == ahead
    with pytest.raises(PermissionError, match="ann holds 2 items already"):
        queue.lease("ann", after=ahead.token)
    queue.verdict("ann", shown.token, "accept", seconds=1.0)
    assert queue.lease("ann") == ahead
    assert queue.lease("ann", after=ahead.token).item_id == 3


def test_a_lease_that_ran_out_goes_to_the_next_and_its_verdict_does_not_overwrite(stocked, clock):
    queue = stocked([item(1)], ANN_BEN)
    old = queue.lease("ann")
    clock.time += 600
    new = queue.lease("ben")
    assert new.item_id == 1 and new.token > old.token
    late = queue.verdict("ann", old.token, "reject", seconds=5.0, reason="motion")
    assert not late.counts and late.why == "somebody has taken the item since"
    assert outcome(queue) == {"stage": "read", "verdict": None}
    queue.verdict("ben", new.token, "accept", seconds=5.0)
    again = queue.verdict("ann", old.token, "edit", after="B", seconds=5.0)
    assert not again.counts
    assert outcome(queue)["verdict"]["reviewer"] == "ben"
    assert [(e["reviewer"], e["action"], e["late"]) for e in events(queue)] == [
        ("ann", "reject", True), ("ben", "accept", False), ("ann", "edit", True)]  # fmt: skip


def test_a_verdict_after_the_lease_is_late_even_if_nobody_came(stocked, clock):
    queue = stocked([item(1)], ANN_BEN)
    lease = queue.lease("ann")
    clock.time = lease.until
    given = queue.verdict("ann", lease.token, "accept", seconds=1.0)
    assert (given.counts, given.why) == (False, "the lease had run out")
    assert queue.lease("ann").item_id == 1


def test_a_sign_of_life_renews(stocked, clock):
    queue = stocked([item(1)], ANN_BEN)
    lease = queue.lease("ann")
    clock.time += 599
    assert queue.renew("ann", lease.token) == clock.time + 600
    clock.time += 700  # a laptop that slept, and nobody has come
    assert queue.renew("ann", lease.token) == clock.time + 600
    assert queue.verdict("ann", lease.token, "accept", seconds=1.0).counts
    assert queue.renew("ann", lease.token) is None
    queue.undo("ann")
    clock.time += 700
    assert queue.lease("ben").item_id == 1
    assert queue.renew("ann", lease.token) is None


def test_what_is_released_is_free_at_once(stocked):
    queue = stocked([item(1)], ANN_BEN)
    lease = queue.lease("ann")
    assert queue.lease("ben") is None
    queue.release("ann", lease.token)
    assert queue.lease("ben").item_id == 1
    given = queue.verdict("ann", lease.token, "accept", seconds=1.0)
    assert not given.counts and given.why == "somebody has taken the item since"
    queue.release("ann", lease.token)  # over: nothing happens
    assert queue.lease("ann") is None


def test_a_verdict_sent_again_is_the_same_event(stocked):
    queue = stocked([item(1)], ANN_BEN)
    lease, given = read(queue, "ann", "edit", after="B")
    assert queue.verdict("ann", lease.token, "edit", after="B", seconds=2.0) == given
    assert len(events(queue)) == 1
    other = queue.verdict("ann", lease.token, "accept", seconds=2.0)
    assert not other.counts and outcome(queue)["verdict"]["after"] == "B"


def test_nobody_else_can_use_a_lease(stocked):
    queue = stocked([item(1)], ANN_BEN)
    lease = queue.lease("ann")
    for token in (lease.token, lease.token + 1, -1, 10**30):
        for act in (
            lambda token=token: queue.verdict("ben", token, "accept", seconds=1.0),
            lambda token=token: queue.skip("ben", token, "no", seconds=1.0),
            lambda token=token: queue.renew("ben", token),
            lambda token=token: queue.release("ben", token),
        ):
            with pytest.raises(PermissionError, match=f"lease {token} is not ben's"):
                act()
    assert events(queue) == [] and queue.lease("ann") == lease


def test_who_is_dismissed_or_unknown_can_do_nothing(stocked):
    queue = stocked([item(1)], ANN_BEN)
    lease = queue.lease("ann")
    dismiss(queue.store, "ann")
    for act in (
        lambda: queue.lease("ann"), lambda: queue.lease("eve"), lambda: queue.undo("ann"),
        lambda: queue.verdict("ann", lease.token, "accept", seconds=1.0),
    ):  # fmt: skip
        with pytest.raises(PermissionError, match="is no reviewer here"):
            act()
    assert not queue.may_see("ann", 1)


@pytest.mark.parametrize(
    ("action", "given", "complaint"),
    [
        ("approve", {}, "action 'approve': expected accept, edit, reject"),
        ("undo", {}, "action 'undo': expected accept, edit, reject"),
        ("reject", {}, "reject needs a reason"),
        ("reject", {"reason": " \n"}, "reject needs a reason"),
        ("edit", {"after": ""}, "edited into ''; expected one of the 2 letters"),
        ("edit", {"after": "C"}, "edited into 'C'; expected one of the 2 letters"),
        ("edit", {"after": "A"}, "the edit changes nothing"),
        ("edit", {"after": "A. Yes"}, "the edit changes nothing"),
        ("edit", {"after": "B" * 4001}, "after has 4,001 characters; at most 4,000 are kept"),
        ("reject", {"reason": "a\0b"}, "reason has control characters"),
        ("reject", {"reason": "\ud800"}, "reason has control characters"),
        ("accept", {"seconds": -1.0}, "seconds -1.0: expected a number of 0 or more"),
        ("accept", {"seconds": float("nan")}, "seconds nan"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(stocked, action, given, complaint):
    queue = stocked([item(1)], ANN_BEN)
    lease = queue.lease("ann")
    with pytest.raises(ValueError) as error:
        queue.verdict("ann", lease.token, action, **{"seconds": 1.0} | given)
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert events(queue) == [] and queue.lease("ann") == lease


def test_an_unreadable_label_cannot_be_accepted(stocked):
    queue = stocked([item(1, before="I see nothing."), item(2, kind="description", before="bad")], ANN_BEN)
    for right in ("B", describe("mri", "blur", "mild")):
        lease = queue.lease("ann")
        with pytest.raises(ValueError, match="its label cannot be read: edit or reject it"):
            queue.verdict("ann", lease.token, "accept", seconds=1.0)
        assert queue.verdict("ann", lease.token, "edit", after=right, seconds=1.0).counts


def test_words_in_any_script_are_kept(stocked):
    queue = stocked([item(1)], ANN_BEN)
    reason = "<b>Bewegungsartefakt</b>; \u904b\u52d5 \U0001f9f2\n\u05e8\u05e2\u05e9 'DROP TABLE items'"
    read(queue, "ann", "reject", reason=reason)
    assert outcome(queue)["verdict"]["reason"] == reason


def test_no_more_time_is_booked_than_has_passed(stocked, clock):
    queue = stocked([item(1)], ANN_BEN)
    lease = queue.lease("ann")
    clock.time += 30
    queue.verdict("ann", lease.token, "accept", seconds=1e9)
    assert events(queue)[0]["seconds"] == 30


def test_what_is_skipped_comes_back_last_and_in_turn(stocked):
    queue = stocked([item(n) for n in (1, 2, 3)], ANN_BEN)
    for n in (1, 2):
        lease = queue.lease("ann")
        assert lease.item_id == n
        assert queue.skip("ann", lease.token, "not my modality", seconds=1.0).counts
    assert queue.lease("ben").item_id == 1  # others get it at its place
    assert read(queue, "ann")[0].item_id == 3
    lease = queue.lease("ann")
    assert lease.item_id == 2
    with pytest.raises(ValueError, match="skip needs a reason"):
        queue.skip("ann", lease.token, "", seconds=1.0)
    queue.release("ben", queue.lease("ben").token)
    queue.skip("ann", lease.token, "still not", seconds=1.0)
    assert queue.lease("ann").item_id == 1  # skipped longer ago than 2


def test_what_is_flagged_goes_to_a_colleague_first_of_all_with_its_note(stocked):
    queue = stocked([item(n) for n in (1, 2, 3)], TEAM)
    queue.verdict("ben", queue.lease("ben").token, "accept", seconds=1.0)
    lease = queue.lease("ann")
    assert lease.item_id == 2 and lease.notes == []
    queue.flag("ann", lease.token, "metal or motion?", seconds=1.0)
    other = queue.lease("ben")
    assert other.item_id == 2 and other.notes == [
        {"reviewer": "ann", "colleague": None, "reason": "metal or motion?"}]  # fmt: skip
    queue.flag("ben", other.token, "no idea either", seconds=1.0)
    for name in ("ann", "ben"):
        found = queue.lease(name)
        if found:
            assert found.item_id == 3
            queue.verdict(name, found.token, "accept", seconds=1.0)
    assert queue.lease("ann") is None and queue.lease("ben") is None
    flagged = queue.lease("lea")
    queue.flag("lea", flagged.token, "hard", seconds=1.0)
    assert queue.lease("lea").item_id == 2  # a lead is the last resort


def test_a_named_colleague_is_given_it_first_and_nobody_else(stocked):
    queue = stocked([item(n, patient="p") for n in (1, 2, 3)], FOUR, patients_together=True)
    queue.flag("ann", queue.lease("ann").token, "yours?", seconds=1.0, colleague="cy")
    others = [queue.lease(name) for name in ("ben", "ann")]
    assert [lease.item_id for lease in others] == [2, 3]
    lease = queue.lease("cy")
    assert lease.item_id == 1 and lease.notes == [{"reviewer": "ann", "colleague": "cy", "reason": "yours?"}]
    queue.skip("cy", lease.token, "no idea", seconds=1.0)  # which is an answer: now it is anybody's
    queue.release("ben", others[0].token)
    assert queue.lease("ben").item_id == 1


def test_a_lead_gets_what_is_kept_for_another_when_nothing_else_is_left(stocked):
    queue = stocked([item(1), item(2)], FOUR)
    queue.flag("ann", queue.lease("ann").token, "yours?", seconds=1.0, colleague="ben")
    first = queue.lease("lea")
    assert first.item_id == 2 and queue.lease("cy") is None
    second = queue.lease("lea", after=first.token)
    assert second.item_id == 1 and queue.lease("ben") is None
    assert queue.verdict("lea", second.token, "accept", seconds=1.0).counts
    assert queue.left()[0]["done"] == 1


def test_what_is_kept_for_who_is_dismissed_is_anybodys(stocked):
    queue = stocked([item(1)], FOUR)
    queue.flag("ann", queue.lease("ann").token, "yours?", seconds=1.0, colleague="ben")
    assert queue.lease("cy") is None
    dismiss(queue.store, "ben")
    assert queue.lease("cy").item_id == 1


def test_a_flag_taken_back_keeps_nothing_for_anybody(stocked):
    queue = stocked([item(1)], FOUR)
    queue.flag("ann", queue.lease("ann").token, "yours?", seconds=1.0, colleague="ben")
    queue.release("ann", queue.undo("ann").token)
    assert queue.lease("cy").item_id == 1


def test_who_skipped_or_flagged_it_may_be_asked(stocked):
    queue = stocked([item(1)], FOUR)
    queue.skip("ben", queue.lease("ben").token, "later", seconds=1.0)
    queue.flag("cy", queue.lease("cy").token, "odd", seconds=1.0)
    queue.flag("ann", queue.lease("ann").token, "ben knows", seconds=1.0, colleague="ben")
    queue.flag("ben", queue.lease("ben").token, "no, cy does", seconds=1.0, colleague="cy")
    assert queue.lease("ann") is None and queue.lease("cy").item_id == 1


def test_an_adjudication_may_be_kept_for_another_lead(stocked):
    queue = stocked([item(1, reads=2)], FOUR | {"leo": "admin", "liv": "lead"})
    queue.verdict("lea", queue.lease("lea").token, "accept", seconds=1.0)
    queue.verdict("ben", queue.lease("ben").token, "edit", after="B", seconds=1.0)
    token = queue.lease("liv").token
    with pytest.raises(ValueError, match="ann is no lead: leads adjudicate"):
        queue.flag("liv", token, "hard", seconds=1.0, colleague="ann")
    queue.flag("liv", token, "hard", seconds=1.0, colleague="lea")  # though she has read it
    assert queue.lease("lea").stage == "adjudicate"


@pytest.mark.parametrize(("name", "complaint"), [
    ("ann", "a flag asks a colleague, not oneself"), ("eve", "'eve' is no reviewer here"), ("", "'' is no reviewer here"),
    ("cy", "'cy' is no reviewer here"), ("ben", "ben has read this item already"), ("a\0", "is no reviewer here"),
])  # fmt: skip
def test_a_flag_names_who_can_give_an_opinion(stocked, name, complaint):
    queue = stocked([item(1, reads=2)], FOUR)
    queue.verdict("ben", queue.lease("ben").token, "accept", seconds=1.0)
    dismiss(queue.store, "cy")
    token = queue.lease("ann").token
    with pytest.raises(ValueError, match=complaint):
        queue.flag("ann", token, "look", seconds=1.0, colleague=name)
    with queue.store.reading() as transaction:
        assert [event["action"] for event in transaction.events()] == ["accept"]


def test_undo_gives_the_item_back(stocked):
    queue = stocked([item(1), item(2)], ANN_BEN)
    first, _ = read(queue, "ann")
    ahead = queue.lease("ann")
    again = queue.undo("ann")
    assert again.item_id == 1 and again.token > ahead.token > first.token
    assert outcome(queue) == {"stage": "read", "verdict": None}
    late = queue.verdict("ann", first.token, "reject", reason="slow network", seconds=1.0)
    assert not late.counts
    queue.verdict("ann", again.token, "edit", after="B", seconds=1.0)
    assert outcome(queue)["verdict"]["after"] == "B"
    assert [e["action"] for e in events(queue)] == ["accept", "undo", "reject", "edit"]
    assert [e["counts"] for e in events(queue)] == [False, False, False, True]


def test_undo_takes_back_one_after_another_and_then_nothing(stocked):
    queue = stocked([item(1), item(2)], ANN_BEN)
    read(queue, "ann")
    lease = queue.lease("ann")
    queue.skip("ann", lease.token, "later", seconds=1.0)
    assert queue.undo("ann").item_id == 2
    assert queue.undo("ann").item_id == 1
    with pytest.raises(ValueError, match="ann has nothing to undo"):
        queue.undo("ann")
    with pytest.raises(ValueError, match="ben has nothing to undo"):
        queue.undo("ben")


def test_the_same_undo_sent_again_takes_back_no_other(stocked):
    queue = stocked([item(n) for n in range(3)], FOUR)
    first, second = (queue.verdict("ann", queue.lease("ann").token, "accept", seconds=1.0).event_id for _ in range(2))
    with pytest.raises(ValueError, match=f"event {first} is not the last that ann gave"):
        queue.undo("ann", first)
    with pytest.raises(ValueError, match=f"event {second} is not the last that ben gave|ben has nothing"):
        queue.undo("ben", second)
    again = [queue.undo("ann", second) for _ in range(2)]
    assert again[0] == again[1] and again[0].item_id == 2
    queue.release("ann", again[0].token)
    assert queue.undo("ann", second) is None  # taken back, and given back
    assert queue.undo("ann", first).item_id == 1
    with pytest.raises(ValueError, match="ann has nothing to undo"):
        queue.undo("ann", 10**12)


def test_undoing_a_skip_does_not_take_from_a_colleague(stocked):
    queue = stocked([item(1)], ANN_BEN)
    lease = queue.lease("ann")
    queue.skip("ann", lease.token, "later", seconds=1.0)
    other = queue.lease("ben")
    assert queue.undo("ann") is None
    assert queue.verdict("ben", other.token, "accept", seconds=1.0).counts
    assert outcome(queue)["stage"] == "done" and queue.lease("ann") is None


def test_undoing_a_skip_of_what_is_done_gives_nothing_back(stocked):
    queue = stocked([item(1)], ANN_BEN)
    queue.skip("ann", queue.lease("ann").token, "later", seconds=1.0)
    read(queue, "ben")
    assert queue.undo("ann") is None and outcome(queue)["verdict"]["reviewer"] == "ben"


def test_a_double_read_is_blind_and_by_two(stocked):
    queue = stocked([item(1, reads=2)], ANN_BEN)
    first, _ = read(queue, "ann", "edit", after="B", reason="clearly")
    assert queue.lease("ann") is None
    second = queue.lease("ben")
    assert second.payload == first.payload and (second.notes, second.reads) == ([], [])
    assert outcome(queue) == {"stage": "read", "verdict": None}
    queue.verdict("ben", second.token, "edit", after="B. Yes", seconds=1.0)
    assert outcome(queue)["stage"] == "done"
    assert outcome(queue)["verdict"]["reviewer"] == "ann"  # they agree: the first holds


def test_one_item_is_never_held_twice_also_in_a_double_read(stocked):
    queue = stocked([item(1, reads=2)], ANN_BEN)
    queue.lease("ann")
    assert queue.lease("ben") is None


def test_reads_that_disagree_go_to_a_lead(stocked):
    queue = stocked([item(1, reads=2), item(2)], TEAM | {"leo": "lead"})
    read(queue, "ann")
    read(queue, "ben", "reject", reason="no image")
    assert outcome(queue) == {"stage": "adjudicate", "verdict": None}
    assert queue.left() == {0: {"unread": 1, "second": 0, "adjudicate": 1, "done": 0, "held": 0}}
    assert queue.lease("ann").item_id == 2 and queue.lease("ben") is None
    lease = queue.lease("lea")
    assert lease.stage == "adjudicate" and lease.notes == []
    assert lease.reads == [
        {"reviewer": "ann", "action": "accept", "after": "A", "reason": ""},
        {"reviewer": "ben", "action": "reject", "after": "", "reason": "no image"},
    ]
    with pytest.raises(ValueError, match="a lead has taken it up; tell them"):
        queue.undo("ben")
    queue.verdict("lea", lease.token, "edit", after="B", seconds=1.0)
    assert outcome(queue)["stage"] == "done" and outcome(queue)["verdict"]["reviewer"] == "lea"
    with pytest.raises(ValueError, match="a lead has taken it up"):
        queue.undo("ann")
    assert queue.undo("lea").stage == "adjudicate"
    assert outcome(queue) == {"stage": "adjudicate", "verdict": None}


def test_a_reader_may_still_undo_while_no_lead_has_come(stocked):
    queue = stocked([item(1, reads=2)], TEAM)
    read(queue, "ann")
    read(queue, "ben", "edit", after="B")
    again = queue.undo("ann")
    assert again.stage == "read" and again.reads == [] and outcome(queue)["stage"] == "read"
    assert queue.lease("lea") is None
    queue.verdict("ann", again.token, "edit", after="B", seconds=1.0)
    assert outcome(queue)["verdict"]["reviewer"] == "ben"  # now the first of the two


def test_a_lead_who_read_adjudicates_only_when_nothing_else_is_left(stocked):
    queue = stocked([item(1, reads=2), item(2)], {"ann": "reviewer", "lea": "lead"})
    read(queue, "lea")
    lease = queue.lease("ann")
    queue.verdict("ann", lease.token, "edit", after="B", seconds=1.0)
    first, _ = read(queue, "lea")
    assert (first.item_id, first.stage) == (2, "read")
    assert queue.lease("lea").stage == "adjudicate"


@pytest.mark.parametrize(
    ("kind", "first", "second", "stage"),
    [
        ("yes_no", "B", "B) No", "done"),
        ("yes_no", "B", None, "adjudicate"),
        ("how", "B", "C", "adjudicate"),
        ("description", describe("mri", "blur", "mild"), describe("mri", "blur", "mild").upper(), "done"),
        ("description", describe("mri", "blur", "mild"), describe("mri", "noise", "mild"), "adjudicate"),
    ],
)
def test_agreement_is_of_what_is_meant(stocked, kind, first, second, stage):
    queue = stocked([item(1, kind=kind, reads=2)], ANN_BEN)
    read(queue, "ann", "edit", after=first)
    read(queue, "ben", *(["accept"] if second is None else ["edit"]), **({} if second is None else {"after": second}))
    assert outcome(queue)["stage"] == stage


def test_patients_stay_together_and_apart_from_others(stocked):
    items = [item(n, patient="p" if n < 4 else "r" if n < 6 else "s") for n in range(1, 8)]
    queue = stocked(items, TEAM, patients_together=True)
    ann = queue.lease("ann")
    ahead = queue.lease("ann", after=ann.token)
    ben = queue.lease("ben")
    lea = queue.lease("lea")
    assert [lease.item_id for lease in (ann, ahead, ben, lea)] == [1, 2, 4, 6]
    queue.verdict("ann", ann.token, "accept", seconds=1.0)
    assert queue.lease("ann", after=ahead.token).item_id == 3
    queue.verdict("ben", ben.token, "accept", seconds=1.0)
    assert read(queue, "ben")[0].item_id == 5
    assert queue.lease("ben").item_id == 7  # lea's patient, when no other is left


def test_images_are_for_holders_past_or_present_and_for_leads(stocked):
    queue = stocked([item(1), item(2)], TEAM)
    assert not queue.may_see("ann", 1)
    read(queue, "ann")
    assert queue.may_see("ann", 1) and not queue.may_see("ann", 2) and not queue.may_see("ben", 1)
    assert queue.may_see("lea", 1) and not queue.may_see("lea", 10**30) and not queue.may_see("eve", 1)


def test_every_read_and_verdict_is_in_the_audit_log(stocked, clock):
    queue = stocked([item(1)], ANN_BEN)
    lease = queue.lease("ann")
    queue.lease("ann")
    queue.release("ann", lease.token)
    read(queue, "ann")
    queue.undo("ann")
    queue.verdict("ann", lease.token, "accept", seconds=1.0)
    with queue.store.reading() as transaction:
        lines = transaction.logged()
    assert [line["action"] for line in lines] == ["lease", "release", "lease", "accept", "undo", "lease", "accept"]
    assert {(line["reviewer"], line["item_id"], line["at"]) for line in lines} == {("ann", 1, clock.time)}
    assert lines[-1]["detail"] == "event 3 under lease 1, somebody has taken the item since"


def test_what_is_left_is_counted(stocked, clock):
    queue = stocked([item(1, reads=2), item(2), item(3)], ANN_BEN)
    read(queue, "ann")
    read(queue, "ann")
    queue.lease("ben")
    assert queue.left() == {0: {"unread": 1, "second": 1, "adjudicate": 0, "done": 1, "held": 1}}
    clock.time += 601
    assert queue.left()[0]["held"] == 0
