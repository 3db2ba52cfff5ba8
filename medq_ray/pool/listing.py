"""The manifest of one source: every image that a root has, whose it is, and which of them nobody has looked at yet."""

import json
import os
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import digest_of, read_table, write_table
from medq_ray.console import progress
from medq_ray.images import Refused
from medq_ray.pool.decode import Limits, Sandbox
from medq_ray.pool.sources import Options, Row, reader
from medq_ray.pool.sources._files import walk
from medq_ray.pool.store import Pool, keyed
from medq_ray.schema import LISTED, MODALITIES, SPLITS

BATCH = 2048
"""Files listed at once: the driver holds that many Python objects, whatever the size of the root."""
LONGEST_LABEL = 32
"""A label is a word of a closed vocabulary or a number; what is longer could be free text."""


def manifest_path(pool: Pool, source: str, root: Path) -> Path:
    return pool.private / "manifests" / f"{source}-{digest_of(str(root))[:8]}.parquet"


def list_source(
    pool: Pool, source: str, root: Path, split: str, options: Options, limits: Limits, retry: bool = False
) -> pa.Table:
    """Write the manifest of `root` (schema.LISTED) and return it.

    Files that are as they were at the last ingest, or before a kill in the middle of listing, are not opened again,
    unless they gave a problem and `retry` is set. Raises ValueError when the root as a whole is not what the source's
    reader expects, or when `split` is 'source' and the release has no splits.
    """
    root = Path(root).resolve()
    path = manifest_path(pool, source, root)
    parts = pool.private / "listing" / path.stem
    before = Known([path, *sorted(parts.glob("*.parquet"))], retry)
    lister = Lister(pool, source, split, options, limits)
    count = 0
    with progress(None, f"list {source}", unit="file") as bar, lister:
        for count, rows in enumerate(batches(pool, source, root), 1):
            write_table(parts / f"{count:06d}.parquet", lister.take(rows, before), LISTED)
            bar.update(len(rows))
    tables = [read_table(parts / f"{number:06d}.parquet") for number in range(1, count + 1)]
    table = pa.concat_tables([LISTED.empty_table(), *tables])
    if table.num_rows == 0:
        raise ValueError(f"{root}: no file that the reader {source!r} could read")
    table = write_table(path, table.sort_by([("uri", "ascending"), ("key", "ascending")]), LISTED)
    shutil.rmtree(parts)
    return table


def batches(pool: Pool, source: str, root: Path) -> Iterator[tuple[Row, ...]]:
    """What `find` finds, BATCH files at a time, without the pool's own files."""
    found = (row for row in reader(source).find(root) if not Path(row.path).is_relative_to(pool.root))
    while rows := tuple(islice(found, BATCH)):
        yield rows


class Known:
    """The rows of an earlier manifest and of the parts of an unfinished one, by file."""

    def __init__(self, paths: list[Path], retry: bool):
        tables = [read_table(path) for path in paths if path.exists()]
        table = pa.concat_tables([LISTED.empty_table(), *tables])
        if retry:  # a file with one bad image is opened again as a whole
            bad = table.filter(pc.not_equal(table["problem"], ""))["found"].combine_chunks()
            table = table.filter(pc.invert(pc.is_in(table["found"], bad)))
        order = [(name, "ascending") for name in ("found", "uri", "key", "item")]
        self.table = table.sort_by(order).combine_chunks()
        self.found = np.array(self.table["found"].to_pylist(), "S16")  # 16 bytes a row, not a Python object

    def rows(self, found: str) -> pa.Table | None:
        """The rows of one file, each once; None if it is not as it was."""
        first, last = (int(np.searchsorted(self.found, found.encode(), side)) for side in ("left", "right"))
        if first == last:
            return None
        rows = self.table.slice(first, last - first)
        items = rows["item"].to_pylist()
        return rows.take([i for i, item in enumerate(items) if i == 0 or item != items[i - 1]])


