"""Real threads, real processes and kill -9, on both databases."""

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from small_store import item, stock
from sqlalchemy import text

from medq_ray.config import Review
from medq_ray.review.queue import Queue
from medq_ray.review.store import Store

ITEMS = 300
SCRIPT = Path(__file__).parent / "writing_reviewer.py"
PEOPLE = {f"r{n}": "reviewer" for n in range(8)} | {"lea": "lead"}


def starts(address: str, name: str) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), address, name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def settled(store: Store) -> dict:
    """{item -> the events in force}, once the queue is known to agree with them."""
    with store.reading() as transaction:
        for row in transaction.outcomes():
            assert transaction.place(row["item_id"])["stage"] == row["stage"]
        found: dict = {row["item_id"]: [] for row in transaction.outcomes()}
        for event in transaction.events():
            if event["counts"]:
                found[event["item_id"]].append(event)
    return found


def test_threads_share_a_queue_and_every_item_is_read_by_whom_it_should(store):
    items = [item(n, reads=1 + (n % 4 == 0), patient=f"p{n // 3}") for n in range(1, 61)]
    stock(store, items, PEOPLE)
    queue, holding, wrong = Queue(store, Review()), {}, []

    def work(name: str) -> None:
        while lease := queue.lease(name):
            if holding.setdefault(lease.item_id, name) != name:
                wrong.append((lease.item_id, name, holding[lease.item_id]))
            del holding[lease.item_id]
            if not queue.verdict(name, lease.token, "accept", seconds=0.0).counts:
                wrong.append((lease.item_id, name, "late"))

    threads = [threading.Thread(target=work, args=(name,)) for name in PEOPLE]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in PEOPLE:  # what another was just looking at may have been passed over at the end
        work(name)
    assert wrong == []
    for item_id, events in settled(store).items():
        assert len(events) == 1 + (item_id % 4 == 0) == len({event["reviewer"] for event in events})


def test_a_verdict_waits_for_whoever_is_taking_the_item(store):
    """The lease is looked at once the item is locked: not before somebody else has taken it."""
    stock(store, [item(1)], PEOPLE)
    moment, given = [0.0], []
    queue = Queue(store, Review(), lambda: moment[0])
    lease = queue.lease("r0")
    moment[0] = 599.0
    late = threading.Thread(target=lambda: given.append(queue.verdict("r0", lease.token, "accept", seconds=0.0)))
    with store.writing() as transaction:
        transaction.place(1)
        row = {"item_id": 1, "reviewer": "r1", "stage": "read", "taken_at": 600.0}
        transaction.add_lease(row, 1200.0)
        late.start()
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        while "postgresql" in store.address and late.is_alive():
            if transaction.connection.execute(waiting).scalar():
                break
    late.join()
    assert [(event.counts, event.why) for event in given] == [(False, "somebody has taken the item since")]


def test_the_next_item_is_quick_where_most_are_done(store):
    """3 to 5 ms of 10,000 items on two busy cores."""
    stock(store, [item(n, patient=f"p{n // 4}") for n in range(1, 10_001)], PEOPLE)
    with store.writing() as transaction:
        transaction.connection.execute(text("UPDATE queue SET stage = 'done' WHERE place <= 9900"))
    queue, seconds = Queue(store, Review()), []
    for _ in range(30):
        before = time.perf_counter()
        lease = queue.lease("r0")
        seconds.append(time.perf_counter() - before)
        queue.verdict("r0", lease.token, "accept", seconds=0.0)
    assert statistics.median(seconds) < 0.05


def test_two_threads_of_one_reviewer_hold_no_more_than_two_items(store):
    stock(store, [item(n) for n in range(1, 21)], {"ann": "reviewer"})
    queue, got = Queue(store, Review()), []
    threads = [threading.Thread(target=lambda: got.append(queue.lease("ann"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {lease.token for lease in got} == {1}


def kill_after(process: subprocess.Popen, lines: int, said: list[str]) -> None:
    said += [process.stdout.readline() for _ in range(lines)]
    os.kill(process.pid, signal.SIGKILL)


def test_processes_share_a_store_and_one_that_is_killed_loses_nothing(address):
    """Two readers of four are killed in the middle of writing; what they printed is there, what they held runs out."""
    store, said = Store(address), []
    stock(store, [item(n) for n in range(1, ITEMS + 1)], PEOPLE)
    processes = [starts(address, f"r{n}") for n in range(4)]
    assert all(process.stdout.readline() == "ready\n" for process in processes)
    for process, count in zip(processes, (ITEMS, ITEMS, 50, 50), strict=True):  # two that never come to an end
        process.stdin.write(f"{count}\n")
        process.stdin.flush()
    killers = [threading.Thread(target=kill_after, args=(process, 10, said)) for process in processes[:2]]
    for killer in killers:
        killer.start()
    for killer in killers:
        killer.join()
    for process in processes:
        said += process.communicate(f"{ITEMS}\n")[0].splitlines(keepends=True)
    assert [process.returncode for process in processes] == [-9, -9, 0, 0], "the others go on"
    told = [tuple(map(int, line.split())) for line in said if line.endswith("\n")]
    force = settled(store)
    given = {event["event_id"]: (event["item_id"], event["token"]) for events in force.values() for event in events}
    assert all(given[event_id] == (item_id, token) for event_id, item_id, token in told), "a verdict is lost"
    assert max(len(events) for events in force.values()) == 1
    left = [item_id for item_id, events in force.items() if not events]
    assert len(left) <= 2, "no more than what the two held"
    with store.reading() as transaction:
        until = max(transaction.place(item_id)["held_until"] for item_id in force)
    late = Queue(store, Review(), lambda: until)
    while lease := late.lease("r7"):
        late.verdict("r7", lease.token, "accept", seconds=0.0)
    assert Counter(len(events) for events in settled(store).values()) == {1: ITEMS}
