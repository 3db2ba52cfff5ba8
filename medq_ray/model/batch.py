"""Many requests as one batch, as endpoints that speak OpenAI's Batch API offer: answered within a day, at half the
price.

Floor 2. A batch only fills the cache: what it leaves unanswered is asked one by one as ever. Its state is a file beside
the answers, written before every step, so that after a `kill -9` the same command waits for the same batch instead of
paying for another.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from medq_ray.artifacts import write_json
from medq_ray.images import data_url, read_image
from medq_ray.model.account import FOLDER, OverBudget, closed, most_prompt_tokens, opened, rewrite, spent
from medq_ray.model.cache import Cache
from medq_ray.model.chat import Client, Endpoint, EndpointError, Malformed, Sampling, read_bill
from medq_ray.model.prompts import messages

STATES = "batches"
"""Of batches under way, in the folder of an endpoint's answers."""
MOST_BYTES = 150_000_000
"""Of the requests of one batch: OpenAI takes 200 MB."""
PATIENCE = 60.0
"""Most seconds between two looks at a batch; the first come sooner."""
ENDED = ("completed", "failed", "expired", "cancelled")


def ask_batches(
    rows: list[dict], endpoint: Endpoint, sampling: Sampling, cache: Path, purpose: str, tell: Callable[[int], object]
) -> None:
    """Fill the cache by batches of `endpoint.tariff.batch` requests, one batch at a time, after those that a kill has
    left under way.

    rows: key, uris and prompt of each request; one with an image that cannot be read is left out. tell: is given how
    many more have been answered. Raises EndpointError (one line) when the endpoint offers no batches, fails one as a
    whole or cannot be reached, and when the budget does not allow another request.
    """
    asyncio.run(Batches(endpoint, sampling, cache, purpose, tell).run(rows))


