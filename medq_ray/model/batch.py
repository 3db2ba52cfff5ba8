"""Many requests as one batch, as endpoints that speak OpenAI's Batch API offer: answered within a day, at half the
price.

Floor 2. A batch only fills the cache: what it leaves unanswered is asked one by one as ever. Its state is a file beside
the answers, written before every step, so that after a `kill -9` the same command waits for the same batch instead of
paying for another, and no picture stays at the endpoint.
"""

import asyncio
import itertools
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medq_ray.artifacts import write_json
from medq_ray.console import say
from medq_ray.images import data_url, read_image
from medq_ray.model.account import FOLDER, OverBudget, closed, most_prompt_tokens, opened, requests, rewrite
from medq_ray.model.cache import Cache
from medq_ray.model.chat import Choice, Client, Endpoint, EndpointError, Malformed, Refused, Sampling, read_bill
from medq_ray.model.prompts import messages
from medq_ray.serving import one_line

STATES = "batches"
"""Of batches under way, in the folder of an endpoint's answers."""
MOST_BYTES = 150_000_000
"""Of the requests of one batch: OpenAI takes 200 MB."""
LONGEST_PAUSE = 60.0
"""Most seconds between two looks at a batch; the first come sooner."""
LOOKS = (0.0, 5.0, 15.0, 40.0)
"""Seconds before each look for a batch that may have been made unheard: endpoints may list it late."""
GONE = 404
ENDED = ("completed", "failed", "expired", "cancelled")
FIELDS = {"purpose", "at", "most", "file", "batch", "kept", "failed"}
"""Of a state: what the requests are for, when they were written down, key -> the most that each can cost, the uploaded
file, the batch, the files of its answers once they are kept, and why it failed."""


def under_way(cache: Path) -> bool:
    """Whether batches were left by a kill, or by an endpoint in trouble."""
    return any((cache / STATES).glob("*.json*"))


def ask_batches(
    rows: list[dict], endpoint: Endpoint, sampling: Sampling, cache: Path, purpose: str, tell: Callable[[int], object]
) -> None:
    """Fill the cache by batches of `endpoint.tariff.batch` requests, one at a time, after those that are under way.

    rows: key, uris and prompt of each request; one with an image that cannot be read is left out. tell: is given how
    many more have been answered. Raises EndpointError (one line) when the endpoint offers no batches, fails one as a
    whole or cannot be reached for its patience, and when the budget does not allow another request; ValueError naming
    a state that is damaged.
    """
    asyncio.run(Batches(endpoint, sampling, cache, purpose, tell).run(rows))


