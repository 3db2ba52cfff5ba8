"""What an endpoint's answers cost: every request is written down before it is sent and when it has ended.

Floor 2. So a `kill -9` leaves no expense unknown: what was sent and never ended may have been answered, and counts with
the most that it can have cost. Prices, rates and the budget are settings; the file lies beside the answers it paid for.
"""

import asyncio
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = "requests"
"""Of the requests, in the folder of an endpoint's answers."""
IMAGE_TOKENS = 1_445
"""Most tokens that GPT-4o books for one image (85, and 170 for each of 8 tiles); what an endpoint has booked for one
request counts instead once it is more."""
MILLION = 1_000_000


class OverBudget(RuntimeError):
    """Another request could cost more than the budget has left."""

    def __init__(self, money: float, most: float, limit: float):
        """money: spent so far; most: what the request can cost."""
        super().__init__(f"{money:.4f} of {limit:g} is spent and another request may cost {most:.4f}")


@dataclass(frozen=True)
class Tariff:
    """What an endpoint takes for its tokens, and how and how much it may be asked."""

    input_price: float = 0.0
    """Of a million prompt tokens."""
    output_price: float = 0.0
    """Of a million tokens written."""
    section: str = "oracle"
    """Of the settings that name it."""
    max_cost: float | None = None
    """Most that all requests together may cost, in the prices' money; None: no limit."""
    requests_per_minute: float = 0.0
    """0: no limit."""
    tokens_per_minute: float = 0.0
    """Prompt and longest answer together, each at its most, so that a limit is rather kept too well; 0: no limit."""
    batch: int = 0
    """Requests of a batch (`model.batch`); 0: each by itself."""
    batch_price: float = 1.0
    """What a batch costs of the prices."""

    def cost(self, prompt_tokens: int, tokens: int) -> float:
        return (prompt_tokens * self.input_price + tokens * self.output_price) / MILLION


class Pace:
    """Evenly spaced turns: at most `per_minute` units in any minute."""

    def __init__(self, per_minute: float):
        self.seconds = 60 / per_minute if per_minute else 0.0
        self.free = 0.0
        self.queue = asyncio.Lock()

    async def turn(self, units: float) -> None:
        async with self.queue:  # one looks at the clock: whoever was told to wait holds up all behind him
            while (wait := self.free - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self.free = time.monotonic() + units * self.seconds

    def hold(self, seconds: float) -> None:
        """Nobody's turn for so long."""
        self.free = max(self.free, time.monotonic() + seconds)


class Account:
    """The requests of one endpoint: admits them at their pace while there is money, and keeps the file. Belongs to one
    event loop."""

    def __init__(self, folder: Path, tariff: Tariff, purpose: str):
        """folder: of the endpoint's answers; purpose: what the requests are for, 'STEP: words'."""
        self.tariff, self.purpose, self.folder = tariff, purpose, folder / FOLDER
        self.spent = spent(folder)
        self.reserved: dict[str, float] = {}
        self.most = 0
        """Prompt tokens of the longest request so far."""
        self.changed = asyncio.Condition()
        self.requests, self.tokens = Pace(tariff.requests_per_minute), Pace(tariff.tokens_per_minute)
        self.file = None

    async def admit(self, messages: list[dict], most_tokens: int, *, probe: bool = False) -> str:
        """Wait for a request's turn, write down that it is sent and return its number. Raises OverBudget when it could
        cost more than is left; while others are under way, which mostly cost less than they could, it waits for them.

        most_tokens: of all its answers together; probe: a look whether the endpoint is alive, which waits for nobody.
        """
        prompt = most_prompt_tokens(messages, self.most)
        worst, limit, number = self.tariff.cost(prompt, most_tokens), self.tariff.max_cost, uuid.uuid4().hex
        line = opened(number, self.purpose, round(time.time(), 3), worst)
        if probe:
            self._afford(worst)
            self.reserved[number] = worst
            self._write(line | {"probe": True})
            return number
        async with self.changed:
            if limit is not None:
                await self.changed.wait_for(
                    lambda: not self.reserved or self.spent + sum(self.reserved.values()) + worst <= limit
                )
            self._afford(worst)
            self.reserved[number] = worst
        try:
            await self.requests.turn(1)
            await self.tokens.turn(prompt + most_tokens)
        except asyncio.CancelledError:  # it was never sent
            del self.reserved[number]
            raise
        self._write(line)
        return number

    def _afford(self, worst: float) -> None:
        """Raises OverBudget when so much is not left."""
        limit = self.tariff.max_cost
        if limit is not None and self.spent + worst > limit:
            raise OverBudget(self.spent, worst, limit)

    async def close(self, number: str, used: tuple[int, int] | None, seconds: float, outcome: str) -> None:
        """Write down how a request ended; used: tokens of prompt and answers, None where it may have been answered and
        nobody knows; outcome: 'answered' or why it was not."""
        money = self.reserved[number] if used is None else self.tariff.cost(*used)
        self._write(closed(number, used, seconds, money, outcome))
        self.most = max(self.most, used[0] if used else 0)
        async with self.changed:
            self.spent += money
            del self.reserved[number]
            self.changed.notify_all()

    def _write(self, line: dict) -> None:
        """Handed to the operating system before anything else happens."""
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.folder / f"{uuid.uuid4().hex}.jsonl", "a")
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


