"""Commands about annotation: what became of the annotations of a run, and which thresholds its reviews propose."""

import json
from pathlib import Path

import click

from medq_ray.cli.options import RUN_DIR, Share


@click.command()
@RUN_DIR
@click.option("--calibrate", is_flag=True, help="Propose tau_H and tau_ann from the reviewed samples.")
@click.option("--iteration", type=click.IntRange(min=0), help="Whose samples; the last reviewed one if you do not say.")
@click.option("--experts", type=Share(0, 1), help="Target: the share that experts see; 0.18 by default.")
@click.option("--error", type=Share(0, 1), help="Target instead: the error of the labels.")
@click.option("--json", "as_json", is_flag=True, help="Print the routes, or the curve and the proposal, as JSON.")
def annotate(
    run_dir: Path, calibrate: bool, iteration: int | None, experts: float | None, error: float | None, as_json: bool
) -> None:
    """Show the routes of a run's annotations; with --calibrate, what share of them experts must see for what error.

    \b
    Example:  medq annotate --run-dir runs/demo
              medq annotate --run-dir runs/demo --calibrate --experts 0.18
    """
    from medq_ray.annotate import calibrate as calibration

    routes = calibration.routes_of(run_dir)
    if not calibrate:
        if iteration is not None or experts is not None or error is not None:
            raise ValueError("--iteration, --experts and --error go with --calibrate")
        click.echo(json.dumps(routes, indent=1) if as_json else calibration.routes_table(routes))
        return
    if experts is not None and error is not None:
        raise ValueError("give one target: --experts or --error")
    chosen, samples = calibration.reviewed_in(run_dir, range(len(routes)) if iteration is None else [iteration])
    points = calibration.curve(samples)
    proposed = calibration.propose(points, experts=0.18 if experts is None else experts, error=error)
    if as_json:
        found = {"iteration": chosen, "samples": len(samples), "curve": points, "proposed": proposed}
        click.echo(json.dumps(found, indent=1))
        return
    click.echo(f"iteration {chosen}: {calibration.table(points, samples, proposed)}\n")
    click.echo("proposed: --set annotate.tau_entropy={tau_entropy!r} --set annotate.tau_agreement={tau_agreement:g}"
               .format(**proposed))  # fmt: skip
