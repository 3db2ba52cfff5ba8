"""jobs/run_loop.py as a program: what the submitter gets wrong is one line and a non-zero exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def job(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "jobs/run_loop.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--recipe", "nonsense"], "unknown recipe 'nonsense'"),
        (["--recipe", "demo", "--set", "evaluate.nonsense=1"], "unknown setting 'evaluate.nonsense'"),
        (["--recipe", "demo", "--set", "evaluate.runs=0"], "evaluate.runs"),
        (["--config", "no-such.yaml"], "no-such.yaml"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, arguments, message):
    done = job(*arguments, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_help_names_the_options():
    done = job("--help")
    assert done.returncode == 0 and "--recipe" in done.stdout and "--run-dir" in done.stdout
