"""The Ray Data actor that asks: keeps every answer, and finds the question that brings an engine down.

When an endpoint that has answered answers nothing any more, nothing new is sent. The questions that were in flight are
suspects: once the engine is back, they are asked by halves with nobody else beside them, and the half during which it
goes down again is halved again, so that of 48 one is found in about seven restarts. A question that brings the engine
down whenever it is asked alone, at least twice, is its culprit: recorded as failed, and in the cache, so that the next
run does not fall over it. Suspects of an engine that somebody else killed are all answered.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from medq_ray.images import data_url, read_image
from medq_ray.model.account import Account
from medq_ray.model.cache import Cache
from medq_ray.model.chat import Choice, Client, Down, Endpoint, EndpointError, Sampling, Unanswered
from medq_ray.model.prompts import messages

ANSWERED = pa.schema(
    [
        ("key", pa.string()),
        ("error", pa.string()),  # '' when the answer is in the cache
        ("fatal", pa.bool_()),  # the endpoint cannot be used
    ]
)
CULPRIT = "culprit: the engine went down twice when only this question was asked"
HOPELESS = 32
"""Questions without an answer after which an endpoint that has answered none but small talk counts as unusable."""
POLL = 0.05
"""Seconds between two looks whether all requests in flight have ended."""


@dataclass(frozen=True)
class Suspect:
    """A request that was in flight when the engine went down, and who waits for it."""

    key: str
    content: list[dict]
    outcome: asyncio.Future


class Asker:
    """Turns batches of requests (key, uris, prompt) into ANSWERED batches; answers go to the cache."""

    def __init__(self, endpoint: Endpoint, key: str, sampling: Sampling, cache: str, purpose: str):
        """purpose: of the requests, as the account of the folder `cache` keeps them."""
        account = Account(Path(cache), endpoint.tariff, purpose)
        self.client, self.sampling = Client(endpoint, key, account), sampling
        self.cache = Cache(Path(cache))  # read again: if this actor replaces one that died, its answers are there
        self.slots = asyncio.Semaphore(endpoint.concurrency)
        self.gate = asyncio.Event()
        self.gate.set()
        self.flying, self.failed, self.answered = 0, 0, 0
        self.greeting, self.greeted = asyncio.Lock(), False
        self.suspects: list[Suspect] = []
        self.fatal: EndpointError | None = None
        """Why the endpoint cannot be used."""

    async def __call__(self, batch: pa.Table, tell: Callable[[int], object] = lambda count: None) -> pa.Table:
        """tell: is given 1 when a request has been answered."""
        rows = batch.to_pylist()
        tasks = [asyncio.create_task(self.answer(**row)) for row in rows]
        for task in tasks:
            task.add_done_callback(lambda _: tell(1))
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        for error in errors:
            if isinstance(error, BaseException) and not isinstance(error, EndpointError):
                raise error
        if self.fatal is not None:  # as data: an exception would reach the driver inside a Ray traceback
            return pa.table([[""], [str(self.fatal)], [True]], schema=ANSWERED)
        return pa.table([[row["key"] for row in rows], errors, [False] * len(rows)], schema=ANSWERED)

    async def once(self, batch: pa.Table, tell: Callable[[int], object]) -> pa.Table:
        """The one batch of an Asker that belongs to no Ray."""
        try:
            return await self(batch, tell)
        finally:
            await self.client.close()

    async def answer(self, key: str, uris: list[str], prompt: str) -> str:
        """Get one request answered; '' or why it is not."""
        if key in self.cache:
            return ""
        async with self.slots:
            try:
                urls = await asyncio.to_thread(lambda: [data_url(read_image(uri)) for uri in uris])
            except ValueError as error:
                return f"unreadable image: {error}"
            if self.fatal is not None:  # what is under way is paid for, and ends; nothing new is sent
                raise self.fatal
            try:
                choices = await self.ask(key, messages(urls, prompt))
            except EndpointError as error:
                self.fatal = error
                raise
        answered = any(not choice.error for choice in choices)  # of five, one may be refused for what it says
        error = "" if answered else choices[0].error
        if answered or error == CULPRIT:
            self.cache.put(key, choices)
            self.answered += answered
        return error

    async def ask(self, key: str, content: list[dict]) -> list[Choice]:
        """The choices of one request. Raises EndpointError."""
        await self.greet()
        await self.gate.wait()
        self.flying += 1
        try:
            return await self.client.complete(content, self.sampling, key)
        except Unanswered as error:
            return self.unanswered(error)
        except Down:
            suspect = Suspect(key, content, asyncio.get_running_loop().create_future())
            self.suspects.append(suspect)
        finally:
            self.flying -= 1
        if self.gate.is_set():  # the first to notice
            self.gate.clear()
            await self.rescue()
        return await suspect.outcome

    async def greet(self) -> None:
        """Look once whether the endpoint is there: one that is and goes down over the first questions is restarting."""
        async with self.greeting:
            if not self.greeted:
                await self.client.alive()
                self.greeted = True

    def unanswered(self, error: Unanswered) -> list[Choice]:
        """A failed question. Raises EndpointError when there are many and nothing else."""
        self.failed += 1
        if self.failed >= HOPELESS and not self.answered:
            raise EndpointError(f"{self.client.endpoint.base_url} answered none of {self.failed} questions: {error}")
        return [Choice("", error=str(error))] * self.sampling.n

    async def rescue(self) -> None:
        """Get the suspects answered, once the engine is back; then let the others go on."""
        reason = EndpointError("the search for the question that brings the engine down was broken off")
        try:
            while self.flying:
                await asyncio.sleep(POLL)
            await self.client.revive()
            await self.halve(self.suspects)
        except EndpointError as error:
            reason = error
        finally:  # whoever waits is told, also when this was cancelled
            for suspect in self.suspects:
                if not suspect.outcome.done():
                    suspect.outcome.set_exception(reason)
            self.suspects = []
            self.gate.set()

    async def halve(self, suspects: list[Suspect]) -> None:
        """Ask suspects by halves while nothing else is asked; a lone one that brings the engine down twice is given
        up."""
        if len(suspects) == 1:
            for _ in range(2):
                if await self.tried(suspects[0]):
                    return
                await self.client.revive()
            suspects[0].outcome.set_result([Choice("", error=CULPRIT)] * self.sampling.n)
            return
        middle = len(suspects) // 2
        for half in (suspects[:middle], suspects[middle:]):
            answered = await asyncio.gather(*map(self.tried, half))
            if not all(answered):
                await self.client.revive()
                await self.halve([suspect for suspect, done in zip(half, answered, strict=True) if not done])

    async def tried(self, suspect: Suspect) -> bool:
        """Whether a suspect got its outcome; False when the engine went down meanwhile."""
        try:
            choices = await self.client.complete(suspect.content, self.sampling, suspect.key)
        except Unanswered as error:
            choices = self.unanswered(error)
        except Down:
            return False
        suspect.outcome.set_result(choices)
        return True
