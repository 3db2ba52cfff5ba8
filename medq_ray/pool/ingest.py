"""Makes a source part of the pool: listed, decoded, checked, hashed, measured and embedded.

The manifest is cut into chunks of 256 images that nobody has looked at yet; Ray Data hands their numbers, never their
paths, to a pool of actors. An actor decodes in a child process with limits (`pool.decode`), embeds batch by batch and
writes one shard; pixels live and die inside it, and a shard is there whole or not at all. Decoding and embedding
share an actor (our choice): a chunk of BiomedCLIP's inputs is 150 MB, which need not cross the object store; a GPU is
shared by giving each actor a fraction of it.

What a shard holds depends on the order of paths and on what is not done yet, never on who does it when: a killed
ingest that is started again ends with the same pool, byte for byte in every row.
"""

import hashlib
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medq_ray import config
from medq_ray.artifacts import digest_of, read_table, write_table
from medq_ray.console import progress, say
from medq_ray.images import Refused
from medq_ray.pool.decode import Limits, Look, Sandbox
from medq_ray.pool.listing import list_source, manifest_path, passed_over
from medq_ray.pool.search import read_shard
from medq_ray.pool.sources import Options, Row, reader
from medq_ray.pool.store import Pool, claimed, create_pool, open_pool, with_image, write_quarantine
from medq_ray.schema import DROP, LISTED, SPLITS, looked_schema
from medq_ray.serving import ray_session, start_ray

LOG = "log.txt"
"""In the pool's private folder: what Ray had to say."""
CHUNK = 256
"""Images a shard: with 512 floats each half a megabyte, and what is lost when an actor dies."""


@dataclass(frozen=True)
class Work:
    """How an ingest is done; decides nothing about its result."""

    workers: int = 0
    """Actors; 0 is one a core, but none for fewer than four batches."""
    gpus: float = 0.0
    """Share of a GPU that each actor gets."""
    limits: Limits = Limits()
    retry: bool = False
    """Try files again that gave no image before."""


class Looker:
    """Ray Data actor: numbers of chunks -> how many images and problems each has; the shard is on disk by then."""

    def __init__(self, root: str, todo: str, encoder: config.Encoder, limits: Limits):
        import torch

        from medq_ray.model.encoder import load_encoder

        torch.set_num_threads(1)  # one thread an actor: two actors fill two cores
        self.pool, self.todo, self.batch = open_pool(Path(root)), todo, encoder.batch_size
        self.encoder = load_encoder(encoder.name)
        self.sandbox = Sandbox(limits)

    def __call__(self, batch: pa.Table) -> pa.Table:
        counts = [self.look(chunk) for chunk in batch["chunk"].to_pylist()]
        images, problems = zip(*counts, strict=True)
        return pa.table({"images": pa.array(images, pa.int64()), "problems": pa.array(problems, pa.int64())})

    def look(self, chunk: int) -> tuple[int, int]:
        """Write the shard of one chunk; (images, problems) in it."""
        rows = pq.ParquetFile(self.todo).read_row_group(chunk).to_pylist()
        records, vectors = [], [np.zeros((0, self.encoder.dim), np.float32)]
        for start in range(0, len(rows), self.batch):
            looks = [self.decode(row) for row in rows[start : start + self.batch]]
            vectors.append(self.embed([look.pixels for look in looks if isinstance(look, Look)]))
            records += [facts(look) for look in looks]
        table = shard(rows, records, np.concatenate(vectors))
        write_shard(self.pool.root / "shards" / f"{digest_of([row['item'] for row in rows])}.parquet", table)
        problems = sum(bool(record["problem"]) for record in records)
        return len(rows) - problems, problems

    def embed(self, pixels: list[np.ndarray]) -> np.ndarray:
        """float32 (n, d). The encoder always sees a full batch: in a small one the last bits of a vector differ."""
        blank = [np.zeros((8, 8, 3), np.uint8)] * (self.batch - len(pixels))
        return self.encoder.images([*pixels, *blank])[: len(pixels)]

    def decode(self, row: dict) -> Look | str:
        """What the sandbox saw, or the problem with it."""
        try:
            image = Row(row["uri"], row["key"], row["modality"])
            return self.sandbox.decode(row["source"], image, self.pool.settings["side"])
        except Refused as error:
            return str(error)


def facts(look: Look | str) -> dict:
    """The numbers of one image."""
    if isinstance(look, str):
        return {"image_id": "", "problem": look, "height": 0, "width": 0, "phash": 0, "sharpness": 0.0, "noise": 0.0,
                "thumb": bytes(256)}  # fmt: skip
    height, width = look.pixels.shape[:2]
    return {"image_id": look.image_id, "problem": "", "height": height, "width": width, "phash": look.phash,
            "sharpness": look.sharpness, "noise": look.noise, "thumb": look.thumb}  # fmt: skip


