"""What several commands share: options, and how they end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

RUN_DIR = click.option("--run-dir", type=click.Path(path_type=Path), required=True, help="Where the run lives.")
SET = click.option("--set", "assignments", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change one setting.")


class UserError(click.ClickException):
    """One line on standard error, exit code 1."""

    def show(self, file=None) -> None:
        click.echo(f"error: {self.message}", file=file or sys.stderr)


class Share(click.FloatRange):
    """A number in a range; click's own takes 'nan' for one."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        stopped = UserError("stopped; the same command goes on where this one was")
        stopped.exit_code = 130  # as shells have it for Ctrl-C
        raise stopped from error
