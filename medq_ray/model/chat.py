"""The one client for every model: OpenAI chat completions with retries, token logprobs and a cache on disk.

Floor 2, the only module that imports openai. Questions that cannot be answered (a refused image, a prompt that is too
long) become rows with an error; an endpoint that cannot be used at all raises `EndpointError`.
"""

import asyncio
import hashlib
import json
import math
import os
import random
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from medq_ray.serving import one_line

if TYPE_CHECKING:
    import openai

BACKOFF = 0.5
"""Seconds before the first retry; doubles with each, up to BACKOFF_LIMIT, times a random factor in [0.5, 1]."""
BACKOFF_LIMIT = 20.0
RETRIED_STATUS = {408, 409, 425, 429}
"""Besides 5xx: the client errors that another attempt may cure."""
FATAL_STATUS = {
    401: "set {key} to a key it accepts",
    403: "set {key} to a key with access to this model",
    404: "check the base URL and the model name",
}
"""Client errors that no question of the batch would escape -> what to do. Other 4xx concern the one request."""


class EndpointError(RuntimeError):
    """An endpoint cannot be used; the message is one line: which, what happened, what to do."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is reached. The key is not here: it is read from the environment when the client is made."""

    base_url: str
    """Up to and including /v1."""
    model: str
    identity: str = ""
    """Fingerprint of the checkpoint that is served; part of the cache key, so that a checkpoint trained anew under
    the same name is asked anew."""
    concurrency: int = 48
    """Requests in flight."""
    retries: int = 6
    """Attempts after the first."""
    timeout: float = 120.0
    """Seconds for one request."""
    key_from: str = "OPENAI_API_KEY"
    """Environment variable of the key; the oracle's and the model's differ, so that neither sees the other's."""

    def key(self) -> str:
        """The key, 'none' on loopback where there is none. Raises EndpointError elsewhere."""
        key = os.environ.get(self.key_from, "")
        if not key and urlsplit(self.base_url).hostname not in ("127.0.0.1", "localhost", "::1"):
            raise EndpointError(f"{self.base_url} needs a key: set {self.key_from}")
        return key or "none"


@dataclass(frozen=True)
class Sampling:
    n: int = 1
    """Completions of one request: R runs are one request, so the image is encoded once."""
    temperature: float = 0.0
    max_tokens: int = 48
    seed: int = 0
    logprobs: bool = True


@dataclass(frozen=True)
class Choice:
    """One completion. `entropy` is eq. 3: mean negative log-likelihood of the sampled tokens in nats, None without
    logprobs. `error` is '' or why there is no text."""

    text: str
    entropy: float | None
    tokens: int | None
    finish_reason: str
    error: str = ""


@dataclass(frozen=True)
class Reply:
    choices: list[Choice]
    prompt_tokens: int | None = None


class Malformed(ValueError):
    """A response with status 200 that is no chat completion."""


def read_reply(body: str, n: int) -> Reply:
    """Read a chat completion. Raises Malformed when it is not JSON or lacks one of the `n` choices."""
    try:
        data = json.loads(body)
        choices = [_read_choice(choice) for choice in sorted(data["choices"], key=lambda c: c.get("index", 0))]
        usage = data.get("usage") or {}
        if n == 1 and len(choices) == 1 and choices[0].tokens is None:
            choices = [Choice(**{**asdict(choices[0]), "tokens": usage.get("completion_tokens")})]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Malformed(f"no chat completion: {body[:60]!r}") from error
    if len(choices) != n:
        raise Malformed(f"{len(choices)} choices instead of {n}")
    return Reply(choices, usage.get("prompt_tokens"))


def _read_choice(choice: dict) -> Choice:
    content = (choice.get("logprobs") or {}).get("content") or []
    message = choice["message"]
    return Choice(
        text=message["content"] or "",
        entropy=-math.fsum(token["logprob"] for token in content) / len(content) if content else None,
        tokens=len(content) or None,
        finish_reason=choice.get("finish_reason") or "",
        error="refused: " + message["refusal"] if message.get("refusal") else "",
    )


