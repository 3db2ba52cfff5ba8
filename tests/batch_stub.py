"""An endpoint with files and batches, in this process, that does what a test tells it to."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class BatchStub:
    """What the endpoint holds, and how it misbehaves."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, str]] = {}
        """Name -> (file name, content)."""
        self.batches: dict[str, dict] = {}
        self.asked: Counter = Counter()
        """Requests by method and path without ids; 'answered' counts completions, in batches too."""
        self.heard: list[bytes] = []
        """Every request, whole."""
        self.lose_makings = 0
        """Batches that are made and answered with 502."""
        self.listed_after = 0.0
        """Seconds after which a batch is listed."""
        self.down_until = 0.0
        self.status = "completed"
        self.lines: list[str] = []
        """Further lines of every file of answers."""
        self.after: list[str] = []
        """And at its end, with %s for the last request's name."""
        self.skip = 0
        """Requests of each batch that are not answered."""
        self.undeletable = 0
        """Status of every deletion, 0 for as it should be."""
        self.unmakable = 0
        """Status of every making of a batch."""
        self.picture_tokens = 100
        self.page = ""
        """End of a path that is answered with a page for people, once for each of `pages`."""
        self.pages = 1_000
        self.url = ""

    def completion(self) -> dict:
        self.asked["answered"] += 1
        usage = {"prompt_tokens": self.picture_tokens, "completion_tokens": 2}
        message = {"message": {"role": "assistant", "content": "A"}, "finish_reason": "stop", "index": 0}
        return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [message], "usage": usage}

    def make(self, file: str) -> dict:
        name = f"batch-{len(self.batches)}"
        keys = [json.loads(line)["custom_id"] for line in self.files[file][1].splitlines()]
        batch = {"id": name, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": file,
                 "completion_window": "24h", "created_at": 0, "status": self.status, "output_file_id": None,
                 "error_file_id": None, "request_counts": {}, "keys": keys,
                 "made": time.monotonic()}  # fmt: skip
        if self.status == "failed":
            batch["errors"] = {"object": "list", "data": [{"code": "x", "message": "too\nmany tokens"}]}
        else:
            rows = [{"custom_id": key, "response": {"status_code": 200, "body": self.completion()}}
                    for key in keys[self.skip :]]  # fmt: skip
            batch["output_file_id"] = self.hold("out.jsonl", "\n".join(
                [*self.lines, *map(json.dumps, rows), *(line % keys[-1] for line in self.after), ""]))
        self.batches[name] = batch
        return batch

    def hold(self, name: str, content: str) -> str:
        number = f"file-{len(self.files)}-{time.time_ns()}"
        self.files[number] = (name, content)
        return number


def shown(stub: BatchStub, number: str) -> dict:
    return {"id": number, "object": "file", "bytes": 1, "created_at": 0, "filename": stub.files[number][0],
            "purpose": "batch", "status": "processed"}  # fmt: skip


def handler(stub: BatchStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, body: object) -> None:
            page = isinstance(body, str)
            data = body.encode() if page else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if page else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def handle_one(self) -> None:
            path = self.path.removeprefix("/v1").partition("?")[0]
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            stub.heard.append(f"{self.requestline}\n{self.headers}".encode() + body)
            stub.asked[f"{self.command} {re.sub(r'(file|batch)-[^/]+', 'ID', path)}"] += 1
            if time.monotonic() < stub.down_until:
                return self.send(503, {"error": {"message": "down"}})
            if stub.page and path.endswith(stub.page) and stub.pages:
                stub.pages -= 1
                return self.send(200, "<html>welcome</html>")
            parts = path.strip("/").split("/")
            match self.command, parts:
                case "POST", ["files"]:
                    name = re.search(rb'filename="([^"]+)"', body)[1].decode()
                    content = body.split(b"\r\n\r\n")[-1].split(b"\r\n--")[0]
                    if b'{"custom_id"' not in content:  # the parts come in any order
                        content = next(part for part in body.split(b"\r\n") if part.startswith(b'{"custom_id"'))
                    self.send(200, shown(stub, stub.hold(name, content.decode())))
                case "GET", ["files"]:
                    self.send(200, {"object": "list", "data": [shown(stub, name) for name in stub.files]})
                case "GET", ["files", number, "content"]:
                    self.send(200, stub.files[number][1])
                case "DELETE", ["files", number] if stub.undeletable:
                    self.send(stub.undeletable, {"error": {"message": "no"}})
                case "DELETE", ["files", number] if number not in stub.files:
                    self.send(404, {"error": {"message": "gone"}})
                case "POST", ["batches"] if stub.unmakable:
                    self.send(stub.unmakable, {"error": {"message": "billing"}})
                case "DELETE", ["files", number]:
                    del stub.files[number]
                    self.send(200, {"id": number, "object": "file", "deleted": True})
                case "POST", ["batches"]:
                    made = stub.make(json.loads(body)["input_file_id"])
                    if stub.lose_makings:
                        stub.lose_makings -= 1
                        return self.send(502, {"error": {"message": "lost"}})
                    self.send(200, made)
                case "GET", ["batches"]:
                    late = time.monotonic() - stub.listed_after
                    known = [batch for batch in stub.batches.values() if batch["made"] <= late]
                    self.send(200, {"object": "list", "data": known, "has_more": False})
                case "GET", ["batches", number]:
                    self.send(200, stub.batches[number])
                case _:
                    self.send(200, stub.completion())

        do_GET = do_POST = do_DELETE = handle_one  # noqa: N815

    return Handler


@contextmanager
def running() -> Iterator[BatchStub]:
    """Serve on loopback for the length of a `with` block."""
    stub = BatchStub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(stub))
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
