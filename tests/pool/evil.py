"""A reader that misbehaves in the way that a row's path names; tests install it through the entry point group."""

import ctypes
import fcntl
import os
import resource
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
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
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "crash once":
            if not Path(row.key).exists():
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
        case "environ":
            Path(f"/proc/{os.getppid()}/environ").read_bytes()
        case "memory":
            os.open(f"/proc/{os.getppid()}/mem", os.O_RDWR)
        case "write":
            Path(row.key).write_text("here I was")
        case "append":
            with open(row.key, "a") as file:
                file.write("here I was")
        case "remove":
            os.remove(row.key)
        case "chmod":
            os.chmod(row.key, 0o777)
        case "utime":
            os.utime(row.key)
        case "setxattr":
            os.setxattr(row.key, "user.seen", b"1")
        case "attributes":
            fcntl.ioctl(os.open(row.key, os.O_RDONLY), 0x40086602, b"\0" * 8)
        case "fork":
            os.fork()
        case "spawn":
            os.posix_spawn("/bin/true", ["true"], {})
        case "kill":
            os.kill(os.getppid(), 0)
        case "limit":
            resource.prlimit(os.getppid(), resource.RLIMIT_CPU)
        case "native":
            gave = ctypes.CDLL(None).syscall(ctypes.c_long(int(row.key)), ctypes.c_long(os.getppid()))
            raise Refused(f"it gave {gave}")
        case "threads":
            with ThreadPoolExecutor(2) as threads:
                assert list(threads.map(abs, [-1, -2])) == [1, 2]
        case "long":
            raise Refused("a\n" * 1000)
        case "float":
            return GREY.astype(np.float32)
        case "wide":
            return np.random.default_rng(0).integers(0, 256, (100, 4000, 3), dtype=np.uint8)
    return GREY