def opened(number: str, purpose: str, at: float, most: float) -> dict:
    """The line of a request that is sent; most: what it can cost; at: seconds since 1970."""
    return {"id": number, "purpose": purpose, "at": at, "most": most}


def closed(number: str, used: tuple[int, int] | None, seconds: float, money: float, outcome: str) -> dict:
    """The line of a request that has ended; used: tokens of prompt and answers, None where nobody knows."""
    prompt_tokens, tokens = used or (0, 0)
    return {"id": number, "prompt_tokens": prompt_tokens, "tokens": tokens, "seconds": round(seconds, 3),
            "money": money, "outcome": outcome}  # fmt: skip


def rewrite(path: Path, lines: list[dict]) -> None:
    """Replace a file of the account, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(temporary, path)


def spent(folder: Path) -> float:
    """Money for all requests to an endpoint so far. Raises as `requests`."""
    return sum(line["money"] for line in requests(folder))


def note_cached(folder: Path, purpose: str, count: int) -> None:
    """Write down that so many answers were there already, and cost nothing; 0 too, since after a kill more are."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with open(folder / FOLDER / "cached.jsonl", "a") as file:
        file.write(json.dumps({"purpose": purpose, "at": round(time.time(), 3), "cached": count}) + "\n")


def most_prompt_tokens(messages: list[dict], seen: int = 0) -> int:
    """No tokenizer makes more tokens of a text than it has bytes; an image counts as IMAGE_TOKENS, or as what was seen
    of one request, if that was more."""
    parts = [part for message in messages for part in in_parts(message["content"])]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    said, images = sum(len(text.encode("utf-8", "replace")) for text in texts), len(parts) - len(texts)
    return max(IMAGE_TOKENS * images + said, seen * images) if images else said


def in_parts(content: str | list[dict]) -> list[dict]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def lines_of(path: Path) -> Iterator[dict]:
    """The lines of one file. Raises ValueError naming it when one is damaged; a last one that a kill tore off is
    none."""
    with open(path) as file:
        for count, text in enumerate(file, 1):
            if text.endswith("\n"):
                try:
                    yield json.loads(text)
                except ValueError as error:
                    hint = "delete the file, and its requests are forgotten"
                    raise ValueError(f"{path}:{count}: damaged; {hint}") from error


def requests(folder: Path) -> Iterator[dict]:
    """One row for each request that was sent: {purpose, at, probe, prompt_tokens, tokens, seconds, money, outcome}.

    Of one that never ended the outcome is 'unknown', and the money the most that it may have cost. Raises as
    `lines_of`, and ValueError naming the file for an end without a beginning.
    """
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        sent: dict[str, dict] = {}
        for line in lines_of(path):
            if "outcome" in line and line["id"] not in sent:
                raise ValueError(f"{path}: a request ends that never began; delete the file, and it is forgotten")
            if "outcome" in line:
                opened = sent.pop(line.pop("id"))
                yield {"purpose": opened["purpose"], "at": opened["at"], "probe": "probe" in opened} | line
            elif "id" in line:
                sent[line.pop("id")] = line
        for line in sent.values():
            yield {"purpose": line["purpose"], "at": line["at"], "probe": "probe" in line, "prompt_tokens": 0,
                   "tokens": 0, "seconds": 0.0, "money": line["most"], "outcome": "unknown"}  # fmt: skip


SUMS = {"requests": "requests", "cached": "requests", "failed": "requests", "unknown": "requests",
        "prompt_tokens": "tokens", "tokens": "tokens", "seconds": "seconds", "money": "money"}  # fmt: skip
"""What `usage` adds up, and the units."""


def usage(folder: Path, purpose: str) -> dict[str, float]:
    """SUMS over the requests whose purpose starts so; looks whether an endpoint is alive only cost.

    cached: answers that were there before the first request was sent; failed: requests that ended without one; unknown:
    that were under way when somebody killed us; seconds: of waiting for answers, which overlap.
    """
    sums = dict.fromkeys(SUMS, 0.0)
    for line in requests(folder):
        if line["purpose"].startswith(purpose):
            sums["requests"] += not line["probe"]
            sums["failed"] += not line["probe"] and line["outcome"] not in ("answered", "unknown")
            sums["unknown"] += not line["probe"] and line["outcome"] == "unknown"
            for name in ("prompt_tokens", "tokens", "seconds", "money"):
                sums[name] += line[name]
    kept = folder / FOLDER / "cached.jsonl"
    first: dict[str, int] = {}
    for line in lines_of(kept) if kept.exists() else ():
        if line["purpose"].startswith(purpose):
            first.setdefault(line["purpose"], line["cached"])
    return sums | {"cached": float(sum(first.values()))}