class Batches:
    """The batches of one endpoint, for one purpose. Belongs to one event loop."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling, cache: Path, purpose: str, tell: Callable):
        self.endpoint, self.sampling, self.purpose, self.tell = endpoint, sampling, purpose, tell
        self.folder, self.cache = cache, Cache(cache)
        self.client = Client(endpoint)
        self.remote = self.client.openai.with_options(max_retries=endpoint.retries)

    async def run(self, rows: list[dict]) -> None:
        try:
            for path in sorted((self.folder / STATES).glob("*.json")):
                await self.resume(path)
            for orphan in (self.folder / STATES).glob("*.jsonl"):  # of a kill before there was a state
                orphan.unlink()
            rows = [row for row in rows if row["key"] not in self.cache]
            while rows:
                taken = await self.submit(rows[: self.endpoint.tariff.batch])
                rows = rows[taken:]
        finally:
            await self.client.close()

    async def submit(self, rows: list[dict]) -> int:
        """Send as many of the first rows as the budget and MOST_BYTES allow, and collect their answers; how many."""
        name = uuid.uuid4().hex
        state = {"purpose": self.purpose, "at": round(time.time(), 3), "most": {}, "file": None, "batch": None}
        path, sent = self.folder / STATES / f"{name}.json", self.folder / STATES / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        taken = 0
        with open(sent, "w") as file:
            for key, line, most in self.lines(rows):
                if line:
                    file.write(line)
                    state["most"][key] = most
                taken += 1
        if state["most"]:
            self.note(path, state)
            with self.client.usable("uploads no batch", self.advice()):
                uploaded = await self.remote.files.create(file=sent, purpose="batch")
            self.note(path, state | {"file": uploaded.id})
            await self.resume(path)
        sent.unlink()
        return taken

    def lines(self, rows: list[dict]) -> Iterator[tuple[str, str, float]]:
        """(key, the request as a line of the file, its greatest cost) until the budget or MOST_BYTES is used up; no
        line for a request whose image cannot be read. Raises EndpointError when not even one fits the budget."""
        tariff, size, total = self.endpoint.tariff, 0, spent(self.folder)
        for number, row in enumerate(rows):
            try:
                content = messages([data_url(read_image(uri)) for uri in row["uris"]], row["prompt"])
            except ValueError:  # whoever asks one by one says why
                yield row["key"], "", 0.0
                continue
            prompt = most_prompt_tokens(content)
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

    async def resume(self, path: Path) -> None:
        """Go on with a batch from where its state says."""
        state = json.loads(path.read_text())
        if state["file"] is None:  # nobody was asked anything
            self.forget(path)
            return
        with self.client.usable("makes no batch", self.advice()):
            if state["batch"] is None:
                state["batch"] = await self.known(state["file"]) or await self.create(state["file"])
                self.note(path, state)
            batch = await self.ended(state["batch"])
            answers, failed = [], []
            if batch.output_file_id:
                answers = (await self.remote.files.content(batch.output_file_id)).text.splitlines()
            if batch.error_file_id:
                failed = (await self.remote.files.content(batch.error_file_id)).text.splitlines()
        self.keep(path, state, [json.loads(line) for line in answers + failed], batch.status)
        with self.client.usable("does not delete the files of a batch", "delete them there by hand"):
            for file in (state["file"], batch.output_file_id, batch.error_file_id):
                if file:
                    await self.remote.files.delete(file)
        if batch.status == "failed":
            errors = [error.message for error in (batch.errors.data if batch.errors else None) or []]
            raise EndpointError(f"{self.endpoint.base_url} (model {self.endpoint.model}): batch {batch.id} failed: "
                                f"{errors[0] if errors else 'no reason given'}; {self.advice()}")  # fmt: skip

    async def known(self, file: str) -> str | None:
        """The batch that was made of a file before we were killed."""
        async for batch in self.remote.batches.list(limit=100):
            if batch.input_file_id == file:
                return batch.id
        return None

    async def create(self, file: str) -> str:
        made = await self.remote.batches.create(
            input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
        )
        return made.id

    async def ended(self, name: str):
        """The batch once nothing more will come of it."""
        wait, told = 0.5, 0
        while True:
            batch = await self.remote.batches.retrieve(name)
            done = batch.request_counts.completed if batch.request_counts else 0
            self.tell(done - told)
            told = done
            if batch.status in ENDED:
                return batch
            await asyncio.sleep(wait)
            wait = min(2 * wait, PATIENCE)

    def keep(self, path: Path, state: dict, lines: list[dict], status: str) -> None:
        """Answers into the cache, costs into the account, the state away; twice is once."""
        book = {}
        for line in lines:
            response = line.get("response") or {}
            key, code = line["custom_id"], response.get("status_code")
            if code != 200:
                book[key] = ((0, 0), f"HTTP {code}" if code else status)
                continue
            try:
                choices, used = read_bill(json.dumps(response["body"]))
            except Malformed as error:
                book[key] = (None, str(error))
                continue
            if len(choices) == self.sampling.n and any(not choice.error for choice in choices):
                self.cache.put(key, choices)
            book[key] = (used, "answered")
        tariff, entries = self.endpoint.tariff, []
        for key, most in state["most"].items():
            used, outcome = book.get(key, ((0, 0), status))
            money = most if used is None else tariff.batch_price * tariff.cost(*used)
            entries += [opened(key, state["purpose"], state["at"], most), closed(key, used, 0.0, money, outcome)]
        self.write_down(path, entries)
        path.unlink()

    def note(self, path: Path, state: dict) -> None:
        """The state, and before it the requests as sent: whatever happens now, they may have been answered."""
        self.write_down(path, [opened(key, state["purpose"], state["at"], most) for key, most in state["most"].items()])
        write_json(path, state)

    def write_down(self, path: Path, entries: list[dict]) -> None:
        """The lines of a batch in the account."""
        rewrite(self.folder / FOLDER / f"batch-{path.stem}.jsonl", entries)

    def forget(self, path: Path) -> None:
        self.write_down(path, [])
        path.with_suffix(".jsonl").unlink(missing_ok=True)
        path.unlink()

    def advice(self) -> str:
        return f"set {self.endpoint.tariff.section}.batch=0 to ask one by one, or run the same command again"
