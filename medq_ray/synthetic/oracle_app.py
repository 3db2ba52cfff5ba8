"""The simulated oracle as a Ray Serve app that speaks the OpenAI protocol. Imported where it is served, only.

It decodes each image to learn its pixel digest, so an image is known in any lossless container.
"""

import hashlib
import time

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve import Application

from medq_ray.images import from_data_url, pixel_digest
from medq_ray.synthetic.answers import MODEL, SimulatedOracle
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
    """(image data URLs, prompt) of the last user message. Raises ValueError unless it has one image or two, and a
    text."""
    messages = [m for m in body.get("messages", []) if m.get("role") == "user"]
    parts = messages[-1].get("content") if messages else None
    if not isinstance(parts, list):
        raise ValueError("the last user message needs content parts: an image_url or two, and one text")
    urls = [part["image_url"]["url"] for part in parts if part.get("type") == "image_url"]
    prompt = "\n".join(part["text"] for part in parts if part.get("type") == "text")
    if len(urls) not in (1, 2) or not prompt:
        raise ValueError(f"expected one image or two and a text, found {len(urls)} and {len(prompt)} characters")
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
    def __init__(self, world: str, edit_rate: float, reject_rate: float, failure_rate: float, seed: int):
        self.oracle = SimulatedOracle(load_truth(world), edit_rate, reject_rate, failure_rate, seed)
        self.failed: set[tuple[str, str]] = set()

    @api.get("/v1/models")
    async def models(self) -> dict:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "medq_ray"}]}

    @api.post("/v1/chat/completions")
    async def chat(self, request: Request) -> JSONResponse:
        body = await request.json()
        if body.get("model") != MODEL:
            return refused(404, f"there is no model {body.get('model')!r} here, only {MODEL!r}")
        try:
            urls, prompt = read_request(body)
            image_id, *others = (pixel_digest(from_data_url(url)) for url in urls)
        except ValueError as error:
            return refused(400, str(error))
        status = self.oracle.first_status(image_id, prompt)
        if status != 200 and (image_id, prompt) not in self.failed:
            self.failed.add((image_id, prompt))
            return refused(status, "simulated failure of a first request", {"Retry-After": "0"})
        text = self.oracle.answer(image_id, prompt, *others)
        return JSONResponse(completion(text, prompt, body.get("n") or 1, bool(body.get("logprobs"))))


def oracle_app(world: str, edit_rate: float, reject_rate: float, failure_rate: float, seed: int) -> Application:
    """The app for one world folder; one replica, since `failed` lives in it. Nothing starts before serve.run."""
    return OracleApp.bind(world, edit_rate, reject_rate, failure_rate, seed)
