"""The split proof: nothing that is trained on may be what is measured (peers have none; our choice of checks).

Five checks over every pair of splits: patients, sessions, pixels, near-duplicates, embeddings. A patient or session
is proven where the source names it. Where it does not, images are joined into clusters of look-alikes
(`dedup.likeness_groups`) and sessions, a cluster counts as one patient, and the report says 'clustered, not proven':
two views of one patient that do not look alike stay apart, and nothing here can know.

Look-alikes by embedding are a leak unless both patients are proven by one source: two patients of one source with the
same degradation are as close as a CLIP-like encoder can tell, and they are two. Two sources may have one patient under
two names.

What none of this sees: a copy under another patient key of the same source that was mirrored, turned, cropped or given
another window.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import digest_file, digest_of, read_json, write_json, write_table
from medq_ray.console import progress
from medq_ray.pool.dedup import Images, agreeing, likeness_groups
from medq_ray.pool.search import read_shard, within
from medq_ray.pool.store import Pool, claimed, keyed, one_of_each, with_image
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
    likeness_radius: int = 6
    """Bits within which images without a patient can be one cluster."""
    embedding: float = 0.99
    """Cosine at or above which two images count as one patient's, if nobody says whose they are."""


def verify(pool: Pool, thresholds: Thresholds = Thresholds()) -> dict:
    """Write clusters.parquet, pairs.parquet and proof.json, and return the proof.

    Raises ValueError when the pool is not completely ingested or has no image, and for thresholds that are no numbers.
    """
    if any(value != value for value in asdict(thresholds).values()):
        raise ValueError("thresholds: expected numbers, found NaN")
    with claimed(pool.root):
        every = pool.rows()
        rows = with_image(every)
        if rows.num_rows == 0:
            raise ValueError(f"{pool.root}: no images to verify")
        images = one_of_each(rows)
        clusters = clustered(images, thresholds)
        write_table(pool.root / "clusters.parquet", clusters, clusters.schema)
        leaks = {
            "patient": shared(with_owners(rows, images, clusters), "patient"),
            "session": shared(rows, "session"),
            "pixels": shared(rows, "image_id"),
            "near_duplicate": near_duplicates(images, thresholds),
        }
        leaks["embedding"], excused = look_alikes(pool, images, thresholds.embedding)
        pairs = [{"check": check, **pair} for check in CHECKS for pair in leaks[check].pairs]
        write_table(pool.root / "pairs.parquet", pairs, PAIR)
        proof = {
            "pool": pool.digest(every),
            "passed": not any(leak.count for leak in leaks.values()),
            "thresholds": asdict(thresholds),
            "leaks": {check: leaks[check].count for check in CHECKS},
            "look_alikes_of_proven_patients": excused,
            "splits": {split: counts(rows, clusters, split) for split in SPLITS},
            "sources": basis(images),
            "pairs": digest_file(pool.root / "pairs.parquet"),
            "clusters": digest_file(pool.root / "clusters.parquet"),
        }
        proof["digest"] = keyed(pool.salt, digest_of(proof))
        write_json(pool.root / "proof.json", proof)
    return proof


def read_proof(pool: Pool, rows: pa.Table) -> dict:
    """The proof of the pool as it is now; rows: of `Pool.rows`. Raises ValueError when there is none, when images came
    or went since, when it was edited, when it found a leak, or when it looked less closely than the default thresholds
    do."""
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
    if proof.get("digest") != keyed(pool.salt, digest_of(stated)) or not files:
        raise ValueError(f"{pool.root}: its split proof was changed by hand; {again}")
    if proof["pool"] != pool.digest(rows):
        raise ValueError(f"{pool.root}: its images have changed since the proof; {again}")
    if not proof["passed"]:
        found = ", ".join(f"{count} by {check}" for check, count in proof["leaks"].items() if count)
        raise ValueError(f"{pool.root}: its splits leak ({found}); pairs.parquet names the images")
    used, least = proof["thresholds"], asdict(Thresholds())
    close = {name: used[name] <= least[name] if name == "embedding" else used[name] >= least[name] for name in least}
    loose = [name for name, enough in close.items() if not enough]  # nor is NaN
    if loose:
        raise ValueError(f"{pool.root}: its proof was made with a looser {loose[0]} than {least[loose[0]]}; {again}")
    return proof


