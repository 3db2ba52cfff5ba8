"""Commands about pools: make one, prove it, look after it."""

import json
from pathlib import Path

import click

from medq_ray import config, schema
from medq_ray.cli.options import Share, resumable


@click.command()
@click.argument("source")
@click.argument("root", type=click.Path(path_type=Path, exists=True))
@click.option("--pool", "pool_root", type=click.Path(path_type=Path), required=True, help="Where the pool lives.")
@click.option("--split", type=click.Choice(["pool", "dev", "test", "source"]), default="pool", show_default=True,
              help="What its images are for; 'source': as the release is split.")  # fmt: skip
@click.option("--modality", type=click.Choice(schema.MODALITIES), help="Of all its images, where they do not say.")
@click.option("--slices", type=click.IntRange(min=0), default=16, show_default=True,
              help="Images of a volume, from its middle 80 %; 0: all.")  # fmt: skip
@click.option("--plane", type=click.Choice(["axial", "coronal", "sagittal"]), default="axial", show_default=True)
@click.option("--encoder", default="embedded", show_default=True, help="open_clip model: see encoder.name.")
@click.option("--side", type=click.IntRange(min=224), default=2048, show_default=True, help="Longest side kept, in px.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Actors; 0: one a core.")
@click.option("--gpus", type=Share(0, 1), default=0.0, help="Share of a GPU for each actor.")
@click.option("--memory-mb", type=click.IntRange(min=768), default=2048, show_default=True, help="To open one file.")
@click.option("--seconds", type=Share(min=1), default=60.0, show_default=True, help="To open one file.")
@click.option("--retry", is_flag=True, help="Try files again that are in quarantine.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def ingest(source: str, root: Path, pool_root: Path, as_json: bool, **chosen) -> None:
    """Make the images of a data set or folder part of a pool. The same command finishes a killed ingest, and takes
    only what is new from a folder that has grown.

    SOURCE is a reader: dicom, nifti and images for any folder; fastmri, ct-mar, mr-art, harp, histoartifacts,
    ead2020, eyeq, gmai-mmbench, omnimedvqa and radiopaedia for those data sets; world for `medq synth`.

    Example:  medq ingest dicom /data/ct --pool p --split pool
    """
    from medq_ray.console import quiet
    from medq_ray.model.encoder import encoder_folder
    from medq_ray.pool import ingest as phase
    from medq_ray.pool.decode import Limits
    from medq_ray.pool.sources import Options

    encoder_folder(chosen["encoder"])  # what is wrong is told before anything is made
    phase.check_root(source, root)
    limits = Limits(chosen["memory_mb"], chosen["seconds"])
    work = phase.Work(chosen["workers"], chosen["gpus"], limits, chosen["retry"])
    made = phase.create_pool(pool_root, chosen["encoder"], chosen["side"])
    with resumable(), quiet(made.private / phase.LOG, people=2 if as_json else 1):
        counts = phase.ingest(
            source, root, pool_root, split=chosen["split"], side=chosen["side"], work=work,
            options=Options(chosen["modality"] or "", chosen["slices"], chosen["plane"]),
            encoder=config.Encoder(name=chosen["encoder"]),
        )  # fmt: skip
    click.echo(json.dumps(counts, indent=1) if as_json else phase.describe(counts, pool_root))


@click.group()
def pool() -> None:
    """Look after a pool made by `medq ingest`."""


@pool.command("verify")
@click.argument("pool_root", metavar="POOL", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--phash-radius", type=click.IntRange(0, 16), default=4, show_default=True, help="Bits.")
@click.option("--embedding", type=Share(0, 1), default=0.99, show_default=True, help="Cosine.")
@click.option("--json", "as_json", is_flag=True, help="Print proof.json.")
@click.pass_context
def verify_pool(ctx: click.Context, pool_root: Path, phash_radius: int, embedding: float, as_json: bool) -> None:
    """Prove that pool, dev and test share no patient, session, image, near-duplicate or look-alike. Exit code 1 if
    they do.

    Example:  medq pool verify p
    """
    from medq_ray.console import quiet
    from medq_ray.pool.ingest import LOG
    from medq_ray.pool.splits import Thresholds, describe, verify
    from medq_ray.pool.store import open_pool

    found = open_pool(pool_root)
    with quiet(found.private / LOG, people=2 if as_json else 1):
        proof = verify(found, Thresholds(phash_radius=phash_radius, embedding=embedding))
    click.echo(json.dumps(proof, indent=1) if as_json else describe(proof, pool_root))
    ctx.exit(0 if proof["passed"] else 1)


@pool.command("mark")
@click.argument("pool_root", metavar="POOL", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--stays-here/--may-leave", default=True, show_default=True)
def mark_pool(pool_root: Path, stays_here: bool) -> None:
    """Mark a pool whose images must never be sent to another machine, whatever a run's settings acknowledge.

    Example:  medq pool mark p
    """
    from medq_ray.pool.store import open_pool

    open_pool(pool_root).mark(stays_here)
    said = "never leave this machine" if stays_here else "may leave, as their terms say"
    click.echo(f"images of {pool_root} {said}")


@pool.command("forget")
@click.argument("pool_root", metavar="POOL", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("root", type=click.Path(path_type=Path))
def forget_root(pool_root: Path, root: Path) -> None:
    """Take everything that was ingested from ROOT out of the pool: hashes, thumbnails and embeddings too.

    Example:  medq pool forget p /data/ct
    """
    from medq_ray.pool.ingest import forget
    from medq_ray.pool.store import open_pool

    gone, kept = forget(open_pool(pool_root), root)
    click.echo(f"{gone:,} images of {root} are forgotten; prove the splits anew: medq pool verify {pool_root}")
    if kept:
        click.echo(f"{kept:,} stay: their files came from another folder or reader as well; forget that too")


@pool.command("quarantine")
@click.argument("pool_root", metavar="POOL", type=click.Path(path_type=Path, exists=True, file_okay=False))
def show_quarantine(pool_root: Path) -> None:
    """List the files that gave no image, with paths and reasons. For your eyes: paths can name patients.

    Example:  medq pool quarantine p
    """
    from medq_ray.pool.store import open_pool, quarantined

    for path, key, step, reason in quarantined(open_pool(pool_root)):
        line = f"{path}{f' [{key}]' if key else ''}: {step}: {reason}"
        click.echo("".join(letter if letter.isprintable() else "?" for letter in line))  # names are foreign words
