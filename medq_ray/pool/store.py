"""The pool on disk: what its sources say of each image, and what ingest saw in it.

    POOL/pool.json            encoder and size of images; they hold for all of the pool
    POOL/shards/*.parquet     schema.looked_schema: hashes, measures and embeddings of at most 256 images each
    POOL/quarantine.parquet   schema.DROP: files that gave no image, with reasons; repeated images
    POOL/proof.json           what `medq pool verify` found (pool.splits), clusters.parquet and pairs.parquet with it
    POOL/private/             salt and manifests (schema.LISTED): the only files with paths; keep them to yourself

A manifest says whose an image is, where it lies and to which split it belongs; a shard says what its pixels are. They
meet by `item`, which names a file as it was when it was read, and a key in it. So a split or a label can change
without decoding anything again, and a file that changes or goes takes its image along.
"""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import digest_folder, read_json, read_table, write_json, write_table
from medq_ray.depth import beside, write_depth
from medq_ray.images import Refused, encode_png
from medq_ray.model.encoder import encoder_folder
from medq_ray.pool.decode import Limits, Sandbox
from medq_ray.pool.search import read_shard, within_shards
from medq_ray.pool.sources import Row
from medq_ray.schema import LISTED, POOL_IMAGE, embedded_image_schema, looked_schema

FORMAT = 1
SALT = "MEDQ_SALT"
"""Environment variable with a salt of your own; pools with one salt give one patient one key."""
SHORTEST = 12
"""Letters of such a salt, at least. Our choice."""


GENEROUS = Limits(memory_mb=16_384, seconds=600.0)
"""For files that were read before, under limits that the user may have raised."""


def keyed(salt: str, *parts: str) -> str:
    """16 hex digits that stand for `parts`; without the salt nobody can tell what they were."""
    assert salt, "without a salt anybody could tell"
    data = "\0".join(parts).encode("utf-8", "surrogateescape")  # file names need not be UTF-8
    return hashlib.blake2b(data, key=salt.encode(), digest_size=8).hexdigest()


STAYS = "STAYS-HERE"
"""The mark of a pool whose images never leave this machine, whatever is acknowledged."""


