"""A deterministic endpoint that speaks the OpenAI protocol: `python tests/stub.py --port N`.

Answers depend only on (pixels, prompt, seed, choice index), so two runs against it can be compared byte by byte.
GET /counts: requests for each 'pixel digest|prompt', how many got an answer, their total, and the
keys that came with them. Requests without an image that say 'Hi' are looks whether it is alive, and not counted.
POST /fail {"next": K, "status": 429|500|400...} or {"next": K, "garbage": true}: the next K requests fail so.

--worse NAME: as that model it gives no letter to every third question. --faults gives some questions a fault of their own, drawn from image and prompt (FAULTS). --blind drops ignores images as
a text model does; --blind ignores counts their tokens and does not look. A prompt with DEADLY in it brings the endpoint
down for --down seconds: whoever asks meanwhile, and whoever waits, gets status 500.
"""

import argparse
import hashlib
import json
import math
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from medq_ray.images import from_data_url, pixel_digest
from medq_ray.questions import MODALITY_NAMES, describe
from medq_ray.schema import DEGRADATIONS, SEVERITIES

LOCK = threading.Lock()
FAULTS = {
    "limited": "429 with Retry-After at the first attempt",
    "error": "500 at the first two attempts",
    "hang": "no answer at the first attempt",
    "half": "half a body at the first attempt",
    "cut": "the connection is cut in the body at the first attempt",
    "silent": "no logprobs",
    "one": "one choice, whatever n is",
    "broken": "500 at every attempt",
    "long": "400: too long",
}
"""What may be wrong with a question under --faults; as many questions again have nothing wrong."""
DEADLY = "DEADLY"
REPLIES = ("Score: 0", "Score: 1", "Score: 2", "2", '{"score": 1}', "I cannot tell", "Score: **2**")
"""Of a judge; the last two are no scores."""


def fault_of(image: str, prompt: str) -> str:
    """The fault of a question under --faults, or ''."""
    names = [*FAULTS, *([""] * len(FAULTS))]
    return names[draw(image, prompt, "fault") % len(names)]


