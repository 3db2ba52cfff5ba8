"""Commands about what a run trains on."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--iteration", type=click.IntRange(min=0), help="Whose samples; the last one's if you do not say.")
@click.option("--link", is_flag=True, help="Link to the run's pictures instead of copying them.")
@click.option("--json", "as_json", is_flag=True, help="Print card.json.")
def export(run_dir: Path, out: Path, iteration: int | None, link: bool, as_json: bool) -> None:
    """Write the samples that a run has trained on as chat messages with pictures, as TRL, LLaMA-Factory and ms-swift
    read them, and a card that says whose the images are and who labelled them.

    Example:  medq export runs/demo --out data/demo
    """
    from medq_ray.console import progress
    from medq_ray.evolve.export import export as write
    from medq_ray.evolve.export import check_out, trained_on

    check_out(out)
    rows, card = trained_on(run_dir, iteration)
    if as_json:
        click.echo(json.dumps(write(rows, card, out, link=link), indent=1))
        return
    with progress(card["images"], "export") as bar:
        write(rows, card, out, link=link, tell=bar.update)
    click.echo(f"{card['samples']:,} samples about {card['images']:,} images; how to read them: {out / 'README.md'}")
    if card["simulated"]:
        click.echo(f"{card['simulated']:,} of the labels are simulated: they are no person's judgement")
    if closed := sorted({row["source"] for row in card["sources"] if not row["share"]}):
        click.echo(f"the terms of {', '.join(closed)} do not allow that its images are given to others")
