"""The child process that opens files: what it may not do, and the two things that it does.

    python -m medq_ray.pool.jail MEMORY_MB

Started by `pool.decode.Sandbox`. It dies with its parent, cannot allocate more than its limit, cannot make a socket or
start a program, and knows none of the parent's secrets. Requests come as JSON; answers go as JSON and raw pixels, so
that nothing that a captured child says is ever executed by the parent.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import zlib
from dataclasses import asdict

import numpy as np
from PIL import Image

from medq_ray.images import Refused, pixel_digest
from medq_ray.pool.hashing import phash, quality, thumb
from medq_ray.pool.sources import Options, Row, reader, rows_of

FRAME = struct.Struct("<II")
"""Before every message: bytes of JSON, bytes of pixels."""
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
FORBIDDEN = {  # machine -> (audit architecture, system calls: socket, execve, execveat, io_uring_setup)
    "x86_64": (0xC000003E, (41, 59, 322, 425)),
    "aarch64": (0xC00000B7, (198, 221, 281, 425)),
}
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


class Instruction(ctypes.Structure):
    """One instruction of the kernel's packet filter (struct sock_filter)."""

    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32)]


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction))]


def forbid_system_calls() -> bool:
    """Make the FORBIDDEN calls fail with 'not permitted', for native code too. False where the kernel cannot."""
    if platform.machine() not in FORBIDDEN:
        return False
    architecture, calls = FORBIDDEN[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, deny = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM
    code = [Instruction(load, 0, 0, 4), Instruction(equal, 1, 0, architecture), Instruction(answer, 0, 0, deny)]
    code += [Instruction(load, 0, 0, 0), Instruction(at_least, len(calls) + 1, 0, 0x40000000)]  # no calls by x32 numbers
    code += [Instruction(equal, len(calls) - i, 0, call) for i, call in enumerate(calls)]
    code += [Instruction(answer, 0, 0, allow), Instruction(answer, 0, 0, deny)]
    program = Program(len(code), (Instruction * len(code))(*code))
    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) == 0


def refuse_sockets(event: str, arguments: tuple) -> None:
    """Audit hook: the same for Python code, where the kernel's filter is missing."""
    if event in ("socket.__new__", "subprocess.Popen", "os.system", "os.exec"):
        raise PermissionError(f"{event} in a process that only decodes")


def lock_up(memory_mb: int) -> None:
    """Give up, for good, what decoding does not need."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold pixels
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    forbid_system_calls()
    sys.addaudithook(refuse_sockets)


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


def fitted(pixels: np.ndarray, side: int) -> np.ndarray:
    """The image, reduced so that its longer side is at most `side`. Raises Refused if it is no uint8 RGB image."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise Refused(f"expected uint8 (H, W, 3) of a reader, found {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer <= side:
        return np.ascontiguousarray(pixels)
    size = max(1, round(width * side / longer)), max(1, round(height * side / longer))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3))


def answer(request: dict) -> tuple[dict, bytes]:
    """What to tell the parent about one request."""
    row = Row(**request["row"])
    try:
        if request["do"] == "expand":
            rows = rows_of(request["source"], row, Options(**request["options"]))
            return {"rows": [asdict(found) for found in rows]}, b""
        return look(request["source"], row, request["side"])
    except Refused as error:
        return {"problem": f"decode: {error}"}, b""
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
    lock_up(int(sys.argv[1]))
    while len(head := requests.read(FRAME.size)) == FRAME.size:
        facts, pixels = answer(json.loads(requests.read(FRAME.unpack(head)[0])))
        text = json.dumps(facts).encode()
        answers.write(FRAME.pack(len(text), len(pixels)) + text)
        answers.write(pixels)
        answers.flush()


if __name__ == "__main__":
    main()
