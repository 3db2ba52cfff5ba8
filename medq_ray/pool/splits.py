"""The split proof: nothing that is trained on may be what is measured (peers have none; our choice of checks).

Five checks over every pair of splits: patients, sessions, pixels, near-duplicates, embeddings. A patient or session
is proven where the source names it. Where it does not, images are joined into clusters of look-alikes
(`dedup.likeness_groups`) and sessions, a cluster counts as one patient, and the report says 'clustered, not proven':
two views of one patient that do not look alike stay apart, and nothing here can know.

Look-alikes by embedding are a leak only where a patient is not proven: two proven patients with the same degradation
are as close as a CLIP-like encoder can tell, and they are two.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import digest_file, digest_of, read_json, write_json, write_table
from medq_ray.console import progress
from medq_ray.pool.dedup import Images, agreeing, likeness_groups
from medq_ray.pool.search import read_shard, within
from medq_ray.pool.store import Pool, first_of_each
from medq_ray.schema import SPLITS

PAIR = pa.schema(
    [
        ("check", pa.string()),  # patient | session | pixels | near_duplicate | embedding
        ("left", pa.string()),  # image id
        ("right", pa.string()),
        ("left_split", pa.string()),
        ("right_split", pa.string()),
        ("similarity", pa.float32()),  # cosine; null for other checks
    ]
)
CHECKS = ("patient", "session", "pixels", "near_duplicate", "embedding")
MOST_PAIRS = 10_000
"""Pairs kept of each check; the counts are complete."""


@dataclass(frozen=True)
class Thresholds:
    """What counts as the same image."""

    phash_radius: int = 4
    """Bits; as evolve.phash_radius."""
    quality_tolerance: float = 0.1
    """Relative; as evolve.quality_tolerance."""
    likeness_radius: int = 8
    """Bits within which images without a patient can be one cluster."""
    embedding: float = 0.99
    """Cosine at or above which two images count as one patient's, if nobody says whose they are."""


def verify(pool: Pool, thresholds: Thresholds = Thresholds()) -> dict:
    """Write clusters.parquet, pairs.parquet and proof.json, and return the proof.

    Raises ValueError when the pool is not completely ingested or has no image.
    """
    rows = pool.good()
    if rows.num_rows == 0:
        raise ValueError(f"{pool.root}: no images to verify")
    images = first_of_each(rows)
    clusters = clustered(rows, images, thresholds)
    write_table(pool.root / "clusters.parquet", clusters, clusters.schema)
    leaks: dict[str, list[dict]] = {
        "patient": shared(with_clusters(rows, clusters), "patient"),
        "session": shared(rows, "session"),
        "pixels": shared(rows, "image_id"),
        "near_duplicate": near_duplicates(images, thresholds),
    }
    leaks["embedding"], alike = look_alikes(pool, images, thresholds.embedding)
    pairs = [{"check": check, **pair} for check in CHECKS for pair in leaks[check][:MOST_PAIRS]]
    write_table(pool.root / "pairs.parquet", pairs, PAIR)
    proof = {
        "pool": pool.digest(),
        "passed": not any(leaks.values()),
        "thresholds": asdict(thresholds),
        "leaks": {check: len(leaks[check]) for check in CHECKS},
        "look_alikes_of_proven_patients": alike,
        "splits": {split: counts(rows, images, clusters, split) for split in SPLITS},
        "sources": basis(images),
        "pairs": digest_file(pool.root / "pairs.parquet"),
        "clusters": digest_file(pool.root / "clusters.parquet"),
    }
    proof["digest"] = digest_of(proof)
    write_json(pool.root / "proof.json", proof)
    return proof


def read_proof(pool: Pool) -> dict:
    """The proof of the pool as it is now. Raises ValueError when there is none, when images came or went since, when it
    was edited, or when it found a leak."""
    again = f"run `medq pool verify {pool.root}`"
    try:
        proof = read_json(pool.root / "proof.json")
        stated = {key: value for key, value in proof.items() if key != "digest"}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{pool.root}: no proof that its splits are apart; {again}") from error
    files = all(
        (pool.root / f"{name}.parquet").exists() and proof.get(name) == digest_file(pool.root / f"{name}.parquet")
        for name in ("pairs", "clusters")
    )
    if proof.get("digest") != digest_of(stated) or not files:
        raise ValueError(f"{pool.root}: its split proof was changed by hand; {again}")
    if proof["pool"] != pool.digest():
        raise ValueError(f"{pool.root}: its images have changed since the proof; {again}")
    if not proof["passed"]:
        found = ", ".join(f"{count} by {check}" for check, count in proof["leaks"].items() if count)
        raise ValueError(f"{pool.root}: its splits leak ({found}); pairs.parquet names the images")
    return proof