def clustered(images: pa.Table, thresholds: Thresholds) -> pa.Table:
    """(image_id, cluster) of images without a patient: look-alikes and those of one session are one cluster, named
    after its smallest image."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unknown = images.filter(pc.equal(images["patient"], ""))
    ids, size = unknown["image_id"].combine_chunks(), unknown.num_rows
    groups = likeness_groups(unknown, thresholds.likeness_radius)
    owner = pc.index_in(pa.array([groups[name] for name in ids.to_pylist()], pa.string()), value_set=ids)
    session = unknown["session"].combine_chunks().dictionary_encode()
    first = pc.index_in(session.dictionary, value_set=session.cast(pa.string())).to_numpy(zero_copy_only=False)
    leader = first[session.indices.to_numpy()] if size else first
    leader = np.where(pc.equal(unknown["session"], "").to_numpy(), np.arange(size), leader)
    left, right = np.tile(np.arange(size), 2), np.concatenate([owner.to_numpy(zero_copy_only=False), leader])
    edges = coo_array((np.ones(2 * size, np.int8), (left, right.astype(np.int64))), (size, size))
    _, label = connected_components(edges, directed=False) if size else (0, np.empty(0, np.int64))
    _, smallest = np.unique(label, return_index=True)  # ids are sorted
    return pa.table({"image_id": ids, "cluster": ids.take(pa.array(smallest[label], pa.int64()))})


def with_owners(rows: pa.Table, images: pa.Table, clusters: pa.Table) -> pa.Table:
    """Rows whose patient is named by the source, else by another row of the same image, else by the cluster."""
    owner = images["patient"].take(pc.index_in(rows["image_id"], value_set=images["image_id"].combine_chunks()))
    place = pc.index_in(rows["image_id"], value_set=clusters["image_id"].combine_chunks())
    column = pc.if_else(pc.not_equal(owner, ""), owner, clusters["cluster"].take(place))
    column = pc.if_else(pc.not_equal(rows["patient"], ""), rows["patient"], column)
    return rows.set_column(rows.schema.get_field_index("patient"), "patient", column)


@dataclass
class Leak:
    """What one check found: how many pairs, and the first of them."""

    count: int = 0
    pairs: list[dict] = field(default_factory=list)

    def add(self, images: pa.Table, left: np.ndarray, right: np.ndarray, similarity: np.ndarray | None = None) -> None:
        """Pairs of rows of `images`."""
        self.count += len(left)
        room = slice(0, MOST_PAIRS - len(self.pairs))
        ids, splits = images["image_id"], images["split"]
        values = [None] * len(left) if similarity is None else similarity.tolist()
        for i, j, value in zip(left[room].tolist(), right[room].tolist(), values, strict=False):
            self.pairs.append({"left": ids[i].as_py(), "right": ids[j].as_py(), "left_split": splits[i].as_py(),
                               "right_split": splits[j].as_py(), "similarity": value})  # fmt: skip


def shared(rows: pa.Table, column: str) -> Leak:
    """One pair of images for each value of `column` and pair of splits that both have it."""
    rows = rows.filter(pc.not_equal(rows[column], ""))
    first = rows.group_by([column, "split"]).aggregate([("image_id", "min")])
    first = first.rename_columns(["value", "split", "image_id"])
    twice = first.group_by("value").aggregate([("split", "count")])
    twice = twice.filter(pc.greater(twice["split_count"], 1))
    order = [("value", "ascending"), ("split", "ascending")]
    found = first.filter(pc.is_in(first["value"], twice["value"].combine_chunks())).sort_by(order)
    values = np.array(found["value"].to_pylist(), object)
    leak = Leak()
    for step in range(1, len(SPLITS)):
        left = np.flatnonzero(values[step:] == values[:-step]) if len(values) > step else np.empty(0, np.intp)
        leak.add(found, left, left + step)
    return leak


def near_duplicates(images: pa.Table, thresholds: Thresholds) -> Leak:
    """Pairs of near-duplicates in two splits."""
    compared = Images.of(images, thresholds.quality_tolerance)
    splits = images["split"].to_numpy()
    held, pool = np.flatnonzero(splits != "pool"), np.flatnonzero(splits == "pool")
    near, leak = compared.near(thresholds.phash_radius), Leak()
    for rows, among in ((held, pool), (pool, held), (held, held)):
        for left, right in agreeing(compared, near, rows, among):
            apart = splits[left] != splits[right]
            leak.add(images, left[apart], right[apart])
    return leak


def look_alikes(pool: Pool, images: pa.Table, threshold: float) -> tuple[Leak, int]:
    """(pairs of dev or test images with images of another split that are as alike; how many such pairs are excused,
    since both patients are proven by one source)."""
    names, split = images["image_id"].combine_chunks(), images["split"].to_numpy()
    source = images["source"].to_numpy()
    proven = pc.not_equal(images["patient"], "").to_numpy()
    held = np.flatnonzero(split != "pool")
    leak, excused = Leak(), 0
    if len(held) == 0 or len(set(split.tolist())) == 1:
        return leak, excused
    vectors = vectors_of(pool, names.take(pa.array(held)).to_pylist())
    below, seen = float(np.nextafter(np.float32(threshold), np.float32(-1))), np.zeros(len(names), bool)
    with progress(len(names), "compare embeddings") as bar:
        for ids, block in blocks(pool):
            place = pc.fill_null(pc.index_in(pa.array(ids, pa.string()), value_set=names), -1).to_numpy()
            _, fresh = np.unique(place, return_index=True)  # an image comes once, and only if it is still listed
            fresh = fresh[(place[fresh] >= 0) & ~seen[place[fresh]]]
            seen[place[fresh]] = True
            bar.update(len(fresh))
            hits = within(vectors, [ids[i] for i in fresh], block[fresh], below)
            other = pc.index_in(hits["image_id"], value_set=names).to_numpy()
            mine = held[hits["prototype_id"].to_numpy()]
            # a pair of dev and test comes twice: once is enough
            apart = (split[mine] != split[other]) & ((split[other] == "pool") | (mine < other))
            two = proven[mine] & proven[other] & (source[mine] == source[other])
            excused += int((apart & two).sum())
            chosen = apart & ~two
            leak.add(images, mine[chosen], other[chosen], hits["similarity"].to_numpy()[chosen])
    return leak, excused


def blocks(pool: Pool, shards: int = 64) -> Iterator[tuple[list[str], np.ndarray]]:
    """(ids, float32 (n, d)) of all images, those of 64 shards at a time: 16,384 at most, 34 MB with 512 floats."""
    paths = pool.shards()
    for start in range(0, len(paths), shards):
        some = paths[start : start + shards]
        table = pa.concat_tables([read_shard(path, ["image_id", "embedding"]) for path in some])
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


def counts(rows: pa.Table, clusters: pa.Table, split: str) -> dict:
    """How much one split has."""
    own = rows.filter(pc.equal(rows["split"], split))
    cluster = clusters.filter(pc.is_in(clusters["image_id"], own["image_id"].combine_chunks()))["cluster"]
    named = {name: own[name].filter(pc.not_equal(own[name], "")) for name in ("patient", "session")}
    return {
        "images": pc.count_distinct(own["image_id"]).as_py(),
        "patients": pc.count_distinct(named["patient"]).as_py(),
        "sessions": pc.count_distinct(named["session"]).as_py(),
        "clusters": pc.count_distinct(cluster).as_py(),
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
        "embedding": f"look-alikes in two splits, unless two patients of one source (cosine {limits['embedding']})",
    }
    for check in CHECKS:
        lines.append(f"  {'ok  ' if not proof['leaks'][check] else 'LEAK'} {proof['leaks'][check]:>6,}  {said[check]}")
    if excused := proof["look_alikes_of_proven_patients"]:
        lines.append(f"  {'':<4} {excused:>6,}  look-alikes of two patients that one source tells apart: no leak")
    verdict = "passed" if proof["passed"] else "FAILED: pairs.parquet names the images"
    lines.append(f"  {verdict}; digest {proof['digest']}, of pool {proof['pool']}, in {root / 'proof.json'}")
    return "\n".join(lines)
