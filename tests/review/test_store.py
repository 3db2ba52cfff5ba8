"""The store on both databases: opening, upgrading, whole transactions, and one line when something is wrong."""

import errno
import os
import sqlite3
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from small_store import item, stock
from sqlalchemy import inspect, text

from medq_ray.review import store as module
from medq_ray.review.store import VERSION, Store


def version_of(address: str) -> int:
    store = Store(address)
    with store.reading() as transaction:
        return transaction.connection.execute(text("SELECT version FROM version")).scalar_one()


def test_what_was_written_is_there_when_it_is_opened_again(address):
    first = Store(address)
    stock(first, [item(1), item(2)], {"ann": "reviewer"})
    first.close()
    again = Store(address)
    with again.reading() as transaction:
        assert [row["question_id"] for row in transaction.items(("question_id",))] == ["q0001", "q0002"]
        assert transaction.item(1)["payload"] == item(1)["payload"]
        assert transaction.reviewers()[0]["name"] == "ann"


def test_a_transaction_that_fails_leaves_nothing(store):
    stock(store, [item(1)], {"ann": "reviewer"})
    with pytest.raises(KeyError), store.writing() as transaction:
        transaction.log(1.0, "ann", "look")
        raise KeyError
    with store.reading() as transaction:
        assert transaction.logged() == []


def test_the_audit_log_takes_what_strangers_send(store):
    with store.writing() as transaction:
        transaction.log(1.0, "eve\0\ud800", "refused", None, "<script>\0")
    with store.reading() as transaction:
        (line,) = transaction.logged()
        assert (line["reviewer"], line["detail"]) == ("eve??", "<script>?")
        assert transaction.logged(since=line["audit_id"]) == []


def test_what_refers_to_nothing_is_refused(store):
    stock(store, [item(1)], {"ann": "reviewer"})
    with pytest.raises(module.DatabaseError), store.writing() as transaction:
        transaction.add_lease({"item_id": 77, "reviewer": "ann", "stage": "read", "taken_at": 0.0}, 1.0)


def test_a_lease_gives_one_verdict_in_time(store):
    """The database itself refuses a second, whatever the code above it does."""
    stock(store, [item(1)], {"ann": "reviewer"})
    row = {"item_id": 1, "reviewer": "ann", "stage": "read", "action": "accept", "reason": "", "before": "A",
           "after": "A", "meaning": "Yes", "seconds": 1.0, "at": 1.0, "late": False, "undoes": None}  # fmt: skip
    with store.writing() as transaction:
        token = transaction.add_lease({"item_id": 1, "reviewer": "ann", "stage": "read", "taken_at": 0.0}, 1.0)
        transaction.add_event(row | {"token": token})
        transaction.add_event(row | {"token": token, "late": True})
    with pytest.raises(module.DatabaseError), store.writing() as transaction:
        transaction.add_event(row | {"token": token})


def test_a_store_of_version_1_is_upgraded(tmp_path):
    """As that version left it: items 1 and 2 accepted by ann, the second of which and the third take two reads, the
    third's verdict undone, the second flagged by ben."""
    with sqlite3.connect(tmp_path / "review.db") as old:
        old.executescript((Path(__file__).parent / "version1.sql").read_text())
    old.close()
    store = Store(tmp_path / "review.db")
    with store.reading() as transaction:
        places = [transaction.place(number) for number in (1, 2, 3)]
        assert [(place["stage"], place["given"]) for place in places] == [("done", 1), ("read", 1), ("read", 0)]
        assert {row["colleague"] for row in (*places, *transaction.events())} == {None}
        fresh = Store(tmp_path / "fresh.db")
        with fresh.reading() as other:
            assert shape(transaction) == shape(other)


def shape(transaction) -> dict:
    """Table -> its columns and indices by name."""
    seen = inspect(transaction.connection)
    return {name: ({column["name"] for column in seen.get_columns(name)}, {index["name"] for index in
                   seen.get_indexes(name)}) for name in seen.get_table_names()}  # fmt: skip


def test_the_step_from_version_1_is_understood_by_both(address):
    store = Store(address)
    stock(store, [item(1)], {"ann": "reviewer"})
    drops = ("DROP INDEX queue_left", "DROP INDEX queue_colleague", "ALTER TABLE queue RENAME given TO g",
             "ALTER TABLE queue RENAME colleague TO c", "ALTER TABLE events RENAME colleague TO c",
             "ALTER TABLE queue ALTER g DROP NOT NULL" if "postgresql" in address else "SELECT 1",
             "UPDATE version SET version = 1")  # fmt: skip
    with store.writing() as transaction:
        for statement in drops:
            transaction.connection.execute(text(statement))
    store.close()
    assert version_of(address) == VERSION
    with Store(address).reading() as transaction:
        assert transaction.place(1)["given"] == 0


ADDED = {
    VERSION: (
        "ALTER TABLE items ADD COLUMN site TEXT NOT NULL DEFAULT 'here'",
        "CREATE INDEX items_site ON items (site)",
    )
}
"""A step from the present version, as a later one would have it."""


