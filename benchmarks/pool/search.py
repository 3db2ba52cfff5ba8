"""Threshold search against FAISS, against the memory's bandwidth and from files.

20 prototypes and a million unit vectors of 512 floats, one in a hundred closer than 0.75 to one. Every time is
the best of three; what is compared takes turns. Needs 5 GB of memory and 2 GB of disk.
"""

import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from joblib import cpu_count

from benchmarks.pool.rows import peak_gb, row
from medq_ray.pool.ingest import CHUNK, write_shard
from medq_ray.pool.search import BLOCK, within, within_shards
from medq_ray.schema import looked_schema

PROTOTYPES, DIM, TAU, REPEATS = 20, 512, 0.75, 3
SQUARE = 2_048
"""Side of the product that shows how fast float32 is multiplied here: 17 GFLOP, about as many as the search has."""
NEAR = 0.025
"""Share of images drawn near a prototype; at cosines of 0.45 to 0.95, so two fifths of them exceed TAU."""


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def vectors(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Prototypes and images, float32, unit length; drawn in blocks, so that they are held once."""
    rng = np.random.default_rng(0)
    prototypes = unit(rng.standard_normal((PROTOTYPES, DIM), dtype=np.float32))
    images = np.empty((count, DIM), np.float32)
    for start in range(0, count, 50_000):
        block = unit(rng.standard_normal((min(50_000, count - start), DIM), dtype=np.float32))
        near = rng.random(len(block)) < NEAR
        cosine = rng.uniform(0.45, 0.95, near.sum()).astype(np.float32)
        pull = cosine / np.sqrt(1 - cosine**2)  # a random vector is all but orthogonal to the prototype
        block[near] += pull[:, None] * prototypes[rng.integers(0, PROTOTYPES, near.sum())]
        images[start : start + 50_000] = unit(block)
    return prototypes, images


def best_of(**works: Callable[[], object]) -> dict[str, float]:
    """Seconds of each work, the best of REPEATS, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in seconds.items()}


def read(images: np.ndarray) -> None:
    """Read every byte once on all cores: the sum of 8-byte words costs less than fetching them."""
    words = images.view(np.int64)
    with ThreadPoolExecutor(cpu_count()) as threads:
        list(threads.map(lambda start: words[start : start + BLOCK].sum(), range(0, len(words), BLOCK)))


def search_files(prototypes: np.ndarray, folder: str) -> tuple[float, float, int]:
    """Seconds, peak memory of this process in GB and hits of a search over all shards of a folder.

    Memory is VmHWM: ru_maxrss would be that of the process that started this one, if that has had more.
    """
    shards = sorted(Path(folder).glob("*.parquet"))
    start = time.perf_counter()
    hits = within_shards(prototypes, shards, TAU)
    seconds = time.perf_counter() - start
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return seconds, int(peak.group(1)) * 1024 / 1e9, hits.num_rows


def in_memory(prototypes: np.ndarray, ids: list[str], images: np.ndarray) -> list[dict]:
    """Seconds against FAISS; bytes and multiply-adds a second against what this machine gives in the same minute."""
    import faiss

    index = faiss.IndexFlatIP(DIM)
    index.add(images)
    square = np.random.default_rng(1).random((SQUARE, SQUARE), np.float32)
    seconds = best_of(
        ours=lambda: within(prototypes, ids, images, TAU),
        peer=lambda: index.range_search(prototypes, TAU),
        read=lambda: read(images),
        square=lambda: square @ square,
    )
    del index
    hits = within(prototypes, ids, images, TAU)
    assert hits.equals(within(prototypes, ids, images, TAU, engine="faiss")), "both engines give one table"
    share = pc.count_distinct(hits["image_id"]).as_py() / len(images)
    size, work = images.nbytes / 1e9, 2e-9 * PROTOTYPES * images.size
    bandwidth, peak = size / seconds["read"], 2e-9 * SQUARE**3 / seconds["square"]
    speed, rate = size / seconds["ours"], work / seconds["ours"]
    bound = max(size / bandwidth, work / peak)
    what = f"{PROTOTYPES} prototypes x {len(images):,} x {DIM}, cosine > {TAU}: {share:.2%} of the images"
    limit = f"{work:.1f} GFLOP at the peer's rate or {size:.1f} GB at the bandwidth: {bound:.3f} s at least"
    ratio = seconds["peer"] / seconds["ours"]
    return [
        row("threshold search", seconds["ours"], seconds["peer"], ratio, "s", f"{what}; IndexFlatIP.range_search"),
        row("of the bandwidth", speed, bandwidth, speed / bandwidth, "GB/s", "peer: all cores read the embeddings"),
        row("of the arithmetic", rate, peak, rate / peak, "GFLOP/s", f"peer: a square product; {limit}"),
    ]


def from_files(prototypes: np.ndarray, ids: list[str], images: np.ndarray) -> list[dict]:
    """The same from shards as ingest writes them, in a process of its own that never holds the embeddings."""
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(images), CHUNK):
            names, rows = ids[start : start + CHUNK], images[start : start + CHUNK]
            kind = looked_schema(DIM).field("embedding").type
            embedding = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), type=kind)
            columns = {"item": names, "image_id": names, "problem": [""] * len(names), "embedding": embedding}
            write_shard(Path(folder) / f"{start:08d}.parquet", pa.table(columns))
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            found = [process.submit(search_files, prototypes, folder).result() for _ in range(REPEATS)]
    seconds, memory, hits = min(found)
    note = f"{hits:,} hits in {len(images):,} images, shards of {CHUNK}, files in the page cache"
    return [
        row("threshold search of shards", seconds, None, None, "s", note),
        row("its peak memory", memory, None, None, "GB", f"{images.nbytes / 1e9:.1f} GB of embeddings"),
    ]


def measure(quick: bool) -> list[dict]:
    """Rows of results; quick: 100,000 images in place of a million."""
    prototypes, images = vectors(100_000 if quick else 1_000_000)
    ids = [f"{i:016x}" for i in range(len(images))]
    return in_memory(prototypes, ids, images) + from_files(prototypes, ids, images)


if __name__ == "__main__":
    for result in measure(quick="--quick" in sys.argv):
        print(result)