class Batches:
    """The batches of one endpoint, for one purpose. Belongs to one event loop."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling, cache: Path, purpose: str, tell: Callable):
        self.endpoint, self.sampling, self.purpose, self.tell = endpoint, sampling, purpose, tell
        self.folder, self.cache = cache, Cache(cache)
        self.client = Client(endpoint)
        self.remote = self.client.openai

    async def run(self, rows: list[dict]) -> None:
        try:
            for path in sorted((self.folder / STATES).glob("*.json")):
                await self.go_on(path, new=False)
            for orphan in (self.folder / STATES).glob("*.jsonl"):  # of a kill before there was a state, and any sending
                self.book(orphan, [])
                orphan.unlink()
            for torn in (self.folder / STATES).glob("*.tmp"):
                torn.unlink()
            rows = [row for row in rows if row["key"] not in self.cache]
            while rows and self.endpoint.tariff.batch:
                taken = await self.submit(rows[: self.endpoint.tariff.batch])
                rows = rows[taken:]
        finally:
            await self.client.close()

    async def submit(self, rows: list[dict]) -> int:
        """Send as many of the first rows as the budget and MOST_BYTES allow, and keep their answers; how many."""
        path = self.folder / STATES / f"{uuid.uuid4().hex}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        taken, most = 0, {}
        with open(path.with_suffix(".jsonl"), "w") as file:
            for key, line, money in self.lines(rows):
                if line:
                    file.write(line)
                    most[key] = money
                taken += 1
        if not most:
            path.with_suffix(".jsonl").unlink()
            return taken
        state = dict.fromkeys(FIELDS) | {"purpose": self.purpose, "at": round(time.time(), 3), "most": most}
        self.book(path, [opened(key, state["purpose"], state["at"], money) for key, money in most.items()])
        write_json(path, state)
        await self.go_on(path, new=True)
        return taken

    def lines(self, rows: list[dict]) -> Iterator[tuple[str, str, float]]:
        """(key, the request as a line of the file, its greatest cost) until the budget or MOST_BYTES is used up; no
        line for a request whose image cannot be read. Raises EndpointError when not even one fits the budget."""
        tariff, size, booked = self.endpoint.tariff, 0, list(requests(self.folder))
        total, seen = sum(line["money"] for line in booked), max((line["prompt_tokens"] for line in booked), default=0)
        for number, row in enumerate(rows):
            try:
                content = messages([data_url(read_image(uri)) for uri in row["uris"]], row["prompt"])
            except ValueError:  # whoever asks one by one says why
                yield row["key"], "", 0.0
                continue
            prompt = most_prompt_tokens(content, seen)
            most = tariff.batch_price * tariff.cost(prompt, self.sampling.n * self.sampling.max_tokens)
            if tariff.max_cost is not None and total + most > tariff.max_cost:
                if number == 0:
                    raise self.client.over_budget(OverBudget(total, most, tariff.max_cost))
                return
            line = {"custom_id": row["key"], "method": "POST", "url": "/v1/chat/completions",
                    "body": self.client.body(content, self.sampling)}  # fmt: skip
            text = json.dumps(line) + "\n"
            if size and size + len(text) > MOST_BYTES:
                return
            size, total = size + len(text), total + most
            yield row["key"], text, most

    async def go_on(self, path: Path, *, new: bool) -> None:
        """Finish a batch from where its state says: upload it, make it, wait, keep the answers, clear up there; new:
        nothing was sent before. Raises EndpointError too when the batch has failed as a whole."""
        state, again = read_state(path), f"run the same command again, or delete {path} to ask, and pay, anew"
        if state["file"] is None:
            one_by_one = f"set {self.endpoint.tariff.section}.batch=0 to ask one by one"
            uploads = itertools.count(int(not new))  # only the very first can do without looking
            try:
                state["file"] = await self.client.patiently(
                    lambda: self.uploaded(path, next(uploads) == 0), "uploads no batch", one_by_one
                )
            except Refused:
                self.forget(path)
                raise
            if state["file"] is None:  # and batches are no longer wanted
                self.forget(path)
                return
            write_json(path, state)
        if state["batch"] is None:
            looks = itertools.count(int(not new))
            try:
                state["batch"] = await self.client.patiently(
                    lambda: self.made(state["file"], next(looks) == 0), "makes no batch", again
                )
            except Refused:
                if await self.deleted([state["file"]]):
                    self.forget(path)
                raise
            write_json(path, state)
        if state["kept"] is None:
            batch = await self.ended(state["batch"], again)
            files = [name for name in (batch.output_file_id, batch.error_file_id) if name]
            texts = [await self.client.patiently(lambda name=name: self.text(name), "gives no answers", again)
                     for name in files]  # fmt: skip
            self.keep(path, state, "\n".join(texts), batch.status)
            errors = (batch.errors.data if batch.errors else None) or []
            why = one_line(errors[0].message or "") if errors else "no reason given"
            write_json(path, state := state | {"kept": files, "failed": why if batch.status == "failed" else None})
        if await self.deleted([state["file"], *state["kept"]]):
            path.with_suffix(".jsonl").unlink(missing_ok=True)
            path.unlink()
        if state["failed"] is not None:
            advice = f"mend that, or set {self.endpoint.tariff.section}.batch=0, and run the same command again"
            raise self.client.unusable(f"batch {state['batch']} failed: {state['failed']}", advice)

    async def deleted(self, files: list[str]) -> bool:
        """Delete files there; whether nothing more can be done: one that the endpoint keeps is named, and only where it
        could not be reached another try makes sense."""
        over = True
        for name in files:
            try:
                await self.client.patiently(lambda name=name: self.remote.files.delete(name), "keeps a file", "")
            except EndpointError as error:
                refused = isinstance(error, Refused)
                over = over and refused
                if not (refused and error.status == GONE):
                    say(f"  {name} has our requests in it, pictures too: delete it there ({error})")
        return over

    async def uploaded(self, path: Path, new: bool) -> str | None:
        """The file of a batch there, by its name if it was uploaded before we were killed. None where it was not, and
        nobody wants batches any more."""
        requests_file = path.with_suffix(".jsonl")
        if not new:
            async for known in self.remote.files.list(purpose="batch"):
                if known.filename == requests_file.name:
                    return known.id
            if not self.endpoint.tariff.batch or not requests_file.exists():
                return None
        return self.identified(await self.remote.files.create(file=requests_file, purpose="batch")).id

    async def made(self, file: str, new: bool) -> str:
        """The batch of a file. One whose making we may not have heard of is paid all the same, and looked for first."""
        for pause in () if new else LOOKS:
            await asyncio.sleep(pause)
            async for batch in self.remote.batches.list(limit=100):
                if batch.input_file_id == file:
                    return batch.id
        made = self.remote.batches.create(
            input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h",
            extra_headers={"Idempotency-Key": file},
        )  # fmt: skip
        return self.identified(await made).id

    async def ended(self, name: str, again: str) -> Any:
        """The batch once nothing more will come of it."""
        wait, told = 0.5, 0
        while True:
            batch = self.identified(
                await self.client.patiently(lambda: self.remote.batches.retrieve(name), "loses a batch", again)
            )
            done = (batch.request_counts.completed if batch.request_counts else 0) or 0
            self.tell(done - told)
            told = done
            if batch.status in ENDED:
                return batch
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_PAUSE)

    async def text(self, file: str) -> str:
        return (await self.remote.files.content(file)).text

    def identified(self, reply: Any) -> Any:
        """A reply that names what it is about. Raises EndpointError for another, such as a page for people."""
        if not isinstance(getattr(reply, "id", None), str):
            raise self.client.unusable("answers with neither file nor batch", "check the base URL")
        return reply

    def keep(self, path: Path, state: dict, answers: str, status: str) -> None:
        """Answers into the cache, costs into the account; twice is once. Lines that cannot be read answer nothing;
        raises EndpointError where none can, as of a page in the place of the answers."""
        found = {}
        for line in filter(None, map(str.strip, answers.split("\n"))):
            try:
                key, choices, used, outcome = read_line(line)
            except Malformed:
                continue
            if key not in state["most"] or found.get(key, (None, ""))[1] == "answered":
                continue
            if outcome == "answered":
                if len(choices) == self.sampling.n and any(not choice.error for choice in choices):
                    self.cache.put(key, choices)
                else:
                    outcome = "refused or incomplete"
            found[key] = (used, outcome)
        if answers.strip() and not found:
            raise self.client.unusable(f"nobody can read the answers of batch {state['batch']}", "run the same command "
                                       f"again, or delete {path} to ask, and pay, anew")  # fmt: skip
        tariff, entries = self.endpoint.tariff, []
        for key, most in state["most"].items():
            used, outcome = found.get(key, (None, "lost") if status == "completed" else ((0, 0), status))
            money = most if used is None else tariff.batch_price * tariff.cost(*used)
            entries += [opened(key, state["purpose"], state["at"], most), closed(key, used, 0.0, money, outcome)]
        self.book(path, entries)
        outcomes = Counter(entry["outcome"] for entry in entries if "outcome" in entry)
        if others := len(state["most"]) - outcomes.pop("answered", 0):
            why = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
            say(f"  {others} of {len(state['most'])} requests of a batch are not answered ({why}): asked one by one")

    def book(self, path: Path, entries: list[dict]) -> None:
        """The lines of a batch in the account."""
        rewrite(self.folder / FOLDER / f"batch-{path.stem}.jsonl", entries)

    def forget(self, path: Path) -> None:
        """A batch of which nothing was sent."""
        self.book(path, [])
        path.with_suffix(".jsonl").unlink(missing_ok=True)
        path.unlink()


def read_state(path: Path) -> dict:
    """Raises ValueError naming a state that is damaged."""
    try:
        state = json.loads(path.read_text())
        if set(state) != FIELDS:
            raise ValueError("other fields than expected")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); delete it, and its batch is asked, and paid, anew") from error
    return state


def read_line(text: str) -> tuple[str, list[Choice], tuple[int, int] | None, str]:
    """(key, choices, tokens of prompt and answers, outcome) in a line of a batch's answers. Raises Malformed."""
    try:
        line = json.loads(text)
        key, response = line["custom_id"], line.get("response") or {}
        code, body = response.get("status_code"), response.get("body")
        if not isinstance(key, str):
            raise TypeError("no name")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed(f"no line of a batch: {text[:60]!r}") from error
    if code != 200:
        return key, [], (0, 0), f"HTTP {code}" if code else "no answer"
    try:
        choices, used = read_bill(json.dumps(body))
    except Malformed:
        return key, [], None, "no completion"
    return key, choices, used, "answered"