def draw(*parts: object) -> int:
    """A number that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:6], "big")


def answer(image: str, prompt: str, index: int) -> tuple[str, list[float]]:
    """(text, token logprobs). Every choice agrees with the first two times in three, so that some questions are
    answered steadily and some are not."""
    source = index if draw(image, prompt, index, "own") % 3 == 0 else 0
    value = draw(image, prompt, source)
    letters = re.findall(r"^([A-F])\. ", prompt, re.MULTILINE)
    if prompt.endswith("Score:"):
        text = REPLIES[value % len(REPLIES)]
    elif letters:
        text = letters[value % len(letters)]
    else:
        names = {name: key for key, name in MODALITY_NAMES.items()}
        modality = next((key for name, key in names.items() if name in prompt), "mri")
        degradations = ("none", *DEGRADATIONS[modality])
        degradation = degradations[value % len(degradations)]
        severity = "none" if degradation == "none" else SEVERITIES[1 + value // 7 % 2]
        text = describe(modality, degradation, severity)
    tokens = max(1, len(text.split()))
    return text, [-(0.01 + draw(image, prompt, index, i) % 1000 / 1000) for i in range(tokens)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counts: Counter = Counter()
    answered: Counter = Counter()
    keys: set = set()
    failures: dict = {"next": 0}
    latency = 0.0
    blind = ""
    faults = False
    down_for = 0.5
    down_until = 0.0
    deaths = 0
    forms = 0
    formless = False
    worse = ""

    def log_message(self, *_: object) -> None:
        pass

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        base = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in (base | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        with LOCK:
            state = {"counts": dict(self.counts), "answered": dict(self.answered), "total": self.counts.total(),
                     "keys": sorted(self.keys), "deaths": self.deaths, "forms": self.forms}  # fmt: skip
        self.send(200, json.dumps(state).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/files"):  # it takes no batches
            return self.send(404, b'{"error": {"message": "no such path"}}')
        data = json.loads(body)
        if self.path.endswith("/fail"):
            with LOCK:
                Handler.failures = data
            self.send(200, b"{}")
        else:
            self.complete(data)

    def complete(self, data: dict) -> None:
        images, prompt = read(data["messages"][-1]["content"])
        image = "+".join(images)
        if image == "" and prompt == "Hi":
            return self.send(500, b"{}") if self.is_down() else self.send(200, encode(data, "", prompt, self.blind))
        with LOCK:
            Handler.forms += "response_format" in data
        if self.formless and "response_format" in data:
            return self.send(400, b'{"error": {"message": "response_format is not supported"}}')
        with LOCK:
            self.counts[f"{image}|{prompt}"] += 1
            attempt = self.counts[f"{image}|{prompt}"]
            self.keys.add(self.headers["Authorization"])
            failing = self.failures.get("next", 0) > 0
            if failing:
                self.failures["next"] -= 1
            if DEADLY in prompt and not self.is_down():
                Handler.deaths += 1
                Handler.down_until = time.monotonic() + self.down_for
        time.sleep(self.latency)
        if self.is_down() or (DEADLY in prompt and self.down_for):  # it never gets an answer, however late it comes
            return self.refuse(500)
        if failing:
            return self.send(200, b"<html>hello</html>") if self.failures.get("garbage") else self.refuse(self.failures["status"])
        fault = fault_of(image, prompt) if self.faults else ""
        if fault in ("limited", "hang", "half", "cut") and attempt > 1 or fault == "error" and attempt > 2:
            fault = ""
        if fault in STATUS:
            return self.refuse(STATUS[fault])
        if fault == "hang":
            time.sleep(3.0)
        if fault == "silent":
            data["logprobs"] = False
        if fault == "one":
            data["n"] = 1
        body = encode(data, image, prompt, self.blind)
        if fault == "half":
            body = body[: len(body) // 2]
        if fault == "cut":
            self.send(200, body[: len(body) // 2], {"Content-Length": str(len(body))})
            self.close_connection = True
            return None
        with LOCK:
            self.answered[f"{image}|{prompt}"] += 1
        return self.send(200, body)

    def is_down(self) -> bool:
        return time.monotonic() < self.down_until

    def refuse(self, status: int) -> None:
        headers = {"Retry-After": "0.1"} if status == 429 else {}
        self.send(status, json.dumps({"error": {"message": f"told to fail with {status}"}}).encode(), headers)


STATUS = {"limited": 429, "error": 500, "broken": 500, "long": 400}


def read(content: str | list[dict]) -> tuple[list[str], str]:
    """(pixel digest of each image, text) of a message."""
    if isinstance(content, str):
        return [], content
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    (text,) = (part["text"] for part in content if part["type"] == "text")
    return [pixel_digest(from_data_url(url)) for url in urls], text


def encode(data: dict, image: str, prompt: str, blind: str) -> bytes:
    """The body of an answer."""
    seen, counted = "" if blind else image, "" if blind == "drops" else image
    choices = []
    seed = data.get("seed", 0) if data.get("temperature", 1) else 0
    for index in range(data.get("n", 1)):
        text, logprobs = answer(seen, prompt, seed + index)
        if data["model"] == Handler.worse and draw(seen, prompt, "worse") % 3 == 0:
            text = "I cannot tell"
        choice = {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if data.get("logprobs"):
            tokens = [{"token": "t", "logprob": value, "bytes": None, "top_logprobs": []} for value in logprobs]
            choice["logprobs"] = {"content": tokens}
        choices.append(choice)
    image_tokens = 16 * len(counted.split("+")) if counted else 0
    prompt_tokens = image_tokens + math.ceil(len(prompt) / 4)
    used = sum(max(1, len(choice["message"]["content"].split())) for choice in choices)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": used, "total_tokens": prompt_tokens + used,
             "prompt_tokens_details": {"multimodal_tokens": {"image": image_tokens}}}  # fmt: skip
    return json.dumps({"id": "stub", "object": "chat.completion", "created": 0, "model": f"stub-{data['model']}",
                       "system_fingerprint": "stub-1", "choices": choices, "usage": usage}).encode()  # fmt: skip


class Server(ThreadingHTTPServer):
    request_queue_size = 256  # clients connect all at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one, which is printed")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--blind", choices=["drops", "ignores"], default="", help="do not look at images")
    parser.add_argument("--faults", action="store_true", help="misbehave")
    parser.add_argument("--formless", action="store_true", help="refuse requests with a response_format")
    parser.add_argument("--worse", default="", help="the name of a model that knows less")
    parser.add_argument("--down", type=float, default=0.5, help="seconds that a deadly question takes it down for")
    options = parser.parse_args()
    Handler.latency, Handler.blind, Handler.faults = options.latency, options.blind, options.faults
    Handler.down_for, Handler.formless, Handler.worse = options.down, options.formless, options.worse
    server = Server(("127.0.0.1", options.port), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
