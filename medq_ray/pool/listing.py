"""The manifest of one source: every image that a root has, whose it is, and which of them nobody has looked at yet."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import digest_of, read_table, write_table
from medq_ray.console import progress
from medq_ray.images import Refused
from medq_ray.pool.decode import Limits, Sandbox
from medq_ray.pool.sources import Options, Row, reader
from medq_ray.pool.store import Pool, keyed
from medq_ray.schema import LISTED, MODALITIES, SPLITS

BATCH = 2048
"""Files listed at once: the driver holds that many Python objects, whatever the size of the root."""
LONGEST_LABEL = 32
"""A label is a word of a closed vocabulary or a number; what is longer could be free text."""


def manifest_path(pool: Pool, source: str, root: Path) -> Path:
    return pool.private / "manifests" / f"{source}-{digest_of(str(root))[:8]}.parquet"


def list_source(pool: Pool, source: str, root: Path, split: str, options: Options, limits: Limits) -> pa.Table:
    """Write the manifest of `root` (schema.LISTED) and return it.

    Files that are as they were at the last ingest, or before a kill in the middle of listing, are not opened again. Raises ValueError when the root as a whole is
    not what the source's reader expects, or when `split` is 'source' and the release has no splits.
    """
    root = Path(root).resolve()
    path = manifest_path(pool, source, root)
    parts = pool.private / "listing" / path.stem
    before = known_files([path, *sorted(parts.glob("*.parquet"))])
    lister = Lister(pool, source, split, options, limits)
    tables = []
    with progress(None, f"list {source}", unit="file") as bar, lister:
        for rows in batched_rows(source, root):
            tables.append(lister.take(rows, before))
            write_table(parts / f"{len(tables):06d}.parquet", tables[-1], LISTED)
            bar.update(len(rows))
    table = pa.concat_tables([LISTED.empty_table(), *tables])
    if table.num_rows == 0:
        raise ValueError(f"{root}: no file that the reader {source!r} could read")
    table = write_table(path, table.sort_by([("uri", "ascending"), ("key", "ascending")]), LISTED)
    shutil.rmtree(parts)
    return table


def batched_rows(source: str, root: Path) -> Iterator[tuple[Row, ...]]:
    """What `find` finds, BATCH files at a time."""
    found = iter(reader(source).find(root))
    while rows := tuple(islice(found, BATCH)):
        yield rows


def known_files(paths: list[Path]) -> dict[str, pa.Table]:
    """`found` -> its rows, of an earlier manifest and of the parts of an unfinished one."""
    known: dict[str, pa.Table] = {}
    for path in paths:
        if path.exists():
            known |= by_file(read_table(path))
    return known


def by_file(table: pa.Table) -> dict[str, pa.Table]:
    """`found` -> its rows."""
    table = table.sort_by([("found", "ascending"), ("uri", "ascending"), ("key", "ascending")])
    runs = pc.run_end_encode(table["found"].combine_chunks())
    ends = runs.run_ends.to_pylist()
    starts = [0, *ends[:-1]]
    return {key: table.slice(a, b - a) for key, a, b in zip(runs.values.to_pylist(), starts, ends, strict=True)}


def stamp(path: str) -> str:
    """Size and time of change of a file; what has the same stamp is not read again. '' if it is not there."""
    try:
        found = Path(path).stat()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


class Lister:
    """Turns what `find` found into manifest rows; headers are opened in one sandbox a thread."""

    def __init__(self, pool: Pool, source: str, split: str, options: Options, limits: Limits):
        from joblib import cpu_count

        self.source, self.split, self.options, self.limits = source, split, options, limits
        self.salt = pool.salt
        self.opens, self.terms = hasattr(reader(source), "expand"), reader(source).TERMS
        self.threads = ThreadPoolExecutor(cpu_count())
        self.local = threading.local()
        self.sandboxes: list[Sandbox] = []

    def __enter__(self) -> "Lister":
        return self

    def __exit__(self, *error) -> None:
        self.threads.shutdown(cancel_futures=True)
        for sandbox in self.sandboxes:
            sandbox.close()

    def take(self, rows: tuple[Row, ...], before: dict[str, pa.Table]) -> pa.Table:
        """schema.LISTED of some files, in their order."""
        found = [(row, stamp(row.path)) for row in rows]
        keys = [keyed(self.salt, json.dumps([self.source, asdict(row), mark, asdict(self.options)])) for row, mark in found]
        parts: list[pa.Table | None] = [before.get(key) for key in keys]
        fresh = [i for i, part in enumerate(parts) if part is None]
        records = self.threads.map(lambda i: self.records(*found[i], keys[i]), fresh)
        for i, made in zip(fresh, records, strict=True):
            parts[i] = pa.Table.from_pylist(made, schema=LISTED)
        table = pa.concat_tables(parts)
        if self.split != "source":  # a split is the user's word of today, not of the last ingest
            split = pa.array([self.split] * table.num_rows, pa.string())
            table = table.set_column(table.schema.get_field_index("split"), "split", split)
        elif pc.any(pc.and_(pc.invert(pc.is_in(table["split"], pa.array(SPLITS))), pc.equal(table["problem"], ""))).as_py():
            raise ValueError(f"source {self.source!r} does not say which image belongs to which split; give --split")
        return table

    def records(self, row: Row, mark: str, key: str) -> list[dict]:
        """The manifest rows of one file."""
        if not mark:
            return [self.record(row, mark, key, "missing: the source names it, but it is not there")]
        try:
            rows = self.sandbox().expand(self.source, row, self.options) if self.opens else [self.chosen(row)]
        except Refused as error:
            return [self.record(row, mark, key, str(error))]
        return [self.record(one, mark, key, unfit(one)) for one in rows]

    def chosen(self, row: Row) -> Row:
        return replace(row, modality=self.options.modality) if self.options.modality else row

    def sandbox(self) -> Sandbox:
        if not hasattr(self.local, "sandbox"):
            self.local.sandbox = Sandbox(self.limits)
            self.sandboxes.append(self.local.sandbox)
        return self.local.sandbox

    def record(self, row: Row, mark: str, found: str, problem: str) -> dict:
        """One row; from here on nobody knows the patient."""
        patient = keyed(self.salt, "patient", self.source, row.patient) if row.patient else ""
        session = keyed(self.salt, "session", self.source, row.patient, row.session) if row.session else ""
        return {
            "item": keyed(self.salt, self.source, row.path, row.key, mark),
            "found": found,
            "uri": row.path,
            "key": row.key,
            "source": self.source,
            "modality": row.modality if row.modality in MODALITIES else "",
            "split": row.split,
            "patient": patient and f"p{patient}",
            "session": session and f"s{session}",
            "licence": self.terms.licence,
            "share": self.terms.share and not row.private,
            "train": self.terms.train,
            "labels": "{}" if problem else json.dumps(row.labels, sort_keys=True),
            "problem": problem,
        }


def unfit(row: Row) -> str:
    """Why a reader's row cannot be taken, '' if it can."""
    if row.problem:
        return row.problem
    if row.modality not in MODALITIES:
        return f"modality: expected one of {', '.join(MODALITIES)}; the source does not say, so give --modality"
    if any(len(str(word)) > LONGEST_LABEL for label in row.labels.items() for word in label):
        return f"label: expected words of at most {LONGEST_LABEL} letters, found free text"
    return ""


def passed_over(root: Path, listed: pa.Table) -> Counter:
    """Suffix -> files below `root` that the reader did not take for images."""
    from medq_ray.pool.sources._files import walk

    taken = set(pc.unique(listed["uri"]).to_pylist())
    return Counter(path.suffix.lower() or "(no suffix)" for path in walk(root) if str(path) not in taken)
