"""`medq`: the command line. Errors are one line that says what to do; `medq --debug ...` shows the traceback."""

import json
from pathlib import Path

import click

from medq_ray import __version__, config, recipes
from medq_ray.cli.annotating import annotate
from medq_ray.cli.evolving import export
from medq_ray.cli.exploring import calibrate, explore
from medq_ray.cli.options import RUN_DIR, SET, UserError, resumable
from medq_ray.cli.planning import plan
from medq_ray.cli.pooling import ingest, pool
from medq_ray.cli.reviewing import review
from medq_ray.cli.serving import serve

AWAITING = 3
"""Exit code of a run that waits for people: it has not failed, and is not done."""


class Commands(click.Group):
    """Turns the errors that users can mend into one line, unless --debug is given."""

    def invoke(self, ctx: click.Context):
        from medq_ray.model.chat import EndpointError
        from medq_ray.serving import EngineError

        try:
            return super().invoke(ctx)
        except (ValueError, EndpointError, EngineError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            raise UserError(" ".join(str(error).split())) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Find where a vision-language model fails at medical image quality, and train it on look-alikes of that."""


@main.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@SET
def demo(run_dir: Path, seed: int, assignments: tuple[str, ...]) -> None:
    """One closed loop on the embedded models and a synthetic world: no GPU, no account, about eleven minutes.

    Example:  medq demo --run-dir runs/seed-1 --seed 1
    """
    start(config.override(recipes.build("demo", seed), list(assignments)), run_dir)


@main.command()
@click.option("--recipe", help=f"One of: {', '.join(sorted(recipes.RECIPES))}.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="A YAML file such as a run's run.yaml.")
@click.option("--seed", type=click.IntRange(min=0), default=None, help="Seed of everything that draws.")
@RUN_DIR
@SET
@click.option("--wait", is_flag=True, help="Wait for people's reviews instead of stopping until they are done.")
def run(
    recipe: str | None, config_path: Path | None, seed: int | None, run_dir: Path, assignments: tuple, wait: bool
) -> None:
    """Run the loop, or finish it where it was killed. Where people have items to review it stops, with exit code 3.

    Example:  medq run --recipe demo --set world.path=w --run-dir runs/w
    """
    if (recipe is None) == (config_path is None):
        raise ValueError("give either --recipe or --config")
    chosen = recipes.build(recipe) if recipe is not None else config.load(config_path)
    if seed is not None:
        chosen = config.override(chosen, [f"seed={seed}"])
    start(config.override(chosen, list(assignments)), run_dir, wait=wait)


def start(chosen: config.Config, run_dir: Path, *, wait: bool = False) -> None:
    """Run the loop; each iteration ends with its table and the report."""
    from medq_ray import loop
    from medq_ray.console import say
    from medq_ray.report import iteration_table, write_report
    from medq_ray.review import AwaitingReview

    def show(summary: dict) -> None:
        say(f"\n{iteration_table(summary)}\n\nreport: {write_report(run_dir)}")

    click.echo(f"medq_ray {__version__}: recipe {chosen.recipe}, seed {chosen.seed}, run directory {run_dir}")
    click.echo(f"the engines' own messages go to {run_dir / loop.LOG}")
    try:
        with resumable():
            loop.run(chosen, run_dir, after=show, wait=wait)
    except AwaitingReview as waiting:
        click.echo(str(waiting))
        raise SystemExit(AWAITING) from waiting


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(min=30), required=True, help="Pool, dev and test images together.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--size", type=click.IntRange(56, 1024), default=112, show_default=True, help="Side in pixels.")
@click.option("--base", type=click.Path(path_type=Path), help="Degrade the real clean images found there.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def synth(out: Path, images: int, seed: int, size: int, base: Path | None, as_json: bool) -> None:
    """Write a synthetic world: images of five modalities with known degradations, and questions about them.

    Example:  medq synth w --images 600 --seed 7 --base my_clean_images
    """
    from medq_ray.console import progress
    from medq_ray.synthetic.world import write_world

    if as_json:
        click.echo(json.dumps(write_world(out, images, seed, size=size, base=base), indent=1))
    else:
        with progress(images, "synth") as bar:
            summary = write_world(out, images, seed, size=size, base=base, progress=bar.update)
        for key, value in summary.items():
            click.echo(f"{key}: {value}")


@main.command()
@click.option("--compare", "folders", nargs=2, type=click.Path(path_type=Path, exists=True, file_okay=False),
              metavar="A B", help="Compare iterations, evaluate folders or outputs of `medq bench`.")  # fmt: skip
@click.option("--world", "world_path", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Evaluate on this world of `medq synth`.")  # fmt: skip
@click.option("--split", help="dev or test of a world; dev if you do not say. With --compare, what the folders hold.")
@click.option("--base-url", help="The model's OpenAI-compatible endpoint, with /v1; its key comes from ENGINE_API_KEY.")
@click.option("--model", "name", help="Its name there.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the evaluation goes.")
@SET
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    folders: tuple[Path, Path], world_path: Path, split: str, base_url: str, name: str, out: Path, assignments: tuple,
    as_json: bool,
) -> None:  # fmt: skip
    """Evaluate any model R times on a world, or compare two evaluations: is B better than A, and in what?

    \b
    Example:  medq evaluate --world w --base-url http://127.0.0.1:8000/vlm/v1 --model vlm --out runs/e
              medq evaluate --compare runs/demo/iter-00 runs/demo/iter-02 --split test
    """
    from medq_ray.evaluate.compare import compare, describe, scores_of

    if folders:
        (before, was), (after, now) = (scores_of(folder, split) for folder in folders)
        if was != now:
            raise ValueError(f"{folders[0]} is an evaluation of {was}, {folders[1]} one of {now}; give --split")
        found = compare(before, after) | {"split": now}
        click.echo(json.dumps(found, indent=1) if as_json else f"{now}:\n{describe(found)}")
        return
    split = split or "dev"
    if split not in ("dev", "test"):
        raise ValueError(f"--split {split}: expected dev or test")
    if not (world_path and base_url and name and out):
        raise ValueError("give --compare with two folders, or --world, --base-url, --model and --out")
    from medq_ray.console import quiet
    from medq_ray.evaluate import bench as phase
    from medq_ray.evaluate.runs import evaluate_endpoint
    from medq_ray.judging.judge import warnings
    from medq_ray.report.text import metrics_table
    from medq_ray.serving import ray_session
    from medq_ray.synthetic.world import read_world

    chosen = config.override(config.Config(), list(assignments))
    limits = chosen.engine.limits()
    (model,) = phase.models_of(base_url, name, None, **limits)
    judge = phase.judge_at(chosen.judge.base_url, chosen.judge.model, **limits)
    for line in warnings(judge.model, name, None) if judge else ():
        click.echo(f"warning: {line}", err=True)
    world, out = read_world(world_path), out.resolve()
    with resumable(), quiet(out / phase.LOG, people=2 if as_json else 1), ray_session(out / phase.LOG):
        kept = out / "cache" / phase.folder_of(model)
        metrics = evaluate_endpoint(
            out, world, split, name, config=chosen, answer=phase.asker(model, kept), remembered=kept / "sight.parquet",
            ask_judge=judge and phase.asker(judge, out / "cache" / f"judge-{phase.folder_of(judge)}"),
        )  # fmt: skip
    click.echo(json.dumps(metrics, indent=1) if as_json else metrics_table(name, split, metrics[split]))


main.add_command(ingest)
main.add_command(pool)
main.add_command(explore)
main.add_command(calibrate)
main.add_command(annotate)
main.add_command(export)
main.add_command(plan)


@main.group()
def bench() -> None:
    """Run a model on a published benchmark."""


@bench.command("medqbench")
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="The release's TSV files.")  # fmt: skip
@click.option("--split", default="test", show_default=True,
              help="test, dev or all; of MedQ-Deg simulate-test, simulate-dev, good-test or good-dev.")  # fmt: skip
@click.option("--base-url", help="The model's OpenAI-compatible endpoint, with /v1.")
@click.option("--model", "name", help="Its name there.")
@click.option("--models", "models_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="A YAML list of {model, base_url, key_from}: several models in one table.")  # fmt: skip
@click.option("--judge-url", help="The judge's endpoint; without one only perception is run.")
@click.option("--judge-model", default="gpt-4o", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=1, show_default=True, help="Judge rounds.")
@click.option("--judge-temperature", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--templates", type=click.Path(path_type=Path, exists=True),
              help="A copy of VLMEvalKit: its wording, to the letter, instead of ours.")  # fmt: skip
@click.option("--runs", type=click.IntRange(min=1), default=1, show_default=True, help="Answers a perception question.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the answers.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=2048, show_default=True, help="Longest answer.")
@click.option("--concurrency", type=click.IntRange(min=1), default=48, show_default=True, help="Requests in flight.")
@click.option("--trust-sight", is_flag=True, help="Go on where it cannot be told whether a model sees images.")
@click.option("--map", "columns", multiple=True, metavar="OURS=THEIRS", help="A column under another name.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/medqbench"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print result.json.")
def medqbench(
    data: Path, split: str, base_url: str, name: str, models_file: Path, judge_url: str, judge_model: str,
    templates: Path, concurrency: int, columns: tuple, out: Path, as_json: bool, **chosen,
) -> None:  # fmt: skip
    """Run models on MedQ-Bench or MedQ-Deg and print the result beside the published rows. The same command goes on
    where a killed one was. Keys: ENGINE_API_KEY for the model, JUDGE_API_KEY for the judge.

    Example:  medq bench medqbench --data MedQ-Bench --base-url http://127.0.0.1:8000/vlm/v1 --model vlm
    """
    from medq_ray.console import quiet, say
    from medq_ray.evaluate import bench as phase
    from medq_ray.evaluate.medqbench import read_release
    from medq_ray.judging.wording import OWN, load_official
    from medq_ray.serving import ray_session

    models = phase.models_of(base_url, name, models_file, concurrency=concurrency)
    judge = phase.judge_at(judge_url, judge_model, concurrency=concurrency)
    protocol = phase.Protocol(load_official(templates) if templates else OWN, **chosen)
    if judge is None:
        say("note: no --judge-url, so that descriptions and comparisons are not run")
    for line in protocol.warnings():
        say(f"warning: {line}")
    renamed = phase.column_map(columns)
    out = out.resolve()
    with resumable(), quiet(out / phase.LOG, people=2 if as_json else 1):
        release = read_release(data, split, out / "images", renamed)
        for note in release.notes:
            say(f"note: {note}")
        with ray_session(out / phase.LOG):
            phase.bench(out, release, models, judge, protocol)
    click.echo((out / ("result.json" if as_json else "table.txt")).read_text())


main.add_command(serve)
main.add_command(review)


@main.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of the table.")
def report(run_dir: Path, as_json: bool) -> None:
    """Write RUN_DIR/report.html again and print the table.

    Example:  medq report runs/demo
    """
    from medq_ray.artifacts import read_json
    from medq_ray.report import iteration_table, write_report

    if not (run_dir / "summary.json").exists():
        raise ValueError(f"{run_dir} holds no summary.json yet: no iteration has finished there")
    summary = read_json(run_dir / "summary.json")
    path = write_report(run_dir)
    click.echo(json.dumps(summary, indent=1) if as_json else iteration_table(summary))
    click.echo(f"report: {path}", err=as_json)
