"""The review console under load: fifty reviewers at `medq review serve`, on SQLite and on PostgreSQL.

    python -m benchmarks.review [--only paced flat killed large] [--stores sqlite postgresql] [--items N] [--json FILE]

Each reviewer does over HTTP what the page does: session and CSRF token, the next item while this one is read, its
image (512 pixels, PNG), progress, verdict. A tenth of the items is read by two. Clients, server and database share the
machine's cores, and the time of an answer is taken at the client. paced: 1 to 3 s for an item, fifteen times as fast as
the paper's experts; flat: no pause at all; killed: no pause, and kill -9 of the server halfway, after which it is
started again; large: one reviewer at 10,000 waiting items. Every run ends with a check that no item was in two
hands and that exactly the acknowledged verdicts are stored. About six minutes on two cores.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from medq_ray.review.store import Store
from tests.review.crowd import Reader, Seen, Server, check, crowd
from tests.review.database import binaries, cluster, create
from tests.review.reading_room import KINDS, MODALITIES, draw, furnish, piece

REVIEWERS, ITEMS, LARGE, LOOKS = 50, 5_000, 10_000, 20
GOAL = 0.2
"""Seconds: p95 of the next item."""
FIRST_PAGE = 1.0
"""Seconds: everything that the first page waits for, at LARGE items."""


def stock(address: str, items: int, pictures: dict[str, str]) -> dict[str, str]:
    """Fill a store; reviewers' tokens."""
    store = Store(address)
    pieces = [piece(n, KINDS[n % 5], MODALITIES[n // 5 % 5], pictures, reads=2 if n % 10 == 7 else 1)
              | {"patient": f"p{n // 3:05d}"} for n in range(items)]  # fmt: skip
    tokens = furnish(store, pieces, {f"r{n:02d}": "reviewer" for n in range(REVIEWERS)})
    store.close()
    return tokens


def person(rng: random.Random) -> float:
    return rng.uniform(1, 3)


def loaded(address: str, items: int, pictures: dict, think: Callable[[], float], kill: bool) -> list[dict]:
    """One run of everybody over all items."""
    tokens = stock(address, items, pictures)
    with Server(address) as server:
        started, before, own = time.perf_counter(), server.cpu(), time.process_time()
        seen = asyncio.run(crowd(server, tokens, items, think, items // 2 if kill else None))
        took, own, used = time.perf_counter() - started, time.process_time() - own, server.cpu() - before
    found = check(address, seen)
    asked = sum(len(times) for times in seen.seconds.values())
    each = 1000 / found["verdicts"]
    note = f"{found['verdicts'] / took:.0f} verdicts/s, {asked / took:.0f} requests/s; "
    note += "" if kill else f"processor for a verdict: server {each * used:.0f} ms, clients {each * own:.0f} ms; "
    note += f"load of the machine {os.getloadavg()[0]:.0f}; p50, p95, p99 in ms: "
    note += "; ".join(f"{what} {quantiles(seen, what)}" for what in ("next", "verdict", "progress", "image"))
    if kill:
        note = f"{seen.again} requests sent again; {found['verdicts']:,} verdicts acknowledged and stored; {note}"
        return [row("verdicts lost or doubled", 0.0, 0.0, "", note)]
    return [row("p95 of the next item", float(np.quantile(seen.seconds["next"], 0.95)), GOAL, "s", note)]


def quantiles(seen: Seen, what: str) -> str:
    return " ".join(f"{1000 * q:.0f}" for q in np.quantile(seen.seconds[what], [0.5, 0.95, 0.99]))


def large(address: str, pictures: dict) -> list[dict]:
    """What the first page of one reviewer waits for, and the statistics, at LARGE items of which a third is done."""
    tokens = stock(address, LARGE, pictures)
    with Server(address) as server:
        seen = asyncio.run(looks(server.url, tokens))
    parts = {what: float(np.median(seen.seconds[what])) for what in ("page", "next", "image", "progress", "stats")}
    first = parts["page"] + parts["next"] + parts["image"] + parts["progress"]
    note = "medians in ms: " + ", ".join(f"{what} {1000 * value:.0f}" for what, value in parts.items())
    return [row(f"first page at {LARGE:,} items", first, FIRST_PAGE, "s", f"without the browser; {note}"),
            row(f"statistics at {LARGE:,} items", parts["stats"], FIRST_PAGE, "s", "")]  # fmt: skip


async def looks(url: str, tokens: dict[str, str]) -> Seen:
    import aiohttp

    seen = Seen()
    async with aiohttp.ClientSession(url, cookie_jar=aiohttp.DummyCookieJar()) as session:
        for name in list(tokens)[:LOOKS]:
            reader = Reader(name, session, seen, lambda: 0.0)
            await reader.login(tokens[name])
            item = await reader.next()
            await reader.ask("progress", "GET", "/api/progress")
            await reader.ask("stats", "GET", "/api/stats")
            await reader.decide(item)
    return seen


def row(name: str, own: float, goal: float, unit: str, note: str) -> dict:
    return {"name": name, "ours": own, "peer": goal, "ratio": goal / own if own else None, "unit": unit, "note": note}


@contextmanager
def places(store: str, folder: Path) -> Iterator[Callable[[str], str]]:
    """Addresses of new stores by name."""
    if store == "sqlite":
        yield lambda name: str(folder / f"{name}.db")
        return
    place = binaries()
    if place is None:
        raise SystemExit("no PostgreSQL here: apt-get install postgresql, or --stores sqlite")
    with cluster(place) as addresses:
        yield lambda name: create(addresses, name)


def measured(part: str, address: str, items: int, pictures: dict) -> list[dict]:
    rng = random.Random(0)
    if part == "large":
        return large(address, pictures)
    return loaded(address, items, pictures, (lambda: person(rng)) if part == "paced" else (lambda: 0.0), part == "killed")


PARTS = ("paced", "flat", "killed", "large")
STORES = ("sqlite", "postgresql")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--json", type=Path, help="write the rows there as {name: {ours, peer, ratio, unit}}")
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="medq-review-") as folder:
        pictures = draw(Path(folder) / "pictures", 512)
        for store in chosen.stores:
            with places(store, Path(folder)) as place:
                for part in chosen.only:
                    for found in measured(part, place(part), chosen.items, pictures):
                        found["name"] = f"{store}, {part}: {found['name']}"
                        rows.append(found)
                        print(f"{found['name']:<52}{found['ours']:>8.3f}{found['peer']:>6.1f} {found['unit']:<2}"
                              f"{found['note']}", flush=True)  # fmt: skip
    if chosen.json:
        chosen.json.write_text(json.dumps({found.pop("name"): found for found in rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
