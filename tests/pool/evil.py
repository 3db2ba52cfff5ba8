"""A reader that misbehaves in the way that a row's path names; tests install it through the entry point group."""

import ctypes
import os
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np

from medq_ray.images import Refused
from medq_ray.pool.sources import Row, Terms

TERMS = Terms("none", share=False, train=False)
GREY = np.full((32, 32, 3), 128, np.uint8)


def find(root):
    yield from (Row(str(path), modality="ct") for path in sorted(Path(root).iterdir()))


def decode(row, side):
    match row.path:
        case "hang":
            while True:
                pass
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "crash once":
            marker = Path(row.key)
            if not marker.exists():
                marker.touch()
                os._exit(3)
        case "eat":
            np.ones(1 << 33, np.uint8)
        case "python socket":
            socket.socket()
        case "native socket":
            raise Refused(f"socket() gave {ctypes.CDLL(None, use_errno=True).socket(2, 1, 0)}")
        case "program":
            subprocess.run(["true"])
        case "native program":
            raise Refused(f"execv() gave {ctypes.CDLL(None).execl(b'/bin/true', b'true', None)}")
        case "name":
            raise ValueError("could not read 'Mueller^Hans'")
        case "print":
            os.write(1, b"Mueller^Hans")
            print("Mueller^Hans", flush=True)
        case "secrets":
            raise Refused(",".join(sorted(name for name in os.environ if "KEY" in name or "TOKEN" in name)) or "none")
        case "float":
            return GREY.astype(np.float32)
        case "wide":
            return np.random.default_rng(0).integers(0, 256, (100, 4000, 3), dtype=np.uint8)
    return GREY
