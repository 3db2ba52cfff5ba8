"""Commands that serve a model."""

import click

from medq_ray import config
from medq_ray.cli.options import SET


@click.group()
def serve() -> None:
    """Serve a model over HTTP."""


@serve.command("vlm")
@click.option("--checkpoint", default="embedded", show_default=True,
              help="A Hugging Face folder, 'embedded', or a run directory: what serves there.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="On loopback; 0: any.")
@SET
def serve_vlm(checkpoint: str, port: int, assignments: tuple) -> None:
    """Serve a checkpoint with images over the OpenAI protocol until Ctrl-C.

    Example:  medq serve vlm --checkpoint runs/demo --set engine.max_model_len=4096
    """
    from medq_ray.model.deploy import serve_forever
    from medq_ray.promotion import checkpoint_to_serve

    serve_forever(checkpoint_to_serve(checkpoint), port, config.override(config.Config(), list(assignments)).engine)
