"""Commands about the review by experts: the console, who may use it, what it found, and the run's files."""

import json
import socket
from pathlib import Path

import click

from medq_ray import config
from medq_ray.cli.options import RUN_DIR, SET

STORE = click.option("--store", "address", required=True, metavar="FILE_OR_URL",
                     help="A file for SQLite, or postgresql://USER:PASSWORD@HOST/DATABASE.")  # fmt: skip
ITERATION = click.option("--iteration", type=click.IntRange(min=0), required=True, help="Which one of the run.")
ROLE = click.Choice(["reviewer", "lead", "admin"])
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def review() -> None:
    """Let experts accept, edit or reject what the loop proposes."""


@review.command()
@STORE
@click.option("--host", default="127.0.0.1", show_default=True, help="Whom to listen to: this machine, or 0.0.0.0.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="A free one if you do not say.")
@click.option("--behind-proxy", is_flag=True, help="Believe a proxy on this machine who asks, and by https or not.")
@SET
def serve(address: str, host: str, port: int, behind_proxy: bool, assignments: tuple) -> None:
    """Serve the review console until Ctrl-C.

    Example:  medq review serve --store runs/demo/review.db --port 8080 --set review.lease_minutes=5
    """
    import uvicorn

    from medq_ray.privacy import is_external
    from medq_ray.review.console import console
    from medq_ray.review.store import Store

    settings = config.override(config.Config(), list(assignments)).review
    store = Store(address)
    try:
        with socket.create_server((host, port), backlog=2048) as listener:
            url = f"http://{host}:{listener.getsockname()[1]}"
            click.echo(f"review console: {url}")
            if is_external(url):
                click.echo("warning: tokens travel as they are: put a proxy with TLS in front", err=True)
            server = uvicorn.Server(
                uvicorn.Config(  # else anybody on this machine could name another address at each wrong login
                    console(store, settings), log_level="warning", server_header=False, proxy_headers=behind_proxy
                )
            )
            try:
                server.run([listener])
            except KeyboardInterrupt:  # uvicorn has shut down, and passes it on
                pass
    finally:
        store.close()


@review.command()
@STORE
@click.argument("name")
@click.option("--role", type=ROLE, default="reviewer", show_default=True)
def enrol(address: str, name: str, role: str) -> None:
    """Let somebody review, and print their token: once, it is kept nowhere.

    Example:  medq review enrol --store runs/demo/review.db "Dr Ann" --role lead
    """
    from medq_ray.review import accounts

    with _opened(address) as store:
        click.echo(accounts.enrol(store, name, role))


@review.command()
@STORE
@click.argument("name")
def token(address: str, name: str) -> None:
    """Print a new token in the place of a reviewer's old one, also for who was dismissed; their sessions end.

    Example:  medq review token --store runs/demo/review.db "Dr Ann"
    """
    from medq_ray.review import accounts

    with _opened(address) as store:
        click.echo(accounts.new_token(store, name))


@review.command()
@STORE
@click.argument("name")
def dismiss(address: str, name: str) -> None:
    """Let somebody review no more; what they did stays.

    Example:  medq review dismiss --store runs/demo/review.db "Dr Ann"
    """
    from medq_ray.review import accounts

    with _opened(address) as store:
        accounts.dismiss(store, name)


@review.command()
@STORE
@click.argument("name")
@click.argument("role", type=ROLE)
def role(address: str, name: str, role: str) -> None:
    """Give a reviewer another role.

    Example:  medq review role --store runs/demo/review.db "Dr Ann" lead
    """
    from medq_ray.review import accounts

    with _opened(address) as store:
        accounts.set_role(store, name, role)


@review.command()
@STORE
@JSON
def stats(address: str, as_json: bool) -> None:
    """Show Table 3 of the paper as it stands: in all, per iteration and per reviewer.

    Example:  medq review stats --store runs/demo/review.db
    """
    from medq_ray.review.stats import overview
    from medq_ray.review.table import LEGEND, table_text

    with _opened(address) as store, store.reading() as transaction:
        found = overview(transaction)
    click.echo(json.dumps(found, indent=1) if as_json else f"{table_text(found)}\n\n{click.wrap_text(LEGEND, 100)}")


@review.command()
@STORE
@RUN_DIR
@ITERATION
@JSON
def fill(address: str, run_dir: Path, iteration: int, as_json: bool) -> None:
    """Put what a run wants reviewed into the store; the same again adds nothing.

    Example:  medq review fill --store runs/demo/review.db --run-dir runs/demo --iteration 0
    """
    from medq_ray.review import handover

    with _opened(address) as store:
        found = handover.fill(store, run_dir, iteration, config.load(run_dir / "run.yaml"))
    click.echo(json.dumps(found) if as_json else f"{found['items']:,} items to review, {found['added']:,} of them new")


@review.command()
@STORE
@RUN_DIR
@ITERATION
@JSON
def export(address: str, run_dir: Path, iteration: int, as_json: bool) -> None:
    """Write a finished review into the run directory and close it.

    Example:  medq review export --store runs/demo/review.db --run-dir runs/demo --iteration 0
    """
    from medq_ray.review import handover

    with _opened(address) as store:
        found = handover.export(store, run_dir, iteration)
    told = "{reviewed:,} verdicts: {accept:,} accepted, {edit:,} edited, {reject:,} rejected"
    click.echo(json.dumps(found) if as_json else told.format(**found))


def _opened(address: str):
    """The store, closed when the block ends."""
    from contextlib import closing

    from medq_ray.review.store import Store

    return closing(Store(address))
