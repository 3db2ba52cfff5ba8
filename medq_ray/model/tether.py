"""Imported into an engine's fork server (see `deploy.preload_engine`) so that engines die with what started them.

A replica that is killed takes its fork server along, but vLLM's engine would live on with its gigabyte: a `kill -9` of
the driver left one behind each time. Forked processes therefore ask Linux for SIGKILL at the death of their parent.
"""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


os.register_at_fork(after_in_child=die_with_parent)
