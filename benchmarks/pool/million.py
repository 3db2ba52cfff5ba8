"""A million images without a pixel: verify, near-duplicates and search over a pool on disk, and the memory they take.

    python -m benchmarks.pool          # the last row of its table

Rows are drawn as ingest would have written them: 256 a shard, 512 floats each; 10 % of them near-copies of others, a
fifth without a patient, 2,000 dev and 2,000 test images.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.pool.rows import peak_gb, row
from medq_ray.artifacts import write_table
from medq_ray.pool.ingest import CHUNK, write_shard
from medq_ray.pool.store import create_pool, open_pool
from medq_ray.schema import LISTED, looked_schema

DIM = 512
HELD = 2000
TAU = 0.75
NEAR = 0.001
"""Share of images at a cosine of 0.9 to a prototype; two random ones stay below 0.3."""


def drawn_prototypes() -> np.ndarray:
    """float32 (20, DIM), rows of unit length."""
    prototypes = np.random.default_rng(1).standard_normal((20, DIM)).astype(np.float32)
    return prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)


def hexes(numbers: np.ndarray) -> list[str]:
    return [f"{number:016x}" for number in numbers.tolist()]


def draw(root: Path, rows: int, seed: int = 0) -> None:
    """Write the pool."""
    pool = create_pool(root, "embedded", 512, salt="benchmark")
    rng = np.random.default_rng(seed)
    items, ids = rng.permutation(rows).astype(np.uint64), rng.permutation(rows).astype(np.uint64)
    split = np.full(rows, "pool", object)
    split[:HELD], split[HELD : 2 * HELD] = "dev", "test"
    person = np.array([f"p{i // 10:x}" for i in range(rows)], object)
    person[rng.random(rows) < 0.2] = ""
    columns = {
        "item": hexes(items), "found": hexes(items), "uri": [f"/{i}.png" for i in range(rows)], "key": [""] * rows,
        "source": ["s"] * rows, "modality": ["ct"] * rows, "release": [""] * rows, "split": split,
        "patient": person, "session": [""] * rows,
        "licence": ["CC0"] * rows, "share": [True] * rows, "train": [True] * rows, "labels": ["{}"] * rows,
        "problem": [""] * rows,
    }  # fmt: skip
    arrays = [pa.array(columns[field.name], field.type) for field in LISTED]
    write_table(pool.private / "manifests" / "s.parquet", pa.table(arrays, schema=LISTED), LISTED)
    phash = rng.integers(0, 2**63, rows, np.uint64)
    thumbs = rng.integers(0, 256, (rows, 256), np.uint8)
    copies = np.flatnonzero(rng.random(rows) < 0.1)
    copies = copies[copies > 2 * HELD]  # of an earlier pool image: no leak
    origin = rng.integers(2 * HELD, copies)
    phash[copies] = phash[origin] ^ (np.uint64(1) << rng.integers(0, 63, len(copies), np.uint64))
    thumbs[copies] = thumbs[origin]
    schema, prototypes = looked_schema(DIM), drawn_prototypes()
    for start in range(0, rows, CHUNK):
        stop = min(rows, start + CHUNK)
        vectors = rng.standard_normal((stop - start, DIM), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        near = np.arange(start, stop) % round(1 / NEAR) == 0
        vectors[near] = 0.9 * prototypes[rng.integers(0, 20, near.sum())] + 0.19**0.5 * vectors[near]
        vectors[near] /= np.linalg.norm(vectors[near], axis=1, keepdims=True)
        count = stop - start
        table = pa.table(
            [
                pa.array(columns["item"][start:stop]), pa.array(hexes(ids[start:stop])), pa.array([""] * count),
                pa.array(np.full(count, 512, np.int32)), pa.array(np.full(count, 512, np.int32)),
                pa.array(phash[start:stop]),
                pa.array(np.full(count, 5.0, np.float32)), pa.array(np.full(count, 1.0, np.float32)),
                pa.array([thumb.tobytes() for thumb in thumbs[start:stop]], schema.field("thumb").type),
                pa.array(hexes(ids[start:stop])),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=schema.field("embedding").type),
            ],
            schema=schema,
        )  # fmt: skip
        write_shard(root / "shards" / f"{start:010d}.parquet", table)


def work(root: Path) -> dict:
    """Seconds of each part, in this process, and its peak memory."""
    from medq_ray.pool.dedup import duplicate_groups
    from medq_ray.pool.search import within_shards
    from medq_ray.pool.splits import Thresholds, verify

    pool, seconds = open_pool(root), {}
    limits = Thresholds()

    def timed(name: str, function):
        start = time.perf_counter()
        result = function()
        seconds[name] = round(time.perf_counter() - start, 1)
        return result

    proof = timed("verify", lambda: verify(pool, limits))
    images = timed("read", pool.images)
    criterion = {"radius": limits.phash_radius, "tolerance": limits.quality_tolerance}
    groups = timed("dedup", lambda: duplicate_groups(images, **criterion))
    hits = timed("search", lambda: within_shards(drawn_prototypes(), pool.shards(), TAU))
    return {
        "rows": images.num_rows, "passed": proof["passed"], "owners": len(set(groups.values())), "hits": hits.num_rows,
        "seconds": seconds, "peak_gb": peak_gb(),
    }  # fmt: skip


def measure(quick: bool) -> list[dict]:
    """One row: the peak memory of a process of its own that does all of it."""
    rows = 50_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "p", rows)
        command = [sys.executable, "-m", "benchmarks.pool.million", str(Path(folder) / "p")]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    note = ", ".join(f"{name} {value} s" for name, value in found["seconds"].items())
    memory = found["peak_gb"]
    assert found["passed"], "the pool was drawn without a leak"
    assert found["hits"] == rows * NEAR, "each planted image is a hit, and no other"
    assert found["owners"] < rows * 0.93, "near-copies are found: nearly a tenth of the rows"
    what = f"{rows:,} images of {DIM} floats; {note}; peer: the 8 GB that it may take"
    return [row("verify, dedup, search: peak memory", memory, 8.0, memory / 8.0, "GB", what)]


if __name__ == "__main__":
    print(json.dumps(work(Path(sys.argv[1]))))
