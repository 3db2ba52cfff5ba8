"""Turns a list of image files into the searchable pool: decoded, checked, hashed, measured and embedded.

Ray Data streams the rows through actors that each hold one encoder; pixels live and die inside an actor, and only
rows of a few hundred bytes come back.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import write_table
from medq_ray.config import Encoder
from medq_ray.console import progress, say
from medq_ray.images import pixel_digest, read_image
from medq_ray.pool.hashing import phash, quality
from medq_ray.schema import DROP, IMAGE, MODALITIES, SPLITS, embedded_image_schema


class Embed:
    """Ray Data actor: rows of IMAGE -> the same rows with phash, sharpness, noise, embedding and `problem`."""

    def __init__(self, encoder: str):
        import torch

        from medq_ray.model.encoder import load_encoder

        torch.set_num_threads(1)  # one thread an actor: two actors fill two cores
        self.encoder = load_encoder(encoder)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`problem` is empty or says why the row has no pixels; its numbers are then zero."""
        images, problems = [], []
        for name, uri in zip(batch["image_id"].to_pylist(), batch["uri"].to_pylist(), strict=True):
            pixels, problem = load(name, uri)
            images.append(pixels)
            problems.append(problem)
        kept = [pixels for pixels in images if pixels is not None]
        vectors = np.zeros((len(images), self.encoder.dim), np.float32)
        if kept:
            vectors[[pixels is not None for pixels in images]] = self.encoder.images(kept)
        measures = [(phash(p), *quality(p)) if p is not None else (0, 0.0, 0.0) for p in images]
        hashes, sharpness, noise = zip(*measures, strict=True)
        columns = {
            "phash": pa.array(hashes, pa.uint64()),
            "sharpness": pa.array(sharpness, pa.float32()),
            "noise": pa.array(noise, pa.float32()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.encoder.dim),
            "problem": pa.array(problems, pa.string()),
        }
        for name, column in columns.items():
            batch = batch.append_column(name, column)
        return batch


def load(image_id: str, uri: str) -> tuple[np.ndarray | None, str]:
    """(pixels, '') or (None, why there are none): an unreadable file, or other pixels than the id stands for."""
    try:
        pixels = read_image(uri)
    except ValueError as error:
        return None, f"decode: {error}"
    digest = pixel_digest(pixels)
    return (pixels, "") if digest == image_id else (None, f"digest: {uri} has pixels {digest}, not {image_id}")


def check(images: pa.Table) -> pa.Table:
    """The rows as schema.IMAGE. Raises ValueError naming a row with an unknown split or modality, and the first
    patient or image that is in two splits: what is trained on must never be what is measured."""
    if images.num_rows == 0:
        raise ValueError("no images to ingest; is the world's folder empty?")
    images = images.select(IMAGE.names).cast(IMAGE)
    for column, known in (("split", SPLITS), ("modality", MODALITIES)):
        odd = images.filter(pc.invert(pc.is_in(images[column], pa.array(known)))).slice(0, 1).to_pylist()
        if odd:
            raise ValueError(f"image {odd[0]['uri']}: unknown {column} {odd[0][column]!r}; known: {', '.join(known)}")
    for column in ("patient", "image_id"):
        pairs = images.group_by([column, "split"]).aggregate([])
        for value, count in sorted(Counter(pairs[column].to_pylist()).items()):
            if count > 1:
                splits = sorted(pairs.filter(pc.equal(pairs[column], value))["split"].to_pylist())
                raise ValueError(f"splits leak: {column} {value} is in {' and '.join(splits)}; keep it in one split")
    return images


def first_of_each(images: pa.Table) -> tuple[pa.Table, list[dict]]:
    """(one row for each image_id, sorted by it; DROP rows of the others). The smallest uri stays."""
    kept, drops, seen = [], [], {}
    images = images.sort_by([("image_id", "ascending"), ("uri", "ascending")])
    for row, (name, uri) in enumerate(zip(images["image_id"].to_pylist(), images["uri"].to_pylist(), strict=True)):
        if name in seen:
            reason = f"{uri} has the same pixels as {seen[name]}"
            drops.append({"id": name, "step": "duplicate", "reason": reason, "keeper": name})
        else:
            seen[name] = uri
            kept.append(row)
    return images.take(kept), drops


def actor_count(blocks: int) -> int:
    """One actor a core, but none for fewer than four blocks: loading torch and the encoder takes about as long as
    embedding a thousand images. Cores are counted, since a local Ray may have been told of more CPUs than there are."""
    import ray
    from joblib import cpu_count

    nodes = sum(node["Alive"] for node in ray.nodes())
    cores = min(nodes * cpu_count(), int(ray.cluster_resources().get("CPU", 1)))
    return max(1, min(blocks // 4, cores))


def ingest(folder: Path, images: pa.Table, *, encoder: Encoder) -> dict:
    """Write `images.parquet` (schema.embedded_image_schema, sorted by image_id) and `quarantine.parquet`
    (schema.DROP: files that do not decode or hold other pixels than their id says, and repeated ids).

    images: schema.IMAGE. Returns counts of images, quarantined rows and images of each split. Raises ValueError as
    `check`, and when no image is left. Ray must be reachable; it is started if it is not.
    """
    import ray

    images, drops = first_of_each(check(images))
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours shows images, not blocks
    # One block a batch: the encoder then sees the same batches however the blocks are scheduled, so that equal
    # inputs give equal bytes (the last bits of a matrix product depend on the batch).
    blocks = [images.slice(i, encoder.batch_size) for i in range(0, images.num_rows, encoder.batch_size)]
    source = ray.data.from_arrow(blocks)  # starts Ray if need be
    actors = actor_count(len(blocks))
    rows = source.map_batches(
        Embed,
        fn_constructor_kwargs={"encoder": encoder.name},
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        num_cpus=1,
    )
    parts = []
    with progress(images.num_rows, "ingest") as bar:
        for part in rows.iter_batches(batch_format="pyarrow", batch_size=None):
            parts.append(part)
            bar.update(part.num_rows)
    table = pa.concat_tables(parts).sort_by("image_id")
    bad = pc.not_equal(table["problem"], "")
    for row in table.filter(bad).select(["image_id", "problem"]).to_pylist():
        step, _, reason = row["problem"].partition(": ")
        drops.append({"id": row["image_id"], "step": step, "reason": reason, "keeper": ""})
    good = table.filter(pc.invert(bad)).drop_columns(["problem"])
    if good.num_rows == 0:
        raise ValueError(f"none of {images.num_rows} images could be read; the first: {drops[0]['reason']}")
    write_table(folder / "images.parquet", good, embedded_image_schema(good.schema.field("embedding").type.list_size))
    drops.sort(key=lambda row: (row["id"], row["step"], row["reason"]))
    if drops:
        say(f"  {len(drops)} of {len(drops) + good.num_rows} files are left out, the first since {drops[0]['reason']}")
        say(f"  all of them are in {folder / 'quarantine.parquet'}")
    write_table(folder / "quarantine.parquet", drops, DROP)
    splits = {split: pc.sum(pc.equal(good["split"], split)).as_py() for split in SPLITS}
    return {"images": good.num_rows, "quarantined": len(drops), **splits}
