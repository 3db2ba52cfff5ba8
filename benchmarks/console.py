"""The reading page in a real headless Chromium: from a key to the next image, and from the address to the first one.

    python -m benchmarks.console [--items N] [--json FILE]

Browser, server and SQLite store share the machine. Items are of all kinds and modalities, with images of 512 pixels.
read: a key when the next item is at hand, as for whoever looks at an image for a second; rushed: a key as soon as an
image is there, so that every verdict, the next item and its image are waited for. Times are the page's own, from the
keyboard's event, or the start of the navigation, to the end of the frame in which the image was drawn.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from medq_ray.review.store import Store
from tests.review.reading_desk import Desk, chromium
from tests.review.reading_room import KINDS, MODALITIES, draw, furnish, piece

ITEMS, KEYS, LOADS = 10_000, 50, 10
NEXT, FIRST = 100, 1000
"""Goals in ms."""
WATCH = """
    window.painted = [];
    window.pressed = 0; // of a load: its beginning
    addEventListener("keydown", (event) => (window.pressed = event.timeStamp), { capture: true });
    const after = new MessageChannel(); // a message that is sent in a frame comes when it is painted
    after.port1.onmessage = () => window.painted.push(performance.now() - window.pressed);
    new MutationObserver((changes) => {
      if (document.body?.dataset.shown && changes.some((one) => one.attributeName === "data-shown")) {
        requestAnimationFrame(() => after.port2.postMessage(0));
      }
    }).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-shown"] });
"""


def furnished(folder: Path, items: int) -> Desk:
    """A served store of so many items, a browser that has been told to take times, and its reader logged in."""
    pictures = draw(folder / "pictures", size=512)
    store = Store(folder / "review.db")
    pieces = [piece(n, KINDS[n % 5], MODALITIES[n // 5 % 5], pictures) for n in range(items)]
    tokens = furnish(store, pieces, {"ann": "reviewer"})
    store.close()
    at = Desk(chromium(), folder / "review.db", tokens)
    at.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    at.size(1280, 720)
    at.log_in("ann")
    return at


def first(at: Desk) -> list[float]:
    """Milliseconds of LOADS loads of the page."""
    found = []
    for _ in range(LOADS):
        at.browser.get("about:blank")
        at.browser.get(at.address)
        at.await_item()
        found += at.painted(1)
    return found


def keys(at: Desk, rushed: bool) -> list[float]:
    """Milliseconds of KEYS accepted items."""
    at.browser.execute_script("window.painted.length = 0")
    for _ in range(KEYS):
        if not rushed:
            at.await_ahead()
        at.give("a")
    return at.painted(KEYS)


def row(name: str, waits: list[float], goal: float) -> dict:
    waits = sorted(waits)
    p95 = waits[-1 - len(waits) // 20]
    return {"name": name, "ours": round(p95, 1), "peer": goal, "ratio": round(p95 / goal, 3), "unit": "ms (p95; goal)",
            "median": round(statistics.median(waits), 1), "longest": round(waits[-1], 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--json", type=Path, help="write the rows there as {name: {ours, peer, ratio, unit}}")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        at = furnished(Path(folder), chosen.items)
        try:
            rows = [row(f"first page, {chosen.items:,} items", first(at), FIRST),
                    row("key to next image, read", keys(at, rushed=False), NEXT),
                    row("key to next image, rushed", keys(at, rushed=True), NEXT)]  # fmt: skip
        finally:
            at.browser.quit()
            at.stop()
    for found in rows:
        print(f"{found['name']}: median {found['median']} ms, p95 {found['ours']} ms, longest {found['longest']} ms")
    if chosen.json:
        chosen.json.write_text(json.dumps({found.pop("name"): found for found in rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
