"""The one client for every model: OpenAI chat completions with retries and token logprobs.

Floor 2, the only module that imports openai. It tells apart what concerns one question (a refused image, a prompt that
is too long, no answer in time), an endpoint that is down for the moment, and one that cannot be used at all.
"""

import asyncio
import json
import math
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from medq_ray.model.account import Account, OverBudget, Tariff
from medq_ray.serving import one_line

if TYPE_CHECKING:
    import openai

T = TypeVar("T")
BACKOFF = 0.5
"""Seconds before the first retry; doubles with each, up to BACKOFF_LIMIT, times a random factor in [0.5, 1]."""
BACKOFF_LIMIT = 20.0
RETRIED_STATUS = {408, 409, 425, 429}
"""Besides 5xx: the client errors that another attempt may cure."""
HANGS = 3
"""Attempts at a request that is not answered in time: with two minutes each, more of them would hold up a run."""
PROBE_TIMEOUT = 5.0
"""Seconds in which an endpoint that is alive answers two letters. Ray Serve holds requests until a dead engine is
replaced, half a minute or more: whoever waited that long would take the new engine for the old one, and the question
that killed it for harmless. Too short costs a pause."""
PROBE_PAUSE = 0.5
"""Seconds between two such probes."""
FATAL_STATUS = {
    401: "set {key} to a key it accepts",
    403: "set {key} to a key with access to this model",
    404: "check the base URL and the model name",
}
"""Client errors that no question of the batch would escape -> what to do. Other 4xx concern the one request."""


class EndpointError(RuntimeError):
    """An endpoint cannot be used; the message is one line: which, what happened, what to do."""


class Refused(EndpointError):
    """It has answered, with an HTTP status, that it will not do this."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Down(RuntimeError):
    """An endpoint that has answered before answers nothing at the moment."""


class Unanswered(RuntimeError):
    """No attempt at one request was answered, though the endpoint is alive."""


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
    patience: float = 300.0
    """Seconds that an endpoint that went down is given to come back."""
    key_from: str = "OPENAI_API_KEY"
    """Environment variable of the key; the oracle's and the model's differ, so that neither sees the other's."""
    tariff: Tariff = Tariff()
    """Its prices, our budget and how fast it may be asked."""

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
    form: str = ""
    """A JSON schema that answers must have, where the endpoint can see to that ("structured outputs"); elsewhere they
    are only as the prompt asks."""


@dataclass(frozen=True)
class Choice:
    """One completion. `entropy` is eq. 3: mean negative log-likelihood of the sampled tokens in nats; `logprobs` are
    theirs, one by one; None where the endpoint gives none. `error` is '' or why there is no text. The token counts of
    the prompt are None, the names '' where the endpoint does not say."""

    text: str
    entropy: float | None = None
    tokens: int | None = None
    finish_reason: str = ""
    error: str = ""
    prompt_tokens: int | None = None
    image_tokens: int | None = None
    served_model: str = ""
    fingerprint: str = ""
    logprobs: list[float] | None = None


class Malformed(ValueError):
    """A response with status 200 that is no chat completion."""


def read_reply(body: str) -> list[Choice]:
    """Read a chat completion. Raises Malformed when it is not JSON or has no choice."""
    return read_bill(body)[0]