class Client:
    """Asks one endpoint, at most `endpoint.concurrency` requests at a time. Belongs to one event loop."""

    def __init__(self, endpoint: Endpoint, key: str | None = None):
        """`key` defaults to the endpoint's in this process's environment, which a Ray worker's may not be."""
        import httpx
        import openai

        limits = httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        self.endpoint = endpoint
        self.slots = asyncio.Semaphore(endpoint.concurrency)
        self.openai = openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=key or endpoint.key(),
            timeout=endpoint.timeout,
            max_retries=0,  # ours: they also cover bodies that are no completion
            http_client=openai.DefaultAsyncHttpxClient(limits=limits, timeout=endpoint.timeout),
        )

    async def close(self) -> None:
        await self.openai.close()

    async def complete(self, messages: list[dict], sampling: Sampling) -> Reply:
        """`sampling.n` completions of one prompt; a refused request gives choices with an error.

        Raises EndpointError when the key, address or model is wrong, or when no attempt was answered.
        """
        import openai

        async with self.slots:
            for attempt in range(self.endpoint.retries + 1):
                wait = min(BACKOFF * 2**attempt, BACKOFF_LIMIT) * random.uniform(0.5, 1)
                try:
                    return await self._request(messages, sampling)
                except openai.APIStatusError as error:
                    status, reason = error.status_code, f"HTTP {error.status_code}"
                    if status in FATAL_STATUS:
                        raise self._unusable(reason, FATAL_STATUS[status].format(key=self.endpoint.key_from)) from error
                    if status < 500 and status not in RETRIED_STATUS:
                        refused = Choice("", None, None, "", f"{reason}: {one_line(error.message)}")
                        return Reply([refused] * sampling.n)
                    wait = max(wait, _retry_after(error))
                except openai.APITimeoutError:
                    reason = f"no answer within {self.endpoint.timeout:g} s"
                except openai.APIConnectionError as error:
                    reason = f"no connection ({one_line(error.__cause__ or error)})"
                except Malformed as error:
                    reason = str(error)
                if attempt < self.endpoint.retries:
                    await asyncio.sleep(wait)
        raise self._unusable(
            f"{reason} after {self.endpoint.retries + 1} attempts", "see that it is up, then run the same command again"
        )

    async def _request(self, messages: list[dict], sampling: Sampling) -> Reply:
        raw = await self.openai.chat.completions.with_raw_response.create(
            model=self.endpoint.model,
            messages=messages,
            n=sampling.n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            logprobs=sampling.logprobs,
        )
        return read_reply(raw.text, sampling.n)

    def _unusable(self, reason: str, advice: str) -> EndpointError:
        return EndpointError(f"{self.endpoint.base_url} (model {self.endpoint.model}): {reason}; {advice}")


def _retry_after(error: "openai.APIStatusError") -> float:
    """Seconds that the endpoint asks us to wait, at most a minute; 0 when it does not say or gives a date."""
    try:
        return min(float(error.response.headers.get("retry-after", "0")), 60.0)
    except ValueError:
        return 0.0


def request_key(endpoint: Endpoint, image: str, prompt: str, sampling: Sampling) -> str:
    """What makes two requests the same: sha256 over model, checkpoint, image digest, prompt and sampling. The address
    is not part of it: the same checkpoint on another port is the same model."""
    content = [endpoint.model, endpoint.identity, image, prompt, asdict(sampling)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Cache:
    """Answers on disk: what a model has given is never asked for again.

    A folder of append-only JSON lines, one file for each writing process, so that writers never share a file. Each
    line is handed to the operating system before `put` returns: a `kill -9` loses nothing that was answered.
    """

    def __init__(self, folder: Path):
        """Read every file of the folder. A last line that a kill tore off is ignored; raises ValueError naming the
        file when another line is damaged."""
        self.folder = folder
        self.answers: dict[str, list[Choice]] = {}
        self._file = None
        for path in sorted(folder.glob("*.jsonl")):
            self.answers.update(_read_lines(path))

    def get(self, key: str) -> list[Choice] | None:
        return self.answers.get(key)

    def put(self, key: str, choices: Iterable[Choice]) -> None:
        """Keep the choices of one request, which must be free of errors."""
        choices = list(choices)
        assert not any(choice.error for choice in choices), "errors are not answers"
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.folder / f"{uuid.uuid4().hex}.jsonl", "a")
        self._file.write(json.dumps([key, [[c.text, c.entropy, c.tokens, c.finish_reason] for c in choices]]) + "\n")
        self._file.flush()
        self.answers[key] = choices


def _read_lines(path: Path) -> dict[str, list[Choice]]:
    answers = {}
    *lines, _torn = path.read_text().split("\n")
    for number, line in enumerate(lines, 1):
        try:
            key, choices = json.loads(line)
            answers[key] = [Choice(*choice) for choice in choices]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number}: damaged; delete the file, its questions are asked anew") from error
    return answers
