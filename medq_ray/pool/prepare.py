"""The pool of a run: proven, allowed by its sources, and with the images that the run's questions are about."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import write_json, write_table
from medq_ray.config import Config
from medq_ray.console import say
from medq_ray.pool.ingest import ingest
from medq_ray.pool.splits import read_proof, verify
from medq_ray.pool.store import Pool, encoder_identity, open_pool, with_image
from medq_ray.pool.terms import check_terms, described
from medq_ray.privacy import is_external
from medq_ray.schema import POOL_IMAGE
from medq_ray.synthetic.world import World

WORLD_SALT = "world"
"""A world's patients are synthetic, or hashed already; a fixed salt makes equal runs equal."""


@dataclass(frozen=True)
class Given:
    """The pool that the settings name, found fit when this process started: a million images take 20 s to read, so
    they are read once."""

    pool: Pool
    digest: str
    """Of its content, as the proof states it."""


def check_pool(config: Config) -> Given:
    """The pool in the settings. Raises ValueError when there is none, when it was made with another encoder, when it
    has no passing split proof, when a source's terms forbid what the run would do, or when it is marked and the run
    would send images elsewhere."""
    pool = open_pool(Path(config.pool.path))
    if pool.settings["encoder"] != encoder_identity(config.encoder.name):
        its = pool.settings["encoder"]
        raise ValueError(f"{pool.root} has embeddings of the encoder {its!r}; set encoder.name to it")
    rows = pool.rows()
    proof = read_proof(pool, rows)
    check_use(rows, config)
    if abroad := [url for url in endpoints_of(config) if is_external(url)]:
        if pool.stays:
            instead = f"use models on this machine, or take the mark back: medq pool mark {pool.root} --may-leave"
            raise ValueError(f"{pool.root} is marked: its images never leave this machine, and {abroad[0]} is another; "
                             f"{instead}")  # fmt: skip
    return Given(pool, proof["pool"])


def endpoints_of(config: Config) -> list[str]:
    """Addresses that a run sends images to."""
    return [url for url in (config.oracle.base_url, config.engine.base_url) if url]


def check_use(rows: pa.Table, config: Config) -> None:
    """Raises ValueError when a source of any image forbids what the run would do (`terms.check_terms`). To be called
    whenever a run starts: it may have been given another endpoint than before. rows: of `Pool.rows`."""
    check_terms(with_image(rows), endpoints_of(config), config.pool.acknowledged)


def prepare(folder: Path, *, world: World, config: Config, given: Given | None, own: Path) -> dict:
    """Write images.parquet (schema.POOL_IMAGE; `uri` where an image is a picture file of the world) and pool.json.

    Where no pool is given, the world's images are made one at `own` and its splits are proven. Returns counts. Raises
    ValueError as `ingest` and `read_proof`, and when a pool lacks an image that the world's questions are about.
    """
    quarantined = 0
    if given is None:
        made = ingest("world", world.path, own, split="source", encoder=config.encoder, salt=WORLD_SALT)
        pool, quarantined = open_pool(own), made["quarantined"]
        verify(pool)
        given = Given(pool, read_proof(pool, pool.rows())["pool"])
    pool = given.pool
    images = pool.images()
    asked = world.images.filter(pc.not_equal(world.images["split"], "pool"))
    there = images["split"].take(pc.index_in(asked["image_id"], value_set=images["image_id"].combine_chunks()))
    absent = pc.fill_null(pc.not_equal(there, asked["split"]), True)
    if config.pool.path and (missing := pc.sum(absent).as_py()):
        raise ValueError(
            f"{pool.root} lacks {missing} of the {asked.num_rows} dev and test images of {world.path}, "
            f"or has them in another split; "
            f"run `medq ingest world {world.path} --pool {pool.root} --split source`, then verify it again"
        )
    images = with_pictures(images, world.images)
    write_table(folder / "images.parquet", images, POOL_IMAGE)
    write_json(folder / "pool.json", {"digest": given.digest, "sources": described(images)})
    counts = {split: pc.sum(pc.equal(images["split"], split)).as_py() for split in ("pool", "dev", "test")}
    return {"images": images.num_rows, "quarantined": quarantined, **counts}


def with_pictures(images: pa.Table, world: pa.Table) -> pa.Table:
    """`images` with the uri of those that are picture files of the world."""
    place = pc.index_in(images["image_id"], value_set=world["image_id"].combine_chunks())
    uri = pc.fill_null(world["uri"].take(place), "")
    return images.set_column(images.schema.get_field_index("uri"), "uri", uri)


def reviewable(images: pa.Table, world: World, config: Config) -> pa.Table:
    """Those images that the reviewer can judge: all by people, the world's own by the simulated expert. Says how many
    others are not selected."""
    if config.review.reviewer == "people":
        return images
    known = images.filter(pc.is_in(images["image_id"], world.images["image_id"].combine_chunks()))
    if others := images.num_rows - known.num_rows:
        say(f"  {others:,} images of the pool are not selected: only people can review them (review.reviewer)")
    return known