def read_bill(body: str) -> tuple[list[Choice], tuple[int, int] | None]:
    """`read_reply`, and the tokens that are paid for: (of the prompt, of all that was written, thoughts that nobody
    sees among them); None where the endpoint does not say."""
    try:
        data = json.loads(body)
        usage = data.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        facts = {
            "prompt_tokens": whole(usage.get("prompt_tokens")),
            "image_tokens": whole((details.get("multimodal_tokens") or {}).get("image", details.get("image_tokens"))),
            "served_model": legible(data.get("model") or ""),
            "fingerprint": legible(data.get("system_fingerprint") or ""),
        }
        choices = [read_choice(choice, facts) for choice in sorted(data["choices"], key=lambda c: c.get("index", 0))]
        if len(choices) == 1 and choices[0].tokens is None:
            choices = [replace(choices[0], tokens=whole(usage.get("completion_tokens")))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise Malformed(f"no chat completion: {body[:60]!r}") from error
    if not choices:
        raise Malformed("no choices")
    billed = facts["prompt_tokens"], whole(usage.get("completion_tokens"))
    return choices, None if None in billed else billed


def whole(number: object) -> int | None:
    """A count, None for anything else."""
    return number if type(number) is int and 0 <= number < 1 << 31 else None


def legible(text: object) -> str:
    """A text that a table can hold: halves of surrogate pairs, as of an emoji cut in two, become '?'. Raises TypeError
    for anything but a text."""
    if not isinstance(text, str):
        raise TypeError("no text")
    return text.encode("utf-8", "replace").decode()


def read_choice(choice: dict, facts: dict) -> Choice:
    logprobs = [token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or []]
    message = choice["message"]
    return Choice(
        text=legible(message["content"] or ""),
        entropy=-math.fsum(logprobs) / len(logprobs) if logprobs else None,
        tokens=len(logprobs) or None,
        finish_reason=legible(choice.get("finish_reason") or ""),
        error="refused: " + legible(message["refusal"]) if message.get("refusal") else "",
        logprobs=logprobs or None,
        **facts,
    )


class Client:
    """Asks one endpoint. Belongs to one event loop; at most `endpoint.concurrency` connections are open."""

    def __init__(self, endpoint: Endpoint, key: str | None = None, account: Account | None = None):
        """`key` defaults to the endpoint's in this process's environment, which a Ray worker's may not be; account:
        admits every request and writes it down."""
        import httpx
        import openai

        limits = httpx.Limits(max_connections=endpoint.concurrency + 1, max_keepalive_connections=endpoint.concurrency)
        self.endpoint, self.account = endpoint, account
        self.forms = True
        """Whether the endpoint takes JSON schemas, as far as known."""
        self.answered = False
        """Whether the endpoint has ever answered: one that has may be restarting, one that has not is not there."""
        self.probing, self.probed, self.was_alive = asyncio.Lock(), -math.inf, False
        self.openai = openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=key or endpoint.key(),
            timeout=endpoint.timeout,
            max_retries=0,  # ours: they also cover bodies that are no completion
            http_client=openai.DefaultAsyncHttpxClient(limits=limits, timeout=endpoint.timeout),
        )

    async def close(self) -> None:
        await self.openai.close()

    async def complete(self, messages: list[dict], sampling: Sampling, key: str = "") -> list[Choice]:
        """`sampling.n` completions of one prompt; a refused request gives choices with an error.

        Some endpoints give one choice whatever `n` is: the missing ones are asked for with other seeds. Raises
        EndpointError when the key, address or model is wrong, when it limits our rate beyond all attempts, when it has
        never answered anything and when the budget does not allow another request; Down; Unanswered.

        key: of the request, which is sent along: whoever heeds it (Idempotency-Key) takes money for each once.
        """
        choices: list[Choice] = []
        while (missing := sampling.n - len(choices)) > 0:
            rest = replace(sampling, n=missing, seed=sampling.seed + len(choices))
            more = await self._answer(messages, rest, f"{key}-{len(choices)}" if key else "")
            choices += more * missing if more[0].error.startswith("HTTP") else more
        return choices[: sampling.n]

    async def _answer(self, messages: list[dict], sampling: Sampling, key: str) -> list[Choice]:
        """One to `sampling.n` choices, after as many attempts as it takes and the endpoint allows."""
        import openai

        for attempt in range(1, self.endpoint.retries + 2):
            wait = min(BACKOFF * 2 ** (attempt - 1), BACKOFF_LIMIT) * random.uniform(0.5, 1)
            limited = hung = False
            formed = bool(sampling.form) and self.forms  # others may learn meanwhile that it takes none
            try:
                choices = await self._request(messages, sampling, key)
                self.answered = True
                return choices
            except openai.APIStatusError as error:
                status, reason = error.status_code, f"HTTP {error.status_code}"
                if formed and status in (400, 422) and "response_format" in error.message:
                    self.forms = False  # strict reading is left
                    return await self._answer(messages, replace(sampling, form=""), key)
                if status in FATAL_STATUS:
                    raise self.unusable(reason, FATAL_STATUS[status].format(key=self.endpoint.key_from)) from error
                if status < 500 and status not in RETRIED_STATUS:
                    return [Choice("", error=f"{reason}: {one_line(error.message)}")]
                wait, limited = max(wait, _retry_after(error)), status == 429
                if limited and self.account is not None:
                    self.account.requests.hold(_retry_after(error))  # for the others too
            except openai.APITimeoutError:
                reason, hung = f"no answer within {self.endpoint.timeout:g} s", True
            except openai.APIConnectionError as error:
                reason = f"no connection ({one_line(error.__cause__ or error)})"
            except Malformed as error:
                reason = str(error)
            if not limited and self.answered and not await self.alive():
                raise Down(reason)
            if attempt > self.endpoint.retries or (hung and attempt >= HANGS):
                break
            await asyncio.sleep(wait)
        attempts = f"{reason} after {attempt} attempt{'s' if attempt > 1 else ''}"
        if limited:
            advice = "ask less at once (engine.concurrency, --concurrency), then run the same command again"
            raise self.unusable(attempts, advice)
        if not self.answered and not await self.alive():
            raise self.unusable(attempts, "see that it is up, then run the same command again")
        raise Unanswered(attempts)

    async def alive(self) -> bool:
        """Whether the endpoint answers two letters, if need be at the second attempt. Many who ask at once share a look
        that began after they asked: an older one may have seen the engine before the death that they ask about."""
        asked = time.monotonic()
        async with self.probing:
            if self.probed < asked:
                self.probed = time.monotonic()
                self.was_alive = await self._probe()
                if not self.was_alive:
                    await asyncio.sleep(PROBE_PAUSE)
                    self.probed = time.monotonic()
                    self.was_alive = await self._probe()
                self.answered = self.answered or self.was_alive
            return self.was_alive

    async def _probe(self) -> bool:
        import openai

        hello = [{"role": "user", "content": "Hi"}]
        sampling = Sampling(max_tokens=1, logprobs=False)
        try:
            await self._request(hello, sampling, timeout=min(self.endpoint.timeout, PROBE_TIMEOUT), probe=True)
        except openai.APIStatusError as error:
            return error.status_code < 500
        except (openai.APIConnectionError, Malformed):
            return False
        return True

    async def revive(self) -> None:
        """Wait until the endpoint is alive. Raises EndpointError when that takes longer than its patience."""
        deadline = time.monotonic() + self.endpoint.patience
        while not await self.alive():
            if time.monotonic() > deadline:
                raise self.unusable(
                    f"down for {self.endpoint.patience:g} s", "see that it is up, then run the same command again"
                )
            await asyncio.sleep(PROBE_PAUSE)

    async def _request(
        self, messages: list[dict], sampling: Sampling, key: str = "", timeout: float | None = None, *,
        probe: bool = False,
    ) -> list[Choice]:  # fmt: skip
        """One request, admitted and written down by the account."""
        import httpx
        import openai

        if self.account is None:
            return (await self._send(messages, sampling, key, timeout))[0]
        try:
            number = await self.account.admit(messages, sampling.n * sampling.max_tokens, probe=probe)
        except OverBudget as error:
            raise self.over_budget(error) from error
        began, used, outcome = time.monotonic(), None, "lost"  # an answer may have been made, and paid for
        try:
            choices, used = await self._send(messages, sampling, key, timeout)
            outcome = "answered"
            return choices
        except openai.APIStatusError as error:
            used, outcome = (0, 0), f"HTTP {error.status_code}"
            raise
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
                used, outcome = (0, 0), "no connection"  # nothing was sent
            raise
        finally:
            await self.account.close(number, used, time.monotonic() - began, outcome)

    async def _send(
        self, messages: list[dict], sampling: Sampling, key: str, timeout: float | None
    ) -> tuple[list[Choice], tuple[int, int] | None]:
        """As `read_bill`."""
        raw = await self.openai.chat.completions.with_raw_response.create(
            **self.body(messages, sampling),
            timeout=timeout or self.endpoint.timeout,
            extra_headers={"Idempotency-Key": key} if key else None,
        )
        return read_bill(raw.text)

    def body(self, messages: list[dict], sampling: Sampling) -> dict:
        """What is sent as JSON."""
        form = json.loads(sampling.form) if sampling.form and self.forms else None
        return {
            "model": self.endpoint.model,
            "messages": messages,
            "n": sampling.n,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "logprobs": sampling.logprobs,
        } | ({"response_format": {"type": "json_schema", "json_schema": form}} if form else {})

    async def patiently(self, call: Callable[[], Awaitable[T]], failing: str, advice: str) -> T:
        """What `call` gives; called again while the endpoint cannot be reached, has too much to do (429) or is in
        trouble (5xx), for its patience. failing: what the endpoint does not do then.

        Raises Refused when it has answered that it will not, EndpointError when its patience is over.
        """
        import openai

        began, wait = time.monotonic(), BACKOFF
        while True:
            try:
                return await call()
            except openai.APIStatusError as error:
                reason = f"HTTP {error.status_code}: {one_line(error.message)}"
                if error.status_code not in RETRIED_STATUS and (error.status_code < 500 or error.status_code == 501):
                    said = str(self.unusable(f"{failing} ({reason})", advice))
                    raise Refused(said, error.status_code) from error
                wait = max(wait, _retry_after(error))
            except openai.APIConnectionError as error:
                reason = f"no connection: {one_line(error.__cause__ or error)}"
            except (ValueError, AttributeError) as error:  # the library takes half a reply, or a page, for a whole one
                reason = f"no reply of an API: {one_line(error)}"
            if time.monotonic() - began + wait > self.endpoint.patience:
                raise self.unusable(f"{failing} ({reason})", advice)
            await asyncio.sleep(wait)
            wait = min(2 * wait, BACKOFF_LIMIT)

    def over_budget(self, error: OverBudget) -> EndpointError:
        advice = f"raise {self.endpoint.tariff.section}.max_cost, then run the same command again"
        return self.unusable(str(error), advice)

    def unusable(self, reason: str, advice: str) -> EndpointError:
        """The error that says so."""
        return EndpointError(f"{self.endpoint.base_url} (model {self.endpoint.model}): {reason}; {advice}")


def _retry_after(error: "openai.APIStatusError") -> float:
    """Seconds that the endpoint asks us to wait, at most a minute; 0 when it does not say or gives a date."""
    try:
        return min(float(error.response.headers.get("retry-after", "0")), 60.0)
    except ValueError:
        return 0.0