def stamp(row: Row) -> str:
    """Sizes and times of change of a file and of those beside it; what has the same stamp is not read again. '' if the
    file is not there."""
    marks = []
    for path in (row.path, *row.beside):
        try:
            found = os.stat(path)
        except OSError:
            marks.append("")
        else:
            marks.append("folder" if stat.S_ISDIR(found.st_mode) else f"{found.st_size} {found.st_mtime_ns}")
    return " ".join(marks) if marks[0] else ""


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

    def take(self, rows: tuple[Row, ...], before: Known) -> pa.Table:
        """schema.LISTED of some files, in their order."""
        found = [(row, stamp(row)) for row in rows]
        chosen = asdict(self.options)
        keys = [keyed(self.salt, json.dumps([self.source, asdict(row), mark, chosen])) for row, mark in found]
        parts = [before.rows(key) for key in keys]
        for i, (_, mark) in enumerate(found):
            if mark.startswith("folder"):  # which says nothing of the files in it: it is always looked into
                parts[i] = None
        fresh = [i for i, part in enumerate(parts) if part is None]
        records = self.threads.map(lambda i: self.records(*found[i], keys[i]), fresh)
        for i, made in zip(fresh, records, strict=True):
            parts[i] = pa.Table.from_pylist(made, schema=LISTED)
        table = pa.concat_tables(parts).combine_chunks()
        release = table["release"]
        if self.split != "source":  # the user's word of today, not of the last ingest
            release = pa.array([self.split] * table.num_rows, pa.string())
        elif pc.any(pc.and_(pc.invert(pc.is_in(release, pa.array(SPLITS))), pc.equal(table["problem"], ""))).as_py():
            raise ValueError(f"source {self.source!r} does not say which image belongs to which split; give --split")
        return table.set_column(table.schema.get_field_index("split"), "split", release)

    def records(self, row: Row, mark: str, key: str) -> list[dict]:
        """The manifest rows of one file."""
        if not mark:
            return [self.record(row, key, "missing: the source names it, but it is not there")]
        if not row.path.isascii() and row.path != row.path.encode("utf-8", "replace").decode():
            return [self.record(row, key, "name: expected a file name in UTF-8; rename the file or its folders")]
        try:
            rows = self.sandbox().expand(self.source, row, self.options) if self.opens else [self.chosen(row)]
        except Refused as error:
            return [self.record(row, key, str(error))]
        return [self.record(one, key, unfit(one)) for one in rows]

    def chosen(self, row: Row) -> Row:
        return replace(row, modality=self.options.modality) if self.options.modality else row

    def sandbox(self) -> Sandbox:
        if not hasattr(self.local, "sandbox"):
            self.local.sandbox = Sandbox(self.limits)
            self.sandboxes.append(self.local.sandbox)
        return self.local.sandbox

    def record(self, row: Row, found: str, problem: str) -> dict:
        """One row; from here on nobody knows the patient."""
        patient = keyed(self.salt, "patient", self.source, row.patient) if row.patient else ""
        session = keyed(self.salt, "session", self.source, row.session) if row.session else ""
        return {
            "item": keyed(self.salt, self.source, row.path, row.key, row.modality, stamp(row)),
            "found": found,
            "uri": row.path.encode("utf-8", "replace").decode(),
            "key": row.key,
            "source": self.source,
            "modality": row.modality if row.modality in MODALITIES else "",
            "release": row.split,
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


def passed_over(pool: Pool, root: Path, listed: pa.Table) -> Counter:
    """Suffix -> files below `root` that the reader did not take for images, the pool's own apart; a long suffix could
    be anything. Links to folders, which are not followed, count too."""
    taken = set(pc.unique(listed["uri"]).to_pylist())
    files = (path for path in walk(root) if not path.is_relative_to(pool.root))
    suffixes = (path.suffix.lower() for path in files if str(path).encode("utf-8", "replace").decode() not in taken)
    counts = Counter(suffix if len(suffix) in range(2, 7) and suffix[1:].isalnum() else "others" for suffix in suffixes)
    folders = (Path(folder) / name for folder, names, _ in os.walk(root) for name in names)
    links = sum(folder.is_symlink() for folder in folders)
    return counts + Counter({"links to folders": links})
