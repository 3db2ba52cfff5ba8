"""A checkpoint behind the OpenAI protocol: `serve run serve_apps.vlm:build_app checkpoint=DIR`.

`medq serve vlm --checkpoint DIR` does the same and prints how to ask it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from medq_ray import config
from medq_ray.model.deploy import build
from medq_ray.promotion import checkpoint_to_serve

if TYPE_CHECKING:
    from ray.serve import Application


class Arguments(BaseModel):
    """What `serve run serve_apps.vlm:build_app key=value ...` takes."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str = "embedded"
    """A Hugging Face checkpoint folder, 'embedded', or a run directory: the checkpoint that serves there."""
    name: str = "vlm"
    """The model name that clients give."""
    device: str = "auto"
    """auto, cpu or gpu."""


def build_app(args: Arguments) -> "Application":
    """Builder for `serve run` and `serve build`; plain dicts are accepted too. The engine has the default settings of
    `config.Engine`. Raises ValueError for an unknown argument or a folder that is no checkpoint."""
    arguments = Arguments.model_validate(args)
    engine = config.Engine(device=arguments.device)
    return build(checkpoint_to_serve(arguments.checkpoint), arguments.name, engine)
