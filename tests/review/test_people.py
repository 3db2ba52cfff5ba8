"""A run waits for people: it says how many items are left, and goes on with the same command when there are none."""

import re
import threading

import pytest
from test_handover import run_with

from medq_ray.artifacts import read_json, read_table
from medq_ray.config import Config, Review
from medq_ray.review import AwaitingReview, people
from medq_ray.review.accounts import enrol
from medq_ray.review.queue import Queue
from medq_ray.review.store import Store

CONFIG = Config(review=Review(double_share=0, seconds_per_item=0))
ITEMS = 9
"""Of three images: cold_start, expert and audited."""


def read_all(store: Store) -> None:
    queue = Queue(store, CONFIG.review)
    while (lease := queue.lease("ann")) is not None:
        queue.verdict("ann", lease.token, "accept", seconds=1.0)


def test_a_run_stops_for_people_and_goes_on_when_they_are_done(tmp_path):
    run_dir = run_with(tmp_path, images=3)
    for _ in range(2):  # the second time nothing is added
        with pytest.raises(AwaitingReview, match=rf"^awaiting review: {ITEMS} items of iteration 0 in .*review\.db"):
            people.review(run_dir, config=CONFIG, iteration=0, wait=False)
    store = Store(run_dir / "review.db")
    enrol(store, "ann", "reviewer")
    queue = Queue(store, CONFIG.review)
    queue.verdict("ann", queue.lease("ann").token, "accept", seconds=1.0)
    with pytest.raises(AwaitingReview, match=f"awaiting review: {ITEMS - 1} items"):
        people.review(run_dir, config=CONFIG, iteration=0, wait=False)
    read_all(store)
    store.close()
    counts = people.review(run_dir, config=CONFIG, iteration=0, wait=False)
    assert counts == {"reviewed": ITEMS, "accept": ITEMS, "edit": 0, "reject": 0}
    rows = read_table(run_dir / "iter-00/review/verdicts.parquet").to_pylist()
    assert {(row["reviewer"], row["simulated"]) for row in rows} == {("ann", False)} and len(rows) == ITEMS
    assert read_json(run_dir / "iter-00/review/stats.json")["simulated"] is False


def test_a_run_can_wait(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(people, "POLL", 0.05)
    run_dir = run_with(tmp_path, images=3)
    store = Store(run_dir / "review.db")
    enrol(store, "ann", "reviewer")
    with pytest.raises(AwaitingReview):
        people.review(run_dir, config=CONFIG, iteration=0, wait=False)
    reader = threading.Timer(0.3, read_all, [store])
    reader.start()
    assert people.review(run_dir, config=CONFIG, iteration=0, wait=True)["reviewed"] == ITEMS
    reader.join()
    store.close()
    assert re.search(rf"review: +100%.*{ITEMS}/{ITEMS}", "".join(capsys.readouterr()))


def test_a_store_elsewhere_is_used(tmp_path):
    config = Config(review=Review(store=str(tmp_path / "elsewhere" / "s.db")))
    with pytest.raises(AwaitingReview, match="elsewhere"):
        people.review(run_with(tmp_path / "r", images=3), config=config, iteration=0, wait=False)
    assert not (tmp_path / "r" / "review.db").exists()
