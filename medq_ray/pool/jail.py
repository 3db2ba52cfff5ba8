"""The child process that opens files: what it may not do, and the two things that it does.

    python -m medq_ray.pool.jail MEMORY_MB

Started by `pool.decode.Sandbox`. It dies with its parent and cannot allocate more than its limit, make a socket, start
a program or process, signal or trace another one; where the kernel has Landlock, it cannot change a file or look into
/proc either (`lock_up` tells what is left without). It can read other files of its user, but send them nowhere except
in its answer. Requests come as JSON; answers go as JSON and raw pixels, of which the parent believes nothing.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import zlib
from dataclasses import asdict

import numpy as np
from PIL import Image

from medq_ray.depth import shrunk
from medq_ray.images import Refused, pixel_digest
from medq_ray.pool.confine import forbid_files, forbid_system_calls
from medq_ray.pool.hashing import phash, quality, thumb
from medq_ray.pool.sources import Options, Row, reader, rows_of

FRAME = struct.Struct("<II")
"""Before every message: bytes of JSON, bytes of pixels."""
PR_SET_PDEATHSIG = 1
READY = FRAME.pack(0, 0)
"""Said once, before any request."""
LONGEST_REASON = 300
UNCONFINED = 77
"""Exit code of a child that the kernel could not confine."""
READER_ERRORS = (  # what libraries raise on damaged files; anything else ends the child, which the parent survives
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    OSError,
    EOFError,
    SyntaxError,
    ImportError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def lock_up(memory_mb: int) -> bool:
    """Give up, for good, what decoding does not need. Raises OSError where the kernel cannot filter system calls.

    False where it has no Landlock (Linux before 5.13, or switched off): a captured decoder could then still read every
    file of its user, the parent's environment and memory under /proc among them, and remove or empty such files.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold pixels
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file can grow; pipes can
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    landlocked = forbid_files()
    forbid_system_calls()
    return landlocked


def look(source: str, row: Row, side: int) -> tuple[dict, bytes]:
    """(facts, pixels) of one image, at most `side` long."""
    pixels = fitted(reader(source).decode(row, side), side)
    sharpness, noise = quality(pixels)
    facts = {
        "image_id": pixel_digest(pixels),
        "shape": pixels.shape,
        "phash": phash(pixels),
        "sharpness": sharpness,
        "noise": noise,
        "thumb": thumb(pixels).hex(),
    }
    return facts, pixels.tobytes()


def deep(source: str, row: Row, side: int) -> tuple[dict, bytes]:
    """(meaning and shape, uint16 numbers) of one image in all its bits; nothing where there are no more than 8."""
    module = reader(source)
    found = module.depth(row) if hasattr(module, "depth") else None
    if found is None:
        return {"shape": None}, b""
    height, width = found.numbers.shape
    found = shrunk(found, within(width, height, side))
    return asdict(found.meaning) | {"shape": found.numbers.shape}, found.numbers.astype("<u2").tobytes()


def within(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height), reduced so that the longer is at most `side`."""
    longer = max(width, height)
    return (width, height) if longer <= side else (max(1, round(width * side / longer)),
                                                   max(1, round(height * side / longer)))  # fmt: skip


def fitted(pixels: np.ndarray, side: int) -> np.ndarray:
    """The image, reduced so that its longer side is at most `side`. Raises Refused if it is no uint8 RGB image."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise Refused(f"expected uint8 (H, W, 3) of a reader, found {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    size = within(width, height, side)
    if size == (width, height):
        return np.ascontiguousarray(pixels)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3))


def printable(reason: str) -> str:
    """What the parent takes for a reason: no control characters, not long."""
    return "".join(letter if letter.isprintable() else " " for letter in reason)[:LONGEST_REASON]


def answer(request: dict) -> tuple[dict, bytes]:
    """What to tell the parent about one request."""
    row = Row(**request["row"])
    try:
        if request["do"] == "expand":
            rows = rows_of(request["source"], row, Options(**request["options"]))
            return {"rows": [asdict(found) for found in rows]}, b""
        if request["do"] == "deep":
            return deep(request["source"], row, request["side"])
        return look(request["source"], row, request["side"])
    except Refused as error:
        return {"problem": printable(f"decode: {error}")}, b""
    except MemoryError:
        return {"problem": "memory: needs more than a file may take"}, b""
    except READER_ERRORS as error:  # its message may quote the file: a name, a date
        return {"problem": f"decode: damaged or of a kind that cannot be read ({type(error).__name__})"}, b""


def main() -> None:
    """Answer requests until the parent closes its end."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what libraries print could quote a header
        os.dup2(silence, stream)
    try:
        lock_up(int(sys.argv[1]))
    except OSError:
        sys.exit(UNCONFINED)
    reader(sys.argv[2])  # loading its libraries takes seconds that are no file's fault
    answers.write(READY)
    answers.flush()
    while len(head := requests.read(FRAME.size)) == FRAME.size:
        facts, pixels = answer(json.loads(requests.read(FRAME.unpack(head)[0])))
        text = json.dumps(facts).encode()
        answers.write(FRAME.pack(len(text), len(pixels)) + text)
        answers.write(pixels)
        answers.flush()


if __name__ == "__main__":
    main()
