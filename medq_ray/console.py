"""What a person sees: phases, progress with rate and ETA, results. Everything else goes to the run's log file.

Ray, vLLM and httpx write to the process's standard streams, some of them from C++. `quiet` therefore points the
file descriptors themselves at the log and keeps the terminal for `say` and `progress`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

_terminal: TextIO | None = None


def terminal() -> TextIO:
    """Where people read: the stream saved by `quiet`, else standard output."""
    return _terminal or sys.stdout


def say(text: str = "") -> None:
    """Print one line for people."""
    print(text, file=terminal(), flush=True)


def progress(total: int, label: str, unit: str = "img") -> tqdm:
    """A progress bar with rate and ETA; on a file or pipe it prints a line every 20 seconds at most."""
    interactive = terminal().isatty()
    return tqdm(
        total=total,
        desc=f"  {label}",
        unit=f" {unit}",
        file=terminal(),
        mininterval=0.2 if interactive else 20.0,
        dynamic_ncols=interactive,
        ncols=None if interactive else 100,
        leave=True,
    )


@contextmanager
def quiet(log: Path, people: int = 1) -> Iterator[None]:
    """Send standard output and error of this process and its children to `log`; `say` still reaches people, by standard
    output, or by standard error (`people` 2) where that is for programs."""
    global _terminal
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    _terminal = os.fdopen(os.dup(people), "w")
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        os.close(saved[0])
        os.close(saved[1])
        _terminal.close()
        _terminal = None