@dataclass(frozen=True)
class Pool:
    """An opened pool."""

    root: Path
    settings: dict
    """What pool.json holds: format, encoder (`encoder_identity`), side."""

    @property
    def private(self) -> Path:
        return self.root / "private"

    @property
    def stays(self) -> bool:
        """Whether somebody has said that its images never leave this machine."""
        return (self.root / STAYS).exists()

    def mark(self, stays: bool) -> None:
        """Say so, or take it back."""
        if stays:
            (self.root / STAYS).write_text("The images of this pool never leave this machine.\n")
        else:
            (self.root / STAYS).unlink(missing_ok=True)

    @property
    def salt(self) -> str:
        return (self.private / "salt").read_text().strip()

    def shards(self) -> list[Path]:
        return sorted((self.root / "shards").glob("*.parquet"))

    def listed(self) -> pa.Table:
        """schema.LISTED of all manifests."""
        tables = [read_table(path) for path in sorted((self.private / "manifests").glob("*.parquet"))]
        return pa.concat_tables([LISTED.empty_table(), *tables])

    def looked(self) -> pa.Table:
        """schema.looked_schema without the embedding, of all shards; of an item that was tried again, the good row
        comes first."""
        schema = pa.schema([field for field in looked_schema(1) if field.name != "embedding"])
        tables = [read_shard(path, schema.names) for path in self.shards()]
        table = pa.concat_tables([schema.empty_table(), *tables])
        return table.sort_by([("problem", "ascending"), ("item", "ascending")])

    def rows(self, *, partial: bool = False) -> pa.Table:
        """LISTED joined with what was seen, one row for each listed item without a problem of its own.

        Raises ValueError when some were not seen yet, unless `partial`: then they are left out.
        """
        listed, looked = self.listed(), self.looked()
        listed = listed.filter(pc.equal(listed["problem"], "")).drop_columns(["problem"])
        place = pc.index_in(listed["item"], value_set=looked["item"].combine_chunks())
        if missing := place.null_count:
            if not partial:
                open_ones = listed.filter(pc.is_null(place))
                sources = ", ".join(sorted(pc.unique(open_ones["source"]).to_pylist()))
                raise ValueError(f"{self.root}: {missing:,} images are listed but not ingested; ingest {sources} again")
            listed, place = listed.filter(pc.is_valid(place)), place.drop_null()
        found = looked.drop_columns(["item"]).take(place)
        for name in found.column_names:
            listed = listed.append_column(found.schema.field(name), found[name])
        return listed

    def good(self, *, partial: bool = False) -> pa.Table:
        """`rows` with an image, sorted by image id; the first of several files with equal pixels is the keeper."""
        return with_image(self.rows(partial=partial))

    def images(self) -> pa.Table:
        """schema.POOL_IMAGE, one row for each image id, sorted by it.

        An image whose source does not say whose it is belongs to its cluster of look-alikes (`pool.splits`). Raises
        ValueError before the pool has been verified.
        """
        rows = one_of_each(self.good())
        proven = pc.not_equal(rows["patient"], "")
        clusters = self.clusters()
        place = pc.index_in(rows["image_id"], value_set=clusters["image_id"].combine_chunks())
        if pc.any(pc.and_(pc.is_null(place), pc.invert(proven))).as_py():
            raise ValueError(f"{self.root}: not verified since its last ingest; run `medq pool verify {self.root}`")
        clustered = pc.binary_join_element_wise("c", clusters["cluster"].take(place), "", null_handling="replace")
        columns = {name: rows[name] for name in POOL_IMAGE.names if name in rows.column_names}
        columns["patient"] = pc.if_else(proven, rows["patient"], clustered)
        columns["uri"] = pa.array([""] * rows.num_rows, pa.string())
        columns["proven"] = proven
        return pa.table([columns[name] for name in POOL_IMAGE.names], schema=POOL_IMAGE)

    def clusters(self) -> pa.Table:
        """(image_id, cluster) of images whose source does not say whose they are."""
        path = self.root / "clusters.parquet"
        empty = pa.table({"image_id": pa.array([], pa.string()), "cluster": pa.array([], pa.string())})
        return read_table(path) if path.exists() else empty

    def embedded(self, image_ids: Iterable[str]) -> pa.Table:
        """schema.embedded_image_schema of some images, sorted by id."""
        images = self.images()
        images = images.filter(pc.is_in(images["image_id"], pa.array(sorted(image_ids), pa.string())))
        wanted = images["image_id"].combine_chunks()
        table = self._embeddings(wanted)
        vectors = table["embedding"].take(pc.index_in(wanted, value_set=table["image_id"].combine_chunks()))
        images = images.append_column("embedding", vectors)
        return images.cast(embedded_image_schema(vectors.type.list_size))

    def _embeddings(self, wanted: pa.Array) -> pa.Table:
        """(image_id, item, embedding) of these ids, the smallest item of an image first. Reads all shards."""
        found = []
        for path in self.shards():
            part = read_shard(path, ["image_id", "item", "embedding"])
            found.append(part.filter(pc.is_in(part["image_id"], wanted)))
        if not found:
            raise ValueError(f"{self.root}: the pool is empty")
        return pa.concat_tables(found).sort_by([("image_id", "ascending"), ("item", "ascending")])

    def vectors(self, image_ids: Sequence[str]) -> np.ndarray:
        """float32 (n, d): the embeddings of some images, in the order of the ids."""
        asked = pa.array(image_ids, pa.string())
        table = self._embeddings(asked)
        place = pc.index_in(asked, value_set=table["image_id"].combine_chunks())
        column = table["embedding"].combine_chunks().take(place)
        return column.flatten().to_numpy().reshape(len(column), -1)

    def search(self, prototypes: np.ndarray, tau: float) -> pa.Table:
        """schema.HIT of all images with cosine > tau to a row of `prototypes`; by Ray Data on several nodes."""
        import ray

        several = ray.is_initialized() and sum(node["Alive"] for node in ray.nodes()) > 1
        return within_shards(prototypes, self.shards(), tau, distributed=several)

    def digest(self, rows: pa.Table | None = None) -> str:
        """16 hex digits over every image, measure, embedding, split, label and problem, and over who shares a patient
        or a session with whom: equal for equal content, whatever the salt, the paths and the cut into shards.

        rows: of `rows`, where they have been read already.
        """
        rows = self.rows() if rows is None else rows
        columns = [rows[name] for name in ("image_id", "digest", "problem", "source", "modality", "split", "labels")]
        seen = rows.filter(pc.equal(rows["problem"], ""))  # a file that gave no image has no id to name its owner by
        for name in ("patient", "session"):  # in place of the hash, the smallest image of its owner
            first = seen.group_by(name).aggregate([("image_id", "min")])
            owner = first["image_id_min"].take(pc.index_in(rows[name], value_set=first[name].combine_chunks()))
            columns.append(pc.if_else(pc.equal(rows[name], ""), "", pc.fill_null(owner, "nobody's image")))
        listed = self.listed()
        unlisted = listed.filter(pc.not_equal(listed["problem"], ""))
        lines = pc.binary_join_element_wise(*columns, "\t").to_pylist()
        lines += pc.binary_join_element_wise(unlisted["source"], unlisted["problem"], "\t").to_pylist()
        text = "\n".join([json.dumps(self.settings, sort_keys=True), *sorted(lines)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fetch(self, image_ids: Iterable[str], folder: Path) -> dict[str, str]:
        """Decode some images again and write them as PNG files into `folder`; image id -> path.

        Where the source has more than 8 bits of grey, they lie beside it (medq_ray.depth), for people's eyes only: for
        models there is the picture. From here on they have no source, no header and no name. Raises ValueError naming a
        file that cannot be read any more or no longer has the image that was ingested.
        """
        wanted = sorted(image_ids)
        rows = first_of_each(self.good())
        rows = rows.filter(pc.is_in(rows["image_id"], pa.array(wanted, pa.string())))
        rows = rows.sort_by([("uri", "ascending"), ("key", "ascending")])  # the images of one file one after the other
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        with Sandbox(GENEROUS) as sandbox:
            for row in rows.select(["image_id", "source", "uri", "key", "modality"]).to_pylist():
                path = folder / f"{row['image_id']}.png"
                try:
                    known = Row(row["uri"], row["key"], row["modality"])
                    image = sandbox.decode(row["source"], known, self.settings["side"])
                except Refused as error:
                    raise ValueError(f"{row['uri']}: cannot be read any more ({error})") from error
                if image.image_id != row["image_id"]:
                    raise ValueError(f"{row['uri']} has changed since it was ingested; run `medq ingest` again")
                path.write_bytes(encode_png(image.pixels))
                depth = None
                with suppress(Refused):  # what is good enough for models is good enough without
                    depth = sandbox.deepen(row["source"], known, self.settings["side"])
                if depth is not None and depth.numbers.shape == image.pixels.shape[:2]:
                    write_depth(beside(path), depth)
                paths[row["image_id"]] = str(path)
        return paths


def with_image(rows: pa.Table) -> pa.Table:
    """Those of `Pool.rows` that gave an image, in the order of `Pool.good`."""
    order = [(name, "ascending") for name in ("image_id", "split", "source", "uri", "key")]
    return rows.filter(pc.equal(rows["problem"], "")).sort_by(order)


def one_of_each(good: pa.Table) -> pa.Table:
    """One row of each image: the first, with the owner that any of its rows knows, and with what all of them allow.

    good: of `Pool.good`.
    """
    rows = first_of_each(good)
    wanted = [("patient", "max"), ("session", "max"), ("share", "min"), ("train", "min")]
    every = good.group_by("image_id").aggregate(wanted)  # in no order: beyond 32,768 rows not even in that of `good`
    own = pc.index_in(rows["image_id"], value_set=every["image_id"].combine_chunks())
    for name, function in wanted:
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(place), every[f"{name}_{function}"].take(own))
    return rows


def first_of_each(rows: pa.Table) -> pa.Table:
    """The first row of each image id; rows are sorted by it."""
    ids = rows["image_id"].combine_chunks()
    if len(ids) == 0:
        return rows
    fresh = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return rows.filter(pa.array(np.concatenate([[True], fresh])))


@contextmanager
def claimed(root: Path) -> Iterator[None]:
    """Hold a pool's folder for this process. Raises ValueError while another one writes there."""
    (root / "private").mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(root / "private" / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{root}: another ingest or verify is at work; wait for it") from error
        yield


def encoder_identity(name: str) -> str:
    """What a pool remembers of its encoder: a hub model's name, a local one's content, never a path."""
    folder = encoder_folder(name)
    return name if folder is None else f"{'embedded' if name == 'embedded' else 'local'} {digest_folder(folder)}"


def create_pool(root: Path, encoder: str, side: int, salt: str = "") -> Pool:
    """Open the pool at `root`, or begin one there with `salt`, that of MEDQ_SALT, or one drawn at random.

    Raises ValueError for a folder with something else in it, and for a pool with another encoder or image size.
    """
    root = Path(root).resolve()
    settings = {"format": FORMAT, "encoder": encoder_identity(encoder), "side": side}
    salt = salt or chosen_salt()
    if (root / "pool.json").exists():
        return begun(root, settings, salt)
    ours = ("private", "shards", "pool.json.tmp")
    if root.exists() and (not root.is_dir() or any(path.name not in ours for path in root.iterdir())):
        raise ValueError(f"{root}: not empty and no pool; choose another --pool")
    with claimed(root):
        if (root / "pool.json").exists():  # another ingest has begun it meanwhile
            return begun(root, settings, salt)
        private = root / "private"
        (private / "manifests").mkdir(exist_ok=True)
        (private / "salt").write_text(salt or secrets.token_hex(16))  # nothing has been salted with another one yet
        (root / "shards").mkdir(exist_ok=True)
        write_json(root / "pool.json", settings)
    return Pool(root, settings)


def begun(root: Path, settings: dict, salt: str) -> Pool:
    """The pool at `root`. Raises ValueError when it has other settings or another salt; '' fits any."""
    pool = open_pool(root)
    if pool.settings != settings:
        was = ", ".join(f"{name} {value}" for name, value in pool.settings.items() if settings[name] != value)
        raise ValueError(f"{root}: was begun with {was}; use the same settings or another --pool")
    if salt and salt != pool.salt:
        raise ValueError(f"{root}: was begun with another salt than {SALT} has now")
    return pool


def chosen_salt() -> str:
    """The salt of MEDQ_SALT, '' where it is not set. Raises ValueError for one that hides nobody."""
    salt = os.environ.get(SALT, "").strip()
    if SALT in os.environ and len(salt) < SHORTEST:
        why = f"{SALT} has fewer than {SHORTEST} letters: whoever guesses it can tell the patients"
        raise ValueError(f"{why}; unset it or use a longer one")
    if not salt.isascii() or len(salt) > hashlib.blake2b.MAX_KEY_SIZE:
        raise ValueError(f"{SALT}: expected at most {hashlib.blake2b.MAX_KEY_SIZE} ASCII letters")
    return salt


def open_pool(root: Path) -> Pool:
    """Raises ValueError when there is no pool at `root`, or one of another format."""
    root = Path(root).resolve()
    try:
        settings = read_json(root / "pool.json")
    except (OSError, ValueError) as error:
        raise ValueError(f"{root}: no pool (pool.json is missing or damaged); make one with `medq ingest`") from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise ValueError(f"{root}: a pool of another format; ingest it again")
    return Pool(root, settings)


def write_quarantine(pool: Pool, rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Write quarantine.parquet: ids are items; the keeper of a repeated image is its image id. rows: of `Pool.rows`."""
    listed = pool.listed()
    drops = [
        (item, *problem.partition(": ")[::2], "")
        for table in (listed, rows)
        for item, problem in zip(table["item"].to_pylist(), table["problem"].to_pylist(), strict=True)
        if problem
    ]
    good = with_image(rows)
    kept = set(first_of_each(good)["item"].to_pylist())
    for item, image in zip(good["item"].to_pylist(), good["image_id"].to_pylist(), strict=True):
        if item not in kept:
            drops.append((item, "duplicate", "the same pixels as another file's", image))
    records = [dict(zip(schema.names, drop, strict=True)) for drop in sorted(drops)]
    return write_table(pool.root / "quarantine.parquet", records, schema)


def quarantined(pool: Pool) -> list[tuple[str, str, str, str]]:
    """(path, key, step, reason) of what is in quarantine.parquet, by path. Raises ValueError before the first ingest
    has ended."""
    if not (pool.root / "quarantine.parquet").exists():
        raise ValueError(f"{pool.root}: no ingest has ended yet; finish it by giving its command again")
    listed = pool.listed()
    columns = (listed[name].to_pylist() for name in ("item", "uri", "key"))
    places = {item: (uri, key) for item, uri, key in zip(*columns, strict=True)}
    rows = read_table(pool.root / "quarantine.parquet").to_pylist()
    return sorted((*places[row["id"]], row["step"], row["reason"]) for row in rows if row["id"] in places)
