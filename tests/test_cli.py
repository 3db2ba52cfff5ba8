"""The command line: examples in every help, one-line errors, nothing lost."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from medq_ray import cli


def commands(group: click.Group, trail: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*trail, name))
        else:
            yield (*trail, name)


@pytest.mark.parametrize("command", commands(cli.main), ids=" ".join)
def test_every_command_has_help_with_an_example(command):
    result = CliRunner().invoke(cli.main, [*command, "--help"])
    assert result.exit_code == 0
    assert "Example:  medq " + " ".join(command) in result.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "--recipe", "dmo", "--run-dir", "{tmp}/r"], "unknown recipe 'dmo'; there are: demo"),
        (["run", "--recipe", "demo", "--run-dir", "{tmp}/r", "--set", "loop.x=1"], "unknown setting 'loop.x'"),
        (["run", "--recipe", "demo", "--run-dir", "{tmp}/r", "--set", "loop.plateau=-1"], "loop.plateau"),
        (["run", "--run-dir", "{tmp}/r"], "give either --recipe or --config"),
        (["run", "--config", "{tmp}/none.yaml", "--run-dir", "{tmp}/r"], "none.yaml"),
        (["run", "--recipe", "demo", "--run-dir", "{file}"], "is a file"),
        (["synth", "{tmp}", "--images", "60"], "not empty and no world of ours"),
        (["report", "{tmp}"], "no summary.json yet"),
        (["ingest", "x-rays", "{tmp}", "--pool", "{tmp}/p"], "unknown source 'x-rays'; there are: ct-mar, dicom"),
        (["pool", "forget", "{tmp}", "{tmp}"], "no pool"),
        (["ingest", "images", "{tmp}", "--pool", "{tmp}/p", "--encoder", "clip"], "encoder.name='clip'"),
        (["ingest", "nifti", "{tmp}", "--pool", "{tmp}/p"], "no file that the reader 'nifti' could read"),
        (["ingest", "eyeq", "{tmp}", "--pool", "{tmp}/p"], "Label_EyeQ"),
        (["pool", "verify", "{tmp}"], "no pool (pool.json is missing or damaged)"),
        (["pool", "quarantine", "{tmp}"], "no pool"),
        (["synth", "{tmp}/w", "--images", "60", "--base", "{tmp}/nothing"], "nothing"),
        (["serve", "vlm", "--checkpoint", "{tmp}/nothing"], "nothing"),
    ],
)
def test_bad_input_gives_one_line(tmp_path, arguments, complaint):
    file = tmp_path / "notes.txt"
    file.touch()
    filled = [argument.replace("{tmp}", str(tmp_path)).replace("{file}", str(file)) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "medq_ray.cli", *filled], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert complaint in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "medq_ray.cli", "--debug", "run", "--recipe", "dmo", "--run-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" in done.stderr
