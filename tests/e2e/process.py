"""`medq run` as a process of its own, against a stub endpoint as the model."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

STUB = Path(__file__).parents[1] / "stub.py"
KILLED_RUN = Path(__file__).with_name("killed_run.py")
SETTINGS = [
    "explore.budget=14", "explore.tau_sim=0.3", "evaluate.runs=3", "evaluate.max_prototypes=4", "evolve.epochs=2",
    "evolve.batch_size=8", "loop.max_iterations=2", "loop.plateau=0", "oracle.failure_rate=0.2",
]  # fmt: skip

@contextmanager
def running_stub(*options: str) -> Iterator[str]:
    """The stub endpoint in a process of its own; yields its base URL."""
    process = subprocess.Popen([sys.executable, str(STUB), *options], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def medq(
    place: str, world: Path, run_dir: Path, url: str, more: Sequence[str] = ()
) -> subprocess.CompletedProcess:
    """Run the loop and be killed at a place of `killed_run`, '' for none; more: settings."""
    sets = [f"--set={setting}" for setting in [*SETTINGS, f"world.path={world}", f"engine.base_url={url}", *more]]
    command = [sys.executable, str(KILLED_RUN), place, "run", "--recipe", "demo", "--run-dir", str(run_dir), *sets]
    secret = os.environ | {"OPENAI_API_KEY": "sk-of-the-oracle"}
    return subprocess.run(command, env=secret, capture_output=True, text=True, timeout=600)
