"""A stub endpoint in a process of its own, for tests that need other options than the fixtures of conftest.py give. (Not
from there: of the conftest.py of several folders the one imported last has the name.)"""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STUB = Path(__file__).parent / "stub.py"


@dataclass(frozen=True)
class Stub:
    """A running `tests/stub.py`."""

    url: str
    """Base URL, up to /v1."""

    def state(self) -> dict:
        """{"counts": requests by 'pixel digest|prompt', "answered": those with an answer, "total": requests}."""
        with urllib.request.urlopen(f"{self.url}/counts") as response:
            return json.load(response)

    def fail(self, count: int, status: int | None = None) -> None:
        """Let the next `count` requests fail with a status, or with a body that is no completion."""
        order = {"next": count, "garbage": True} if status is None else {"next": count, "status": status}
        request = urllib.request.Request(f"{self.url}/fail", json.dumps(order).encode(), method="POST")
        urllib.request.urlopen(request).close()


@contextmanager
def running_stub(*options: str) -> Iterator[Stub]:
    """A fresh stub endpoint."""
    with subprocess.Popen([sys.executable, str(STUB), *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Stub(process.stdout.readline().strip())
        finally:
            process.kill()
