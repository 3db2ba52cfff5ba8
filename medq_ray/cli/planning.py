"""The command that says what a run will need."""

import json
from pathlib import Path

import click

from medq_ray import config, recipes
from medq_ray.cli.options import SET


@click.command()
@click.option("--recipe", help=f"One of: {', '.join(sorted(recipes.RECIPES))}.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="A YAML file such as a run's run.yaml.")
@click.option("--checkpoint", help="Instead of engine.checkpoint: a folder (only its config.json is read).")
@click.option("--gpus", type=click.IntRange(min=1), required=True, help="Of one node.")
@click.option("--gpu-memory", type=click.FloatRange(min=0, min_open=True), required=True, help="Of each, in GB.")
@click.option("--gpu", default="A100", show_default=True, help="How fast they are: A10G, A100, H100, H200 or L40S.")
@click.option("--host-memory", type=click.FloatRange(min=0, min_open=True), help="Of the node, in GB; else not judged.")
@SET
@click.option("--json", "as_json", is_flag=True, help="Print bytes and seconds as JSON.")
def plan(
    recipe: str | None, config_path: Path | None, checkpoint: str | None, gpus: int, gpu_memory: float, gpu: str,
    host_memory: float | None, assignments: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Estimate memory and time of each phase, and whether it fits; nothing is fetched and nothing started.

    Example:  medq plan --recipe internvl3_8b --gpus 8 --gpu-memory 80
    """
    from medq_ray.plan import Hardware, described
    from medq_ray.plan import plan as estimate

    if (recipe is None) == (config_path is None):
        raise ValueError("give either --recipe or --config")
    chosen = recipes.build(recipe) if recipe is not None else config.load(config_path)
    node = Hardware(gpus, gpu_memory * 1e9, gpu, None if host_memory is None else host_memory * 1e9)
    found = estimate(config.override(chosen, list(assignments)), node, checkpoint)
    click.echo(json.dumps(found, indent=1) if as_json else described(found))