def shard(rows: list[dict], records: list[dict], vectors: np.ndarray) -> pa.Table:
    """schema.looked_schema of a chunk; vectors: float32 (n, d), of the records without a problem, in order."""
    schema = looked_schema(vectors.shape[1])
    every = np.zeros((len(rows), vectors.shape[1]), np.float32)
    every[[not record["problem"] for record in records]] = vectors
    for row, record, vector in zip(rows, records, every, strict=True):
        seen = repr([record[name] for name in schema.names[1:-2]]).encode()
        record |= {"item": row["item"], "digest": hashlib.sha256(seen + vector.tobytes()).hexdigest()[:16]}
    columns = [pa.array([record[name] for record in records], schema.field(name).type) for name in schema.names[:-1]]
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(every.ravel()), type=schema.field("embedding").type))
    return pa.table(columns, schema=schema)


def write_shard(path: Path, table: pa.Table) -> None:
    """Write a shard whole or not at all; two actors that write the same one do not meet before the end."""
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}")
    packed = [name for name in table.column_names if name != "embedding"]  # unit vectors do not pack, and unpack slowly
    pq.write_table(table, temporary, use_dictionary=packed, compression=dict.fromkeys(packed, "zstd"))
    os.replace(temporary, path)


def unseen(pool: Pool, listed: pa.Table, retry: bool) -> pa.Table:
    """(item, source, uri, key, modality) of listed images that no shard has, in the order of their paths."""
    looked = pool.looked()
    if retry:
        looked = looked.filter(pc.equal(looked["problem"], ""))
    open_ones = pc.and_(
        pc.equal(listed["problem"], ""), pc.invert(pc.is_in(listed["item"], looked["item"].combine_chunks()))
    )
    todo = listed.filter(open_ones).select(["item", "source", "uri", "key", "modality"])
    return todo.sort_by([("uri", "ascending"), ("key", "ascending")])


