"""What becomes of verdicts that the server does not hear of at once: none is lost, none is doubled."""

import signal
import sqlite3
import time

import psutil
import pytest
from reading_desk import PATIENCE, Desk, chromium, programs
from reading_room import piece
from selenium.webdriver.support.ui import WebDriverWait

from medq_ray.config import Review
from medq_ray.review.queue import Queue
from medq_ray.review.store import Store

pytestmark = pytest.mark.e2e
KEPT = """
    const [count, done] = arguments;
    const opening = indexedDB.open("medq");
    opening.onsuccess = () => {
      const asking = opening.result.transaction("unsent").objectStore("unsent").count();
      asking.onsuccess = () => { opening.result.close(); done(asking.result === count); };
    };"""


def kept(at: Desk, count: int) -> None:
    """Wait until so many verdicts are on the browser's disk."""
    WebDriverWait(at.browser, PATIENCE).until(lambda _: at.browser.execute_async_script(KEPT, count))


def offline(at: Desk, gone: bool) -> None:
    at.browser.execute_cdp_cmd("Network.enable", {})
    speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    at.browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": gone, **speed})


def events(at: Desk) -> list[tuple]:
    """(item, action, reason, late) of everything that was given, as it came."""
    with sqlite3.connect(at.store) as connection:
        return connection.execute("SELECT item_id, action, reason, late FROM events ORDER BY event_id").fetchall()


def some(pictures: dict[str, str], count: int = 6) -> list[dict]:
    return [piece(n, "how", "mri", pictures) for n in range(count)]


def test_verdicts_wait_while_the_server_is_away(desk, large):
    at = desk(some(large), {"ann": "reviewer"})
    at.log_in("ann")
    at.await_ahead()
    at.stop(signal.SIGKILL)
    assert at.give("a") == "2"  # at once, from what is at hand
    at.await_text("#unsent", "1 item is kept here and not stored yet: the server cannot be reached")
    at.press("u")
    at.await_text("#status", "Not now: the server cannot be reached")
    assert at.shown() == "2"
    at.press("r")
    at.press("1")
    at.await_text("#panes", "There is no next item: the server cannot be reached")
    at.await_text("#unsent", "2 items are kept here")
    kept(at, 2)
    at.start()
    assert at.await_item() == "3"  # by itself
    assert at.text("#unsent") == ""
    kept(at, 0)
    assert events(at) == [(1, "accept", "", 0), (2, "reject", "The question does not fit the image", 0)]
    at.await_text("#left", "2 of 6 done")
    assert at.give("u") == "2" and at.give("a") == "3"
    kept(at, 0)
    assert [row[1] for row in events(at)] == ["accept", "reject", "undo", "accept"]


def test_verdicts_outlive_the_network_and_the_page(desk, large):
    at = desk(some(large), {"ann": "reviewer", "ben": "reviewer"})
    at.log_in("ann")
    at.await_ahead()
    offline(at, True)
    at.give("a")
    at.press("s")
    at.press("1")
    kept(at, 2)
    at.browser.get("about:blank")
    offline(at, False)
    at.log_in("ben")  # at the same workstation: what is another's stays
    kept(at, 2)
    at.await_ahead()
    assert at.shown() == "3" and len(events(at)) < 2  # a request that a page begins as it goes may still arrive
    at.log_in("ann")
    assert at.shown() == "5"  # ben holds two
    kept(at, 0)
    assert events(at) == [(1, "accept", "", 0), (2, "skip", "Not my field", 0)]


def test_verdicts_outlive_a_browser_that_is_killed(desk, large, tmp_path):
    if not programs():
        pytest.skip("no browser")  # `desk` has failed where there must be one
    at = desk(some(large), {"ann": "reviewer"})
    shared, at.browser = at.browser, chromium(tmp_path / "profile")
    try:
        at.log_in("ann")
        at.await_ahead()
        offline(at, True)
        at.give("a")
        at.press("r")
        at.press("2")
        kept(at, 2)
        driver = psutil.Process(at.browser.service.process.pid)
        for process in (*driver.children(recursive=True), driver):
            process.kill()
        at.browser.service.process.wait()
        at.browser = chromium(tmp_path / "profile")
        at.browser.get(at.address)
        if at.browser.current_url.endswith("/login"):  # the cookie was not on the disk yet
            at.log_in("ann")
        assert at.await_item() == "3"
        kept(at, 0)
        assert events(at) == [(1, "accept", "", 0), (2, "reject", "No option is right", 0)]
    finally:
        at.browser.quit()
        at.browser = shared


@pytest.mark.parametrize("loss", ['throw new TypeError("no reply")', """return new Response(
  new ReadableStream({ start: (stream) => stream.error(new TypeError("it breaks off")) }))"""], ids=["whole", "half"])
def test_a_reply_that_is_lost_makes_no_second_event(desk, large, loss):
    at = desk(some(large), {"ann": "reviewer"})
    at.log_in("ann")
    at.await_ahead()
    at.browser.execute_script(f"""
        const real = window.fetch;
        window.fetch = async (path, options) => {{
          const reply = await real(path, options);
          if (String(path).endsWith("/verdict") && !window.lost) {{
            window.lost = true;
            {loss};
          }}
          return reply;
        }};""")
    assert at.give("a") == "2"
    kept(at, 0)
    assert at.browser.execute_script("return window.lost") and events(at) == [(1, "accept", "", 0)]


def test_an_undo_whose_reply_is_lost_takes_one_back_and_not_two(desk, large):
    at = desk(some(large), {"ann": "reviewer"})
    at.log_in("ann")
    at.give("a")
    at.give("a")
    kept(at, 0)
    at.browser.execute_script("""
        const real = window.fetch;
        window.fetch = async (path, options) => {
          const reply = await real(path, options);
          if (String(path).startsWith("/api/undo") && !window.lost) {
            window.lost = true;
            throw new TypeError("no reply");
          }
          return reply;
        };""")
    at.press("u")
    at.await_text("#status", "Not now: the server cannot be reached")
    assert at.give("u") == "2"
    assert [row[:2] for row in events(at)] == [(1, "accept"), (2, "accept"), (2, "undo")]
    assert at.give("u") == "1"


def test_who_is_too_late_is_told_and_overwrites_nothing(desk, large):
    at = desk(some(large), {"ann": "reviewer", "ben": "reviewer"})
    at.log_in("ann")
    at.await_ahead()
    at.stop(signal.SIGKILL)
    at.give("a")
    kept(at, 1)
    store = Store(at.store)
    ben = Queue(store, Review(), now=lambda: time.time() + 3600)  # ann's leases have run out by then
    lease = ben.lease("ben")
    ben.verdict("ben", lease.token, "reject", reason="No option is right", seconds=1)
    store.close()
    assert lease.item_id == 1
    at.start()
    at.await_text("#notices", "Item 1: what you gave is kept, but does not count: somebody has taken the item since.")
    assert events(at) == [(1, "reject", "No option is right", 0), (1, "accept", "", 1)]


def test_a_verdict_of_another_store_is_refused_and_said(desk, large):
    at = desk(some(large), {"ann": "reviewer"})
    at.log_in("ann")
    at.await_ahead()
    at.stop(signal.SIGKILL)
    at.give("a")
    kept(at, 1)
    with sqlite3.connect(at.store) as connection:  # as good as another store, with a lease of that number
        connection.execute("UPDATE leases SET taken_at = taken_at + 1000")
    at.start()
    at.await_text("#notices", "Item 1 was not accepted: lease 1 is another one here")
    assert events(at) == []
    at.press_button("#notices button")  # back to it
    assert at.await_item("2") == "1"
