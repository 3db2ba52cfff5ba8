"""Many reviewers at once against a real `medq review serve`, which may be killed: each does over HTTP what the page
does (tests/review/test_console_browser.py has the page itself), and `check` says whether anything was lost."""

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from medq_ray.review.store import Store

START_SECONDS = 60
AGAIN = 0.1
"""Seconds after which what could not be sent is sent again."""
LOOK_AGAIN = 0.5
"""Seconds after which who found nothing looks again; the page waits 30."""


class Server:
    """`medq review serve` in a process of its own, always on the same port."""

    def __init__(self, address: str, *settings: str, flags: tuple[str, ...] = ()):
        self.command = [sys.executable, "-m", "medq_ray.cli", "review", "serve", "--store", address]
        self.command += [*flags]
        self.command += [word for setting in settings for word in ("--set", setting)]
        self.port = "0"
        self.start()

    def start(self) -> None:
        command = [*self.command, "--port", self.port]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[-1]
        self.port = self.url.rpartition(":")[2]

    def cpu(self) -> float:
        """Seconds of processor that this process has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def kill(self) -> None:
        """As the kernel does it: nothing is told or finished."""
        self.process.kill()
        self.process.wait(START_SECONDS)
        self.process.stdout.close()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(START_SECONDS)
        self.process.stdout.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.stop()


@dataclass
class Seen:
    """What the crowd was told."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """What was asked for -> how long each answer took; what could not be reached is not in here."""
    leases: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Token -> (reviewer, item_id)"""
    events: dict[int, tuple[str, int, str]] = field(default_factory=dict)
    """Acknowledged verdicts: event_id -> (reviewer, token, action)"""
    holding: dict[int, str] = field(default_factory=dict)
    """Item -> who has it on the screen or next, and has not decided yet."""
    wrong: list[str] = field(default_factory=list)
    again: int = 0
    """Requests that were sent again."""


@dataclass
class Reader:
    """One reviewer's page."""

    name: str
    session: aiohttp.ClientSession
    seen: Seen
    think: Callable[[], float]
    """Seconds for the next item."""
    headers: dict[str, str] = field(default_factory=dict)

    async def ask(self, what: str, method: str, path: str, body: dict | None = None):
        """The answer; as long as the server cannot be reached, the same is sent again."""
        while True:
            started = time.perf_counter()
            try:
                async with self.session.request(method, path, json=body, headers=self.headers) as reply:
                    told = await reply.read()
                    if reply.status >= 400:
                        raise AssertionError(f"{self.name}: {method} {path}: {reply.status} {told[:200]!r}")
                    self.seen.seconds[what].append(time.perf_counter() - started)
                    return await reply.json() if reply.content_type == "application/json" else told
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                self.seen.again += 1
                await asyncio.sleep(AGAIN)

    async def login(self, token: str) -> None:
        async with self.session.post("/login", data={"token": token}, allow_redirects=False) as reply:
            assert reply.status == 303, await reply.text()
            self.headers = {"cookie": reply.headers["set-cookie"].partition(";")[0]}
        page = (await self.ask("page", "GET", "/")).decode()
        self.headers["x-csrf"] = re.search(r'name="csrf" content="(\w+)"', page)[1]

    async def next(self, after: int | None = None) -> dict | None:
        item = await self.ask("next", "POST", "/api/next" if after is None else f"/api/next?after={after}")
        if item is None:
            return None
        self.seen.leases[item["token"]] = (self.name, item["item_id"])
        other = self.seen.holding.setdefault(item["item_id"], self.name)
        if other != self.name:
            self.seen.wrong.append(f"item {item['item_id']} is held by {other} and {self.name}")
        for number in range(item["images"]):
            await self.ask("image", "GET", f"/api/items/{item['item_id']}/images/{number}")
        return item

    async def work(self, items: int) -> None:
        """Until all items are done: read one while the next is being fetched, decide, see how much is left."""
        ahead = None
        while True:
            item = ahead or await self.next()
            if item is None:
                if (await self.ask("progress", "GET", "/api/progress"))["done"] == items:
                    return
                await asyncio.sleep(LOOK_AGAIN)
                continue
            coming = asyncio.create_task(self.next(item["token"]))
            left = asyncio.create_task(self.ask("progress", "GET", "/api/progress"))
            await asyncio.sleep(self.think())
            await self.decide(item)
            ahead, _ = await coming, await left

    async def decide(self, item: dict) -> None:
        del self.seen.holding[item["item_id"]]  # from when it is sent; a colleague may have it before we hear so
        body = decision(item) | {"seconds": 0.1}
        given = await self.ask("verdict", "POST", f"/api/leases/{item['token']}/verdict", body)
        self.seen.events[given["event_id"]] = (self.name, item["token"], body["action"])
        if not given["counts"]:
            self.seen.wrong.append(f"item {item['item_id']}: {self.name}'s verdict does not count: {given['why']}")


def decision(item: dict) -> dict:
    """The same from everybody, so that double reads agree: of ten items two are edited and one is rejected."""
    which = item["item_id"] % 10
    if which < 2 and item["question"]["options"]:
        return {"action": "edit", "after": "B"}
    return {"action": "reject", "reason": "not to be told"} if which == 2 else {"action": "accept"}


async def crowd(
    server: Server, tokens: dict[str, str], items: int, think: Callable[[], float], kill_at: int | None = None
) -> Seen:
    """All reviewers (name -> token) at once, until every item is done; kill_at: verdicts after which the server is
    killed and started again."""
    seen, limits = Seen(), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, connector=limits, cookie_jar=aiohttp.DummyCookieJar()) as session:
        readers = [Reader(name, session, seen, think) for name in tokens]
        for reader in readers:
            await reader.login(tokens[reader.name])
        async with asyncio.TaskGroup() as group:
            for reader in readers:
                group.create_task(reader.work(items))
            if kill_at is not None:
                while len(seen.events) < kill_at:
                    await asyncio.sleep(0.005)
                server.kill()
                await asyncio.to_thread(server.start)
    return seen


def check(address: str | Path, seen: Seen) -> dict:
    """What the store says against what the crowd was told; raises AssertionError for anything lost, doubled or held
    twice. {items, verdicts}"""
    assert seen.wrong == [], seen.wrong[:5]
    store = Store(address)
    with store.reading() as transaction:
        events, outcomes = transaction.events(), transaction.outcomes()
        reads = {row["item_id"]: row["reads"] for row in transaction.items(("item_id", "reads"))}
        leases = {token: transaction.lease(token) for token in {event["token"] for event in events}}
    store.close()
    stored = {event["event_id"]: (event["reviewer"], event["token"], event["action"]) for event in events}
    assert stored == seen.events, "what was acknowledged and what is stored differ"
    assert all(event["counts"] for event in events)
    for token, (name, item_id) in seen.leases.items():
        assert (leases[token]["reviewer"], leases[token]["item_id"]) == (name, item_id)
    assert all(row["stage"] == "done" for row in outcomes)
    given = Counter(event["item_id"] for event in events)
    assert given == reads, "not every item has as many verdicts as it needs reads"
    readers = {(event["item_id"], event["reviewer"]) for event in events}
    assert len(readers) == len(events), "somebody read an item twice"
    return {"items": len(reads), "verdicts": len(events)}
