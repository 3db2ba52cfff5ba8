"""Runs `medq ARGS...` and sends SIGKILL to itself at one exact place, as a power cut would.

    python tests/e2e/killed_run.py 'manifest:iter-00/explore' run --recipe demo --run-dir r

Places: `manifest:STEP` (all of a step's files written, its manifest not), `answers:FOLDER:N` (the model or oracle
under cache/FOLDER has given N answers), `lines:FILE:N` (a file of the run directory has N lines). No place: no kill.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from medq_ray import artifacts, cli


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_lines(paths: list[Path]) -> int:
    return sum(path.read_bytes().count(b"\n") for path in paths)


def kill_when(ready) -> None:
    def watch() -> None:
        while not ready():
            time.sleep(0.01)
        kill()

    threading.Thread(target=watch, daemon=True).start()


def arm(place: str, run_dir: Path) -> None:
    kind, _, where = place.partition(":")
    if kind == "manifest":
        write_json = artifacts.write_json

        def write(path: Path, data) -> None:
            if path == run_dir.resolve() / where / artifacts.MANIFEST:
                kill()
            write_json(path, data)

        artifacts.write_json = write
    elif kind == "answers":
        folder, _, count = where.partition(":")
        kill_when(lambda: count_lines(list((run_dir / "cache" / folder).glob("*.jsonl"))) >= int(count))
    elif kind == "lines":
        file, _, count = where.partition(":")
        kill_when(lambda: (run_dir / file).exists() and count_lines([run_dir / file]) >= int(count))
    else:
        raise SystemExit(f"unknown place {place}")


if __name__ == "__main__":
    place, *arguments = sys.argv[1:]
    if place:
        arm(place, Path(arguments[arguments.index("--run-dir") + 1]))
    cli.main(arguments)
