"""Files that may be hostile are opened in a child process with limits, kept warm so that the cost is small."""

import fcntl
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np

from medq_ray.depth import Depth, Meaning
from medq_ray.images import MAX_PIXELS, Refused, pixel_digest
from medq_ray.pool.hashing import THUMB_SIDE
from medq_ray.pool.jail import FRAME, LONGEST_REASON, READY, UNCONFINED
from medq_ray.pool.sources import Options, Row
from medq_ray.schema import SPLITS

KEPT = (
    *("PATH", "LANG", "LC_ALL", "HOME", "TZ"),
    *("VIRTUAL_ENV", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"),
)
"""Environment of the child: no API key is among these."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
MAX_TEXT = 16 << 20
"""Longest list of rows believed, in bytes: at 300 a row, 50,000 slices of one file."""
MAX_WORD = 4096
"""Longest text of a row believed, in characters: Linux's longest path."""
MAX_QUALITY = 1e6
"""Above any sharpness and noise of 8-bit grey levels."""
STEPS = ("decode", "memory", "crash", "timeout", "label", "modality", "missing")
"""What a problem may begin with."""
NONSENSE = "crash: its decoder gave no answer that makes sense"
SURROGATE = re.compile("[\ud800-\udfff]")
BLANK = asdict(Row(""))
PIPE_BYTES = 1 << 20
F_SETPIPE_SZ = 1031
START_SECONDS = 120.0
"""Until a child has loaded its libraries and those of its first source's reader: about a second, but on a busy machine
many; it is no file's fault."""
DYING_SECONDS = 5
"""From the end of a child's answers to its own, our choice; then it is killed."""


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


def believed_problem(problem: object) -> str:
    """'step: text', printable and not long. Raises Broken for anything else."""
    if not isinstance(problem, str) or len(problem) > LONGEST_REASON or not problem.isprintable():
        raise Broken(NONSENSE)
    step, colon, text = problem.partition(": ")
    if step not in STEPS or not colon or not text:
        raise Broken(NONSENSE)
    return problem


def believed_look(facts: dict, raw: bytes, side: int) -> Look:
    """An image with its facts, its id found anew. Raises Broken where they do not fit each other or their types."""
    match facts:
        case {"image_id": str(name), "shape": [int(height), int(width), 3], "phash": int(bits), "thumb": str(small),
              "sharpness": float(sharpness), "noise": float(noise), **rest} if not rest:  # fmt: skip
            pass
        case _:
            raise Broken(NONSENSE)
    try:
        thumb = bytes.fromhex(small)
    except ValueError as error:
        raise Broken(NONSENSE) from error
    sizes = 1 <= height <= side and 1 <= width <= side and height * width * 3 == len(raw)
    sizes = sizes and len(thumb) == THUMB_SIDE**2
    whole = all(type(value) is int for value in (height, width, bits)) and 0 <= bits < 1 << 64
    if not (sizes and whole and 0 <= sharpness < MAX_QUALITY and 0 <= noise < MAX_QUALITY):  # false for NaN
        raise Broken(NONSENSE)
    pixels = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
    if name != pixel_digest(pixels):
        raise Broken(NONSENSE)
    return Look(pixels, name, bits, sharpness, noise, thumb)


def believed_depth(facts: dict, raw: bytes, side: int) -> Depth | None:
    """An image in all its bits. Raises Broken where its facts do not fit each other or their types."""
    match facts:
        case {"shape": None, **rest} if not rest and not raw:
            return None
        case {"shape": [int(height), int(width)], "slope": float(), "intercept": float(), "unit": "HU" | "",
              "center": float(), "width": float(span), "inverted": bool(), "bits": int(bits),
              "spacing": None | [float(), float()] as spacing, **rest} if not rest:  # fmt: skip
            pass
        case _:
            raise Broken(NONSENSE)
    numbers = (facts["slope"], facts["intercept"], facts["center"], span, *(spacing or ()))
    sizes = 1 <= height <= side and 1 <= width <= side and 2 * height * width == len(raw)
    if not (sizes and all(map(math.isfinite, numbers)) and span > 0 and 8 < bits <= 64):
        raise Broken(NONSENSE)
    named = {name: facts[name] for name in facts if name not in ("shape", "spacing")}
    meaning = Meaning(**named, spacing=tuple(spacing) if spacing else None)
    return Depth(np.frombuffer(raw, "<u2").reshape(height, width).astype(np.uint16), meaning)


def believed_rows(facts: dict, raw: bytes, asked: Row) -> list[Row]:
    """The images of one file. Raises Broken for rows that are none, and for those of other files."""
    match facts:
        case {"rows": list(rows), **rest} if not rest and not raw:
            return [believed_row(found, asked) for found in rows]
    raise Broken(NONSENSE)


def believed_row(found: object, asked: Row) -> Row:
    """One row, as private as its file and of the same split. Raises Broken."""
    if not isinstance(found, dict) or found.keys() != BLANK.keys():
        raise Broken(NONSENSE)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    if any(type(value) is not type(BLANK[name]) for name, value in values.items()):
        raise Broken(NONSENSE)
    row = Row(**values)
    words = [value for name, value in values.items() if isinstance(value, str) and name != "path"]
    words += [word for value in values.values() if isinstance(value, tuple) for word in value]
    words += [word for label in row.labels.items() for word in label]
    below = row.path.startswith(f"{asked.path}/") and ".." not in row.path.split("/")
    if (
        not all(sayable(word) for word in words)
        or not (row.path == asked.path or below and sayable(row.path))
        or row.split not in ((asked.split,) if asked.split else ("", *SPLITS))
        or asked.private > row.private
    ):
        raise Broken(NONSENSE)
    if row.problem:
        believed_problem(row.problem)
    return row


def sayable(word: object) -> bool:
    """Whether it is a text that a table can hold: no halves of surrogate pairs."""
    return isinstance(word, str) and len(word) <= MAX_WORD and not SURROGATE.search(word)


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
        request = {"do": "expand", "source": source, "row": asdict(row), "options": asdict(options)}
        return self._ask(request, lambda facts, raw: believed_rows(facts, raw, row))

    def decode(self, source: str, row: Row, side: int) -> Look:
        """The image of a row, at most `side` long. Raises Refused."""
        request = {"do": "look", "source": source, "row": asdict(row), "side": side}
        return self._ask(request, lambda facts, raw: believed_look(facts, raw, side))

    def deepen(self, source: str, row: Row, side: int) -> Depth | None:
        """The same in all its bits, None where there are no more than 8. Raises Refused."""
        request = {"do": "deep", "source": source, "row": asdict(row), "side": side}
        return self._ask(request, lambda facts, raw: believed_depth(facts, raw, side))

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

    def _ask(self, request: dict, believed: Callable) -> Look | Depth | list[Row] | None:
        for _ in range(2):
            try:
                facts, raw = self._exchange(request)
                if facts.keys() != {"problem"} or raw:
                    return believed(facts, raw)
                problem = believed_problem(facts["problem"])
            except Broken as error:
                self.close()
                problem = str(error)
            else:
                if not problem.startswith("memory"):
                    break
                self.close()  # its heap may be full of pieces
        raise Refused(problem)

    def _exchange(self, request: dict) -> tuple[dict, bytes]:
        if self.child is None:
            self._start(request["source"])
        text = json.dumps(request).encode()
        deadline = time.monotonic() + self.limits.seconds
        try:
            sent = self.child.stdin.write(FRAME.pack(len(text), 0) + text)
        except BrokenPipeError as error:
            raise Broken(self._death()) from error
        if sent != FRAME.size + len(text):  # it answers without reading: the pipe is full
            raise Broken(NONSENSE)
        words, pixels = FRAME.unpack(self._read(FRAME.size, deadline))
        if words > MAX_TEXT or pixels > 3 * MAX_PIXELS:
            raise Broken("crash: its decoder promised an answer of an absurd size")
        try:
            facts = json.loads(self._read(words, deadline).decode())
        except (ValueError, RecursionError) as error:
            raise Broken(NONSENSE) from error
        if not isinstance(facts, dict):
            raise Broken(NONSENSE)
        return facts, bytes(self._read(pixels, deadline))

    def _start(self, source: str) -> None:
        environment = {name: os.environ[name] for name in KEPT if name in os.environ} | ONE_THREAD
        paths = os.pathsep.join(path for path in sys.path if path)  # as this process finds the package, so the child
        self.child = subprocess.Popen(
            [sys.executable, "-m", "medq_ray.pool.jail", str(self.limits.memory_mb), source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"PYTHONPATH": paths},
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends the child
        )
        os.set_blocking(self.child.stdin.fileno(), False)
        with suppress(PermissionError):  # a user may have 64 MB of pipes
            fcntl.fcntl(self.child.stdout, F_SETPIPE_SZ, PIPE_BYTES)  # a 512-px image in one piece
        if self._read(len(READY), time.monotonic() + START_SECONDS) != READY:
            raise Broken(NONSENSE)

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
        try:
            code = self.child.wait(DYING_SECONDS)
        except subprocess.TimeoutExpired:  # it closed its end, but lives
            return NONSENSE
        if code == UNCONFINED:
            raise OSError("this kernel has no seccomp filter, without which no foreign file is opened here")
        names = {number.value: f"({number.name})" for number in signal.Signals}
        return f"crash: its decoder died {names.get(-code, f'(exit code {code})')}"
