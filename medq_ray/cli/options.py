"""Options that several commands have."""

from pathlib import Path

import click

RUN_DIR = click.option("--run-dir", type=click.Path(path_type=Path), required=True, help="Where the run lives.")
SET = click.option("--set", "assignments", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change one setting.")