def actor_count(images: int, batch: int) -> int:
    """One actor a core, but none for fewer than four batches: loading torch and the encoder takes about as long as
    embedding a thousand images. Cores are counted, since a local Ray may have been told of more CPUs than there are."""
    import ray
    from joblib import cpu_count

    nodes = sum(node["Alive"] for node in ray.nodes())
    cores = min(nodes * cpu_count(), int(ray.cluster_resources().get("CPU", 1)))
    return max(1, min(images // (4 * batch), cores))


def look_at(pool: Pool, todo: pa.Table, encoder: config.Encoder, work: Work) -> None:
    """Write the shards of `todo`; starts Ray unless this process has one."""
    with ray_session(pool.private / LOG):
        look_with_ray(pool, todo, encoder, work)


def look_with_ray(pool: Pool, todo: pa.Table, encoder: config.Encoder, work: Work) -> None:
    """`look_at` on the Ray that runs."""
    import ray

    start_ray()
    path = pool.private / "todo.parquet"
    pq.write_table(todo, path, row_group_size=CHUNK)
    chunks = [pa.table({"chunk": [i]}) for i in range(-(-todo.num_rows // CHUNK))]
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours shows images, not blocks
    source = ray.data.from_arrow(chunks)
    actors = work.workers or actor_count(todo.num_rows, encoder.batch_size)
    done = source.map_batches(
        Looker,
        fn_constructor_kwargs={"root": str(pool.root), "todo": str(path), "encoder": encoder, "limits": work.limits},
        batch_format="pyarrow",
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        num_cpus=1,
        num_gpus=work.gpus or None,
    )
    problems = 0
    with progress(todo.num_rows, "ingest") as bar:
        for part in done.iter_batches(batch_format="pyarrow", batch_size=None):
            for images, bad in zip(part["images"].to_pylist(), part["problems"].to_pylist(), strict=True):
                problems += bad
                bar.update(images + bad)
                bar.set_postfix_str(f"{problems} bad" if problems else "")
    path.unlink()


def ingest(
    source: str,
    root: Path,
    pool_root: Path,
    *,
    split: str = "pool",
    options: Options = Options(),
    encoder: config.Encoder = config.Encoder(),
    side: int = 2048,
    salt: str = "",
    work: Work = Work(),
) -> dict:
    """Make every image of `root` part of the pool; the same call finishes one that was killed, and one over a grown
    folder does only what is new. Images whose file is gone or has changed leave the pool.

    split: 'pool', 'dev', 'test' or 'source' for the release's own; side: the longer side of what is kept, in pixels
    (longer ones are reduced); salt: see `create_pool`. Returns counts, with the pool's content digest, or 'unfinished'
    while the ingest of another source that was killed waits to be finished. Raises ValueError for what `list_source`
    and `create_pool` refuse, and when a pool has no image at all.
    """
    if split not in (*SPLITS, "source"):
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}, or 'source' for the release's own")
    root = Path(root).resolve()
    check_root(source, root)
    pool = create_pool(pool_root, encoder.name, side, salt)
    with claimed(pool.root):
        manifest = manifest_path(pool, source, root)
        before = read_table(manifest)["item"] if manifest.exists() else LISTED.empty_table()["item"]
        listed = list_source(pool, source, root, split, options, work.limits, work.retry)
        gone = len(before) - (pc.sum(pc.is_in(before, listed["item"].combine_chunks())).as_py() or 0)
        todo = unseen(pool, listed, work.retry)
        if todo.num_rows:
            look_at(pool, todo, encoder, work)
        prune(pool)
        rows = pool.rows(partial=True)  # an earlier ingest of another source may have been killed
        quarantine, images = write_quarantine(pool, rows, DROP), with_image(rows)
        own = pc.is_in(quarantine["id"], listed["item"].combine_chunks())
        if others := passed_over(pool, root, listed):
            said = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(others.items()))
            say(f"  files that the reader {source!r} does not read: {said}")
        if images.num_rows == 0:
            first = quarantine["reason"][0].as_py()
            raise ValueError(f"none of {listed.num_rows} files of {root} gave an image; the first: {first}")
        unfinished = pc.sum(pc.equal(pool.listed()["problem"], "")).as_py() - rows.num_rows
        each = images.group_by(["image_id", "split"]).aggregate([])
        counts = {name: pc.sum(pc.equal(each["split"], name)).as_py() for name in SPLITS}
        return {
            "listed": listed.num_rows,
            "new": todo.num_rows,
            "gone": gone,
            "quarantined": pc.sum(own).as_py() or 0,
            "images": pc.count_distinct(images["image_id"]).as_py(),
            **counts,
            "digest": "unfinished" if unfinished else pool.digest(rows),
        }


def check_root(source: str, root: Path) -> None:
    """Raise ValueError, before anything is written, when a source's reader finds nothing at `root`."""
    if next(iter(reader(source).find(root)), None) is None:
        raise ValueError(f"{root}: no file that the reader {source!r} could read")


def prune(pool: Pool) -> None:
    """Take out of the shards what no manifest lists any more, and what killed actors left behind."""
    listed = pool.listed()["item"].combine_chunks()
    for path in pool.shards():
        gone = pc.invert(pc.is_in(read_shard(path, ["item"])["item"], listed))
        if pc.all(gone).as_py():
            path.unlink()
        elif pc.any(gone).as_py():
            write_shard(path, pq.ParquetFile(path).read().filter(pc.invert(gone)))
    for path in (pool.root / "shards").glob(".*"):
        path.unlink(missing_ok=True)


def forget(pool: Pool, root: Path) -> tuple[int, int]:
    """Take everything that was ingested from `root` out of the pool, its proof and what is left of a killed ingest;
    (images that are gone, images that stay since they were ingested from another root or by another reader too).

    Raises ValueError when nothing was ingested from there. Finishes one that was killed.
    """
    with claimed(pool.root):
        ending = f"*-{digest_of(str(Path(root).resolve()))[:8]}"
        paths = sorted((pool.private / "manifests").glob(f"{ending}.parquet"))
        listing = sorted((pool.private / "listing").glob(ending))
        own = pa.concat_tables([LISTED.empty_table(), *map(read_table, paths)])
        for path in paths:
            write_table(path, LISTED.empty_table(), LISTED)  # the name stays until everything else is gone
        for folder in listing:
            shutil.rmtree(folder)
        for name in ("private/todo.parquet", "proof.json", "clusters.parquet", "pairs.parquet"):
            (pool.root / name).unlink(missing_ok=True)
        prune(pool)
        write_quarantine(pool, pool.rows(partial=True), DROP)
        for path in paths:
            path.unlink()
        if not paths and not listing:
            raise ValueError(f"{pool.root}: nothing was ingested from {root}; give the folder as it was given then")
        # by path: the same file has another item under another reader
        elsewhere = pc.is_in(own["uri"], pool.listed()["uri"].combine_chunks())
        kept = pc.sum(elsewhere).as_py() or 0
        return own.num_rows - kept, kept


def describe(counts: dict, pool_root: Path) -> str:
    """What an ingest did, for a person."""
    splits = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS if counts[split])
    listed, new, bad = (f"{counts[name]:,}" for name in ("listed", "new", "quarantined"))
    lines = [f"{listed} images listed, {new} of them new, {bad} in quarantine"]
    if counts["gone"]:
        lines.append(f"{counts['gone']:,} images left the pool: their files are gone or have changed")
    if counts["quarantined"]:
        lines.append(f"  why: medq pool quarantine {pool_root}; --retry tries them again")
    lines.append(f"the pool has {counts['images']:,} images ({splits}); content digest {counts['digest']}")
    lines.append(f"prove its splits: medq pool verify {pool_root}")
    return "\n".join(lines)