def clustered(rows: pa.Table, images: pa.Table, thresholds: Thresholds) -> pa.Table:
    """(image_id, cluster) of images without a patient: look-alikes and those of one session are one cluster, named
    after its smallest image."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unknown = images.filter(pc.equal(images["patient"], ""))
    ids = unknown["image_id"].combine_chunks()
    groups = likeness_groups(unknown, thresholds.likeness_radius)
    owners = pc.index_in(pa.array([groups[name] for name in ids.to_pylist()], pa.string()), value_set=ids)
    sessions = rows.filter(pc.and_(pc.equal(rows["patient"], ""), pc.not_equal(rows["session"], "")))
    place = pc.index_in(sessions["image_id"], value_set=ids).to_numpy()
    first = sessions.group_by("session").aggregate([("image_id", "min")])
    of_session = pc.index_in(sessions["session"], value_set=first["session"].combine_chunks())
    leader = pc.index_in(first["image_id_min"].take(of_session), value_set=ids)
    left = np.concatenate([np.arange(len(ids)), place]).astype(np.int64)
    right = np.concatenate([owners.to_numpy(zero_copy_only=False), leader.to_numpy()]).astype(np.int64)
    edges = coo_array((np.ones(len(left), np.int8), (left, right)), (len(ids), len(ids)))
    _, label = connected_components(edges, directed=False)
    _, smallest = np.unique(label, return_index=True)  # ids are sorted
    return pa.table({"image_id": ids, "cluster": ids.take(pa.array(smallest[label], pa.int64()))})


def with_clusters(rows: pa.Table, clusters: pa.Table) -> pa.Table:
    """Rows whose patient is named by the source or, failing that, by the cluster."""
    place = pc.index_in(rows["image_id"], value_set=clusters["image_id"].combine_chunks())
    known = pc.not_equal(rows["patient"], "")
    column = pc.if_else(known, rows["patient"], clusters["cluster"].take(place))
    return rows.set_column(rows.schema.get_field_index("patient"), "patient", column)


def shared(rows: pa.Table, column: str) -> list[dict]:
    """One pair of images for each value of `column` and pair of splits that both have it."""
    rows = rows.filter(pc.not_equal(rows[column], ""))
    first = rows.group_by([column, "split"]).aggregate([("image_id", "min")])
    twice = first.group_by(column).aggregate([("split", "count")])
    twice = twice.filter(pc.greater(twice["split_count"], 1))
    found = first.filter(pc.is_in(first[column], twice[column].combine_chunks())).sort_by([(column, "ascending"), ("split", "ascending")])
    by_value: dict[str, list[tuple[str, str]]] = {}
    for value, split, image in zip(*(found[name].to_pylist() for name in (column, "split", "image_id_min")), strict=True):
        by_value.setdefault(value, []).append((split, image))
    return [
        pair(a, b, None)
        for places in by_value.values()
        for i, a in enumerate(places)
        for b in places[i + 1 :]
    ]  # fmt: skip


def pair(left: tuple[str, str], right: tuple[str, str], similarity: float | None) -> dict:
    """left, right: (split, image id)."""
    return {"left": left[1], "right": right[1], "left_split": left[0], "right_split": right[0], "similarity": similarity}


def near_duplicates(images: pa.Table, thresholds: Thresholds) -> list[dict]:
    """Pairs of near-duplicates in two splits."""
    compared = Images.of(images, thresholds.quality_tolerance)
    splits, ids = images["split"].to_numpy(), compared.ids
    held, every = np.flatnonzero(splits != "pool"), np.arange(len(ids))
    near = compared.near(thresholds.phash_radius)
    found = set()
    for left, right in chain(agreeing(compared, near, held, every), agreeing(compared, near, every, held)):
        apart = splits[left] != splits[right]
        found |= set(zip(left[apart].tolist(), right[apart].tolist(), strict=True))
    return [pair((splits[i], ids[i]), (splits[j], ids[j]), None) for i, j in sorted(found)]


def look_alikes(pool: Pool, images: pa.Table, threshold: float) -> tuple[list[dict], int]:
    """(pairs of dev or test images with images of another split that are as alike, where a patient is not proven;
    how many such pairs there are of two proven patients)."""
    names = images["image_id"].combine_chunks()
    ids, split = names.to_pylist(), images["split"].to_numpy()
    proven = pc.not_equal(images["patient"], "").to_numpy()
    held = np.flatnonzero(split != "pool")
    if len(held) == 0 or len(set(split.tolist())) == 1:
        return [], 0
    vectors = vectors_of(pool, [ids[i] for i in held])
    below = float(np.nextafter(np.float32(threshold), np.float32(-1)))
    leaks, alike = set(), 0
    with progress(len(ids), "compare embeddings") as bar:
        for block_ids, block in blocks(pool):
            bar.update(len(block_ids))
            hits = within(vectors, block_ids, block, below)
            other = pc.index_in(hits["image_id"], value_set=names).to_numpy()
            mine = held[hits["prototype_id"].to_numpy()]
            # a pair of dev and test comes twice: once is enough
            apart = (split[mine] != split[other]) & ((split[other] == "pool") | (mine < other))
            both = proven[mine] & proven[other]
            alike += int((apart & both).sum())
            chosen = apart & ~both
            values = hits["similarity"].to_numpy()[chosen].tolist()
            leaks |= set(zip(mine[chosen].tolist(), other[chosen].tolist(), values, strict=True))
    return [pair((split[i], ids[i]), (split[j], ids[j]), value) for i, j, value in sorted(leaks)], alike


def blocks(pool: Pool, shards: int = 64) -> Iterator[tuple[list[str], np.ndarray]]:
    """(ids, float32 (n, d)) of all images, those of 64 shards at a time: 16,384 at most, 34 MB with 512 floats."""
    paths = pool.shards()
    for start in range(0, len(paths), shards):
        table = pa.concat_tables([read_shard(path, ["image_id", "embedding"]) for path in paths[start : start + shards]])
        table = table.filter(pc.not_equal(table["image_id"], "")).combine_chunks()
        if table.num_rows:
            flat = table["embedding"].combine_chunks().flatten().to_numpy()
            yield table["image_id"].to_pylist(), flat.reshape(table.num_rows, -1)


def vectors_of(pool: Pool, ids: list[str]) -> np.ndarray:
    """float32 (n, d), in the order of `ids`."""
    place = {name: i for i, name in enumerate(ids)}
    out: np.ndarray | None = None
    for names, block in blocks(pool):
        out = np.zeros((len(ids), block.shape[1]), np.float32) if out is None else out
        rows = [(place[name], i) for i, name in enumerate(names) if name in place]
        if rows:
            to, of = map(list, zip(*rows, strict=True))
            out[to] = block[of]
    return out


def counts(rows: pa.Table, images: pa.Table, clusters: pa.Table, split: str) -> dict:
    """How much one split has."""
    own = rows.filter(pc.equal(rows["split"], split))
    known = own.filter(pc.not_equal(own["patient"], ""))
    unknown = own.filter(pc.equal(own["patient"], ""))
    return {
        "images": pc.count_distinct(own["image_id"]).as_py(),
        "patients": pc.count_distinct(known["patient"]).as_py(),
        "sessions": pc.count_distinct(pc.filter(own["session"], pc.not_equal(own["session"], ""))).as_py(),
        "clusters": pc.count_distinct(with_clusters(unknown, clusters)["patient"]).as_py(),
    }


def basis(images: pa.Table) -> dict[str, str]:
    """Source -> how we know whose its images are."""
    found = {}
    for source in sorted(pc.unique(images["source"]).to_pylist()):
        own = images.filter(pc.equal(images["source"], source))
        missing = pc.sum(pc.equal(own["patient"], "")).as_py()
        if not missing:
            found[source] = "proven by the source's patient keys"
        elif missing == own.num_rows:
            found[source] = "clustered, not proven"
        else:
            found[source] = f"clustered, not proven, for {missing} of {own.num_rows} images; the others by patient keys"
    return found


def describe(proof: dict, root: Path) -> str:
    """The proof for a person."""
    lines = [f"split proof of {root}"]
    for split, count in proof["splits"].items():
        if count["images"]:
            lines.append(
                f"  {split:<5} {count['images']:>9,} images  {count['patients']:>7,} patients  "
                f"{count['sessions']:>7,} sessions  {count['clusters']:>7,} clusters"
            )
    for source, how in proof["sources"].items():
        lines.append(f"  {source}: {how}")
    limits = proof["thresholds"]
    said = {
        "patient": "patients or clusters in two splits",
        "session": "sessions in two splits",
        "pixels": "images with equal pixels in two splits",
        "near_duplicate": f"near-duplicates in two splits (pHash within {limits['phash_radius']} bits, quality within "
        f"{limits['quality_tolerance']:.0%})",
        "embedding": f"look-alikes without a proven patient in two splits (cosine {limits['embedding']} or more)",
    }
    for check in CHECKS:
        lines.append(f"  {'ok  ' if not proof['leaks'][check] else 'LEAK'} {proof['leaks'][check]:>6,}  {said[check]}")
    verdict = "passed" if proof["passed"] else "FAILED: pairs.parquet names the images"
    lines.append(f"  {verdict}; digest {proof['digest']}, of pool {proof['pool']}, in {root / 'proof.json'}")
    return "\n".join(lines)
