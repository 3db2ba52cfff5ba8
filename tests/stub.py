"""A deterministic endpoint that speaks the OpenAI protocol: `python tests/stub.py --port N`.

Answers depend only on (pixels, prompt, choice index), so two runs against it can be compared byte by byte.
GET /counts: requests for each 'pixel digest|prompt', how many got an answer, their total, and the
keys that came with them.
POST /fail {"next": K, "status": 429|500|400...} or {"next": K, "garbage": true}: the next K requests fail so.
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


def draw(*parts: object) -> int:
    """A number that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:6], "big")


def answer(image: str, prompt: str, index: int) -> tuple[str, list[float]]:
    """(text, token logprobs). Every choice agrees with the first two times in three, so that some questions are
    answered steadily and some are not."""
    source = index if draw(image, prompt, index, "own") % 3 == 0 else 0
    value = draw(image, prompt, source)
    letters = re.findall(r"^([A-F])\. ", prompt, re.MULTILINE)
    if letters:
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
    blind = False

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
                     "keys": sorted(self.keys)}  # fmt: skip
        self.send(200, json.dumps(state).encode())

    def do_POST(self) -> None:
        data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/fail"):
            with LOCK:
                Handler.failures = data
            self.send(200, b"{}")
        else:
            self.complete(data)

    def complete(self, data: dict) -> None:
        image, prompt = read(data["messages"][-1]["content"])
        with LOCK:
            self.counts[f"{image}|{prompt}"] += 1
            self.keys.add(self.headers["Authorization"])
            failing = self.failures.get("next", 0) > 0
            if failing:
                self.failures["next"] -= 1
        time.sleep(self.latency)
        if failing and self.failures.get("garbage"):
            self.send(200, b"<html>a gateway says hello</html>")
        elif failing:
            status = self.failures["status"]
            headers = {"Retry-After": "0.1"} if status == 429 else {}
            self.send(status, json.dumps({"error": {"message": f"told to fail with {status}"}}).encode(), headers)
        else:
            seen = image if not self.blind else ""
            body = json.dumps(completion(data, seen, prompt)).encode()
            with LOCK:
                self.answered[f"{image}|{prompt}"] += 1
            self.send(200, body)


def read(content: str | list[dict]) -> tuple[str, str]:
    """(pixel digest, text) of a message; without an image the digest is ''."""
    if isinstance(content, str):
        return "", content
    parts = {part["type"]: part for part in content}
    return pixel_digest(from_data_url(parts["image_url"]["image_url"]["url"])), parts["text"]["text"]


def completion(data: dict, image: str, prompt: str) -> dict:
    choices = []
    for index in range(data.get("n", 1)):
        text, logprobs = answer(image, prompt, index)
        choice = {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if data.get("logprobs"):
            tokens = [{"token": "t", "logprob": value, "bytes": None, "top_logprobs": []} for value in logprobs]
            choice["logprobs"] = {"content": tokens}
        choices.append(choice)
    prompt_tokens = (16 if image else 0) + math.ceil(len(prompt) / 4)
    used = sum(max(1, len(choice["message"]["content"].split())) for choice in choices)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": used, "total_tokens": prompt_tokens + used}
    return {"id": "stub", "object": "chat.completion", "created": 0, "model": data["model"], "choices": choices,
            "usage": usage}  # fmt: skip


class Server(ThreadingHTTPServer):
    request_queue_size = 256  # clients connect all at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one, which is printed")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--blind", action="store_true", help="ignore images, as a text model does")
    options = parser.parse_args()
    Handler.latency, Handler.blind = options.latency, options.blind
    server = Server(("127.0.0.1", options.port), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
