"""Files that may be hostile are opened in a child process with limits, kept warm so that the cost is small."""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from medq_ray.images import MAX_PIXELS, Refused
from medq_ray.pool.jail import FRAME
from medq_ray.pool.sources import Options, Row

KEPT = ("PATH", "LANG", "LC_ALL", "HOME", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
"""Environment of the child: no API key is among these."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
MAX_TEXT = 256 << 20
"""Longest list of rows believed, in bytes: a million slices of one file."""
PIPE_BYTES = 1 << 20
F_SETPIPE_SZ = 1031


@dataclass(frozen=True)
class Limits:
    """What opening one file may take."""

    memory_mb: int = 2048
    """Address space of the child, its libraries (about 0.6 GB) included."""
    seconds: float = 60.0
    """Until a file counts as hanging."""


@dataclass(frozen=True)
class Look:
    """One decoded image and what it is compared by."""

    pixels: np.ndarray
    """uint8 (H, W, 3)."""
    image_id: str
    phash: int
    sharpness: float
    noise: float
    thumb: bytes


class Broken(Exception):
    """The child is gone or had to be killed."""


class Sandbox:
    """One warm child. Start-up is about a second, a call about as much as the decoding and copying of its pixels.

    A file over which the child dies, hangs or runs out of memory is tried once more in a fresh one, since what came
    before it could be to blame: then the file is, and Refused says 'crash: ...', 'timeout: ...' or 'memory: ...'.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.child: subprocess.Popen | None = None

    def expand(self, source: str, row: Row, options: Options) -> list[Row]:
        """`sources.rows_of` in the child. Raises Refused."""
        facts, _ = self._ask({"do": "expand", "source": source, "row": asdict(row), "options": asdict(options)})
        return [Row(**found) for found in facts["rows"]]

    def decode(self, source: str, row: Row, side: int) -> Look:
        """The image of a row, at most `side` long. Raises Refused."""
        facts, raw = self._ask({"do": "look", "source": source, "row": asdict(row), "side": side})
        pixels = np.frombuffer(raw, np.uint8).reshape(facts.pop("shape"))
        return Look(pixels, thumb=bytes.fromhex(facts.pop("thumb")), **facts)

    def close(self) -> None:
        """End the child."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child.stdin.close()
            self.child.stdout.close()
            self.child = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _ask(self, request: dict) -> tuple[dict, bytes]:
        for _ in range(2):
            try:
                facts, raw = self._exchange(request)
            except Broken as error:
                self.close()
                problem = str(error)
            else:
                problem = facts.get("problem", "")
                if not problem:
                    return facts, raw
                if not problem.startswith("memory"):
                    break
                self.close()  # its heap may be full of pieces
        raise Refused(problem)

    def _exchange(self, request: dict) -> tuple[dict, bytes]:
        if self.child is None:
            self._start()
        text = json.dumps(request).encode()
        deadline = time.monotonic() + self.limits.seconds
        try:
            self.child.stdin.write(FRAME.pack(len(text), 0) + text)
            self.child.stdin.flush()
        except BrokenPipeError as error:
            raise Broken(self._death()) from error
        words, pixels = FRAME.unpack(self._read(FRAME.size, deadline))
        if words > MAX_TEXT or pixels > 3 * MAX_PIXELS:
            raise Broken("crash: its decoder promised an answer of an absurd size")
        return json.loads(self._read(words, deadline)), bytes(self._read(pixels, deadline))

    def _start(self) -> None:
        environment = {name: os.environ[name] for name in KEPT if name in os.environ} | ONE_THREAD
        paths = os.pathsep.join(path for path in sys.path if path)  # as this process finds the package, so the child
        self.child = subprocess.Popen(
            [sys.executable, "-m", "medq_ray.pool.jail", str(self.limits.memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is for the parent, which then ends the child
        )
        fcntl.fcntl(self.child.stdout, F_SETPIPE_SZ, PIPE_BYTES)  # a 512-px image in one piece

    def _read(self, count: int, deadline: float) -> bytearray:
        """Exactly `count` bytes. Raises Broken at the deadline and when the child is gone."""
        data, place, stream = bytearray(count), 0, self.child.stdout.fileno()
        view = memoryview(data)
        while place < count:
            ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Broken(f"timeout: not decoded within {self.limits.seconds:g} s")
            got = os.readv(stream, [view[place:]])
            if got == 0:
                raise Broken(self._death())
            place += got
        return data

    def _death(self) -> str:
        code = self.child.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"crash: its decoder died ({how})"