def test_an_older_store_is_upgraded_with_its_rows(address, monkeypatch):
    old = Store(address)
    stock(old, [item(1), item(2)], {"ann": "reviewer"})
    old.close()
    monkeypatch.setattr(module, "STEPS", ADDED)
    monkeypatch.setattr(module, "VERSION", VERSION + 1)
    assert version_of(address) == VERSION + 1
    assert version_of(address) == VERSION + 1  # and only once
    store = Store(address)
    with store.reading() as transaction:
        rows = transaction.connection.execute(text("SELECT question_id, site FROM items ORDER BY item_id")).all()
        assert [tuple(row) for row in rows] == [("q0001", "here"), ("q0002", "here")]
        assert "items_site" in {index["name"] for index in inspect(transaction.connection).get_indexes("items")}
        assert len(transaction.reviewers()) == 1


def test_an_upgrade_that_fails_changes_nothing(address, monkeypatch):
    stock(Store(address), [item(1)], {})
    monkeypatch.setattr(module, "STEPS", {VERSION: (*ADDED[VERSION], "UPDATE nowhere SET nothing = 1")})
    monkeypatch.setattr(module, "VERSION", VERSION + 1)
    with pytest.raises((ValueError, OSError)):
        Store(address)
    monkeypatch.setattr(module, "VERSION", VERSION)
    store = Store(address)
    with store.reading() as transaction:
        assert "site" not in {column["name"] for column in inspect(transaction.connection).get_columns("items")}


def test_a_newer_store_is_refused_in_one_line(address, monkeypatch):
    store = Store(address)
    with store.writing() as transaction:
        transaction.connection.execute(text("UPDATE version SET version = 9"))
    store.close()
    said = rf"made by a newer medq_ray \(version 9, this one knows {VERSION}\): update it"
    with pytest.raises(ValueError, match=said) as error:
        Store(address)
    assert "\n" not in str(error.value)


def test_many_may_open_a_new_store_at_once(address):
    with ThreadPoolExecutor(6) as threads, ProcessPoolExecutor(3, get_context("spawn")) as processes:
        found = [pool.submit(version_of, address) for pool in (threads, processes) for _ in range(6)]
        assert {future.result() for future in found} == {VERSION}


@pytest.mark.parametrize("address", ["mysql://h/d", "http://h/d", "://", "postgresql://h:port/d"])
def test_an_address_that_is_none_is_one_line(address):
    with pytest.raises(ValueError, match="expected (a file or )?postgresql://HOST/DATABASE"):
        Store(address)


def test_a_database_that_cannot_be_reached_is_one_line_without_its_password(tmp_path):
    with pytest.raises(ConnectionError) as error:
        Store(f"postgresql://ann:secret@/reviews?host={tmp_path}")
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_a_file_that_is_no_store_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, whatever it looks like\n" * 100)
    with pytest.raises(ValueError, match="notes.txt: not a review store"):
        Store(tmp_path / "notes.txt")
    with pytest.raises(ConnectionError, match="unable to open database file"):
        Store(tmp_path)


def test_sqlite_is_set_up_for_many_readers_and_no_loss(tmp_path):
    store = Store(tmp_path / "new" / "review.db")
    with store.reading() as transaction:
        said = {name: transaction.connection.execute(text(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")}  # fmt: skip
    assert said == {"journal_mode": "wal", "busy_timeout": 30_000, "foreign_keys": 1, "synchronous": 1}


def test_what_is_acknowledged_is_on_the_disk(tmp_path, monkeypatch):
    """Nobody is told of a transaction before the log was flushed with it, one flush for all who wait."""
    store, flushed = Store(tmp_path / "review.db"), []
    lock, reader = threading.Lock(), sqlite3.connect(tmp_path / "review.db", check_same_thread=False)

    def fsync(descriptor: int) -> None:
        assert os.readlink(f"/proc/self/fd/{descriptor}") == str(tmp_path / "review.db-wal")
        time.sleep(0.05)  # so that the others come meanwhile
        with lock:
            flushed.append({line for (line,) in reader.execute("SELECT detail FROM audit")})

    def write(n: int) -> bool:
        before = len(flushed)
        with store.writing() as transaction:
            transaction.log(1.0, "ann", "look", detail=str(n))
        return any(str(n) in lines for lines in flushed[before:])

    monkeypatch.setattr(module.os, "fsync", fsync)
    with ThreadPoolExecutor(20) as threads:
        assert all(threads.map(write, range(20)))
    assert len(flushed) < 20


def test_a_disk_that_fails_is_one_line(tmp_path, monkeypatch):
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store = Store(tmp_path / "review.db")
    monkeypatch.setattr(module.os, "fsync", fsync)
    with pytest.raises(ConnectionError, match="Input/output error; what was under way may not outlive a power cut"):
        with store.writing() as transaction:
            transaction.log(1.0, "ann", "look")


def test_a_writer_that_waits_too_long_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BUSY_SECONDS", 0)
    store = Store(tmp_path / "review.db")
    other = sqlite3.connect(Path(tmp_path / "review.db"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ConnectionError, match="database is locked; what was under way is not written"):
        with store.writing():
            pass
    other.execute("ROLLBACK")
    with store.writing():
        pass
