"""Commands about exploring: why an image was selected, and which tau_sim an encoder needs."""

import json
from pathlib import Path

import click

from medq_ray.cli.options import RUN_DIR


@click.command()
@RUN_DIR
@click.option("--why", "image_id", required=True, metavar="IMAGE_ID", help="An image of the pool.")
def explore(run_dir: Path, image_id: str) -> None:
    """Say why an image was selected: failures, prototype, similarity, weight and share that brought it in.

    Example:  medq explore --run-dir runs/demo --why 0c1f6f3f9a7b2e44
    """
    from medq_ray.explore.why import why

    click.echo(why(run_dir, image_id))


@click.command()
@click.option("--world", "world_path", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="A world; its dev questions say which images have the same capabilities.")  # fmt: skip
@click.option("--encoder", "name", default="embedded", show_default=True, help="As encoder.name in the settings.")
@click.option("--json", "as_json", is_flag=True, help="Print the proposal and all shares as JSON.")
def calibrate(world_path: Path, name: str, as_json: bool) -> None:
    """Propose explore.tau_sim for an encoder: at each threshold, what share of dev images of the same capability
    (modality and degradation) passes, and what share of others.

    Example:  medq calibrate --world w --encoder hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224
    """
    from medq_ray.explore.calibrate import GRID, WIDE, passing, propose, similarities, spread, table
    from medq_ray.explore.embedding import dev_images

    images = dev_images(world_path, name)
    shares = passing(similarities(images.vectors, images.modality, images.cell))
    tau, (low, high) = propose(shares), spread(images.vectors, images.modality, images.cell)
    if as_json:
        found = {"encoder": name, "images": len(images.cell), "tau_sim": tau, "interval": [low, high],
                 "thresholds": GRID.tolist()}  # fmt: skip
        click.echo(json.dumps(found | {kind: values.round(6).tolist() for kind, values in shares.items()}, indent=1))
        return
    click.echo(table(shares, tau))
    click.echo(f"\nproposed for {name}, of {len(images.cell)} dev images: --set explore.tau_sim={tau:.2f}")
    click.echo(f"other dev images would propose {low:.2f} to {high:.2f} (95 %)"
               + ("; more of them would tell better" if high - low > WIDE else ""))  # fmt: skip
