"""The simulated oracle as a Ray Serve app that speaks the OpenAI protocol. Imported where it is served, only.

It decodes each image to learn its pixel digest, so an image is known in any lossless container. Like a service that is
paid for it counts what it was asked and what it answered (GET v1/usage), takes money for an Idempotency-Key once, and
may be slow, fail, or be out of order for a while; and it takes batches.
"""

import asyncio
import hashlib
import time
from collections import Counter

from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from ray import serve
from ray.serve import Application

from medq_ray.images import from_data_url, pixel_digest
from medq_ray.synthetic.answers import MODEL, SLOW, SimulatedOracle
from medq_ray.synthetic.batches import Batches
from medq_ray.synthetic.truth import load_truth

IMAGE_TOKENS = 85
"""What GPT-4o books for a small image; the usage numbers are plausible, not measured."""
LOGPROB = -0.05
"""The log-probability claimed for every token: the simulated oracle has no distribution to read it from."""

api = FastAPI(title="simulated oracle")


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in the OpenAI form."""
    return JSONResponse({"error": {"message": message, "type": "simulated", "code": status}}, status, headers)


def read_request(body: dict) -> tuple[list[str], str]:
    """(image data URLs, prompt) of the last user message. Raises ValueError unless it has at most two images, and a
    text."""
    messages = [m for m in body.get("messages", []) if m.get("role") == "user"]
    parts = messages[-1].get("content") if messages else None
    if not isinstance(parts, list):
        raise ValueError("the last user message needs content parts: at most two of image_url, and one text")
    urls = [part["image_url"]["url"] for part in parts if part.get("type") == "image_url"]
    prompt = "\n".join(part["text"] for part in parts if part.get("type") == "text")
    if len(urls) > 2 or not prompt:
        raise ValueError(f"expected at most two images and a text, found {len(urls)} and {len(prompt)} characters")
    return urls, prompt


def completion(text: str, prompt: str, choices: int, logprobs: bool) -> dict:
    """A chat completion in the OpenAI form; all choices are the same text."""
    tokens = text.split()
    scores = {"content": [{"token": t, "logprob": LOGPROB, "bytes": None, "top_logprobs": []} for t in tokens]}
    prompt_tokens, answer_tokens = IMAGE_TOKENS + len(prompt.split()), len(tokens) * choices
    return {
        "id": "simulated-" + hashlib.sha256((prompt + text).encode()).hexdigest()[:16],
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "system_fingerprint": "simulated",
        "simulated": True,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "logprobs": scores if logprobs else None,
                "finish_reason": "stop",
            }
            for index in range(choices)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": answer_tokens,
            "total_tokens": prompt_tokens + answer_tokens,
        },
    }


@serve.deployment(
    name="SimulatedOracle",
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 0},  # leaves the logical CPUs to the work that waits for its answers
    logging_config={"enable_access_log": False},
)
@serve.ingress(api)
class OracleApp:
    """latency: seconds before each answer; outage_after, outage_seconds: once so many requests have been answered,
    every request gets status 503 for so long."""

    def __init__(
        self, world: str, edit_rate: float, reject_rate: float, failure_rate: float, seed: int, latency: float,
        outage_after: int, outage_seconds: float,
    ):  # fmt: skip
        self.oracle = SimulatedOracle(load_truth(world), edit_rate, reject_rate, failure_rate, seed)
        self.latency, self.outage_after, self.outage_seconds = latency, outage_after, outage_seconds
        self.failed: set[tuple[str, str]] = set()
        self.billed: set[str] = set()
        self.usage: Counter = Counter()
        self.down_until = 0.0
        self.batches = Batches(self.reply)

    @api.get("/v1/models")
    async def models(self) -> dict:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "medq_ray"}]}

    @api.get("/v1/usage")
    async def used(self) -> dict:
        """Requests, answers, answers that money was taken for, and the tokens of these."""
        return {name: self.usage[name] for name in ("requests", "answered", "billed", "prompt_tokens", "tokens")}

    @api.post("/v1/files")
    async def upload(self, file: UploadFile) -> dict:
        return self.batches.upload(await file.read())

    @api.get("/v1/files/{name}/content")
    async def content(self, name: str) -> Response:
        known = name in self.batches.files
        return PlainTextResponse(self.batches.files[name]) if known else refused(404, f"there is no file {name}")

    @api.delete("/v1/files/{name}")
    async def delete(self, name: str) -> dict:
        return {"id": name, "object": "file", "deleted": self.batches.files.pop(name, None) is not None}

    @api.post("/v1/batches")
    async def batch(self, request: Request) -> Response:
        name = (await request.json()).get("input_file_id")
        if name not in self.batches.files:
            return refused(400, f"there is no file {name}")
        return JSONResponse(self.batches.create(name))

    @api.get("/v1/batches")
    async def all_batches(self) -> dict:
        return {"object": "list", "data": list(self.batches.known.values()), "has_more": False}

    @api.get("/v1/batches/{name}")
    async def one_batch(self, name: str) -> Response:
        known = self.batches.known.get(name)
        return refused(404, f"there is no batch {name}") if known is None else JSONResponse(known)

    @api.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        return await self.reply(await request.json(), request.headers.get("idempotency-key"))

    async def reply(self, body: dict, key: str | None) -> Response:
        """The answer to one request; key: for which money is taken once."""
        if self.is_down():
            return refused(503, "simulated outage")
        if body.get("model") != MODEL:
            return refused(404, f"there is no model {body.get('model')!r} here, only {MODEL!r}")
        try:
            urls, prompt = read_request(body)
            names = [pixel_digest(from_data_url(url)) for url in urls]
            text = self.oracle.answer(names[0], prompt, *names[1:]) if names else self.oracle.score(prompt)
        except ValueError as error:
            return refused(400, str(error))
        self.usage["requests"] += 1
        if (trouble := await self.trouble("+".join(names), prompt)) is not None:
            return trouble
        await asyncio.sleep(self.latency)
        if self.is_down():  # it went down over this request
            return refused(503, "simulated outage")
        reply = completion(text, prompt, body.get("n") or 1, bool(body.get("logprobs")))
        self.count(key, reply["usage"])
        return JSONResponse(reply)

    def is_down(self) -> bool:
        if self.outage_after and self.usage["answered"] >= self.outage_after and not self.down_until:
            self.down_until = time.monotonic() + self.outage_seconds
        return time.monotonic() < self.down_until

    async def trouble(self, image_id: str, prompt: str) -> Response | None:
        """What the first request for an answer may get instead of it."""
        fault = self.oracle.first_fault(image_id, prompt)
        if not fault or (image_id, prompt) in self.failed:
            return None
        self.failed.add((image_id, prompt))
        if fault == "slow":
            await asyncio.sleep(SLOW)
            return None
        if fault == "garbage":
            return PlainTextResponse("<html>simulated nonsense</html>")
        return refused(int(fault), "simulated failure of a first request", {"Retry-After": "0"})

    def count(self, key: str | None, usage: dict) -> None:
        self.usage["answered"] += 1
        if key is None or key not in self.billed:
            self.billed.add(key or "")
            self.usage.update(billed=1, prompt_tokens=usage["prompt_tokens"], tokens=usage["completion_tokens"])


def oracle_app(
    world: str, edit_rate: float, reject_rate: float, failure_rate: float, seed: int, latency: float = 0.0,
    outage_after: int = 0, outage_seconds: float = 0.0,
) -> Application:
    """The app for one world folder; one replica, since what it counts lives in it. Nothing starts before serve.run."""
    return OracleApp.bind(
        world, edit_rate, reject_rate, failure_rate, seed, latency, outage_after, outage_seconds
    )  # fmt: skip
