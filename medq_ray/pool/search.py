"""Threshold search and nearest neighbours: which images look like a prototype (paper Sec. 2.3, eq. 2).

Fast arithmetic only nominates. Every pair whose float32 cosine lies less than its rounding error below the threshold
is computed again by `cosines`, which sees two vectors and nothing else, and only that number is compared, returned and
sorted by. So numpy and FAISS, one thread and many, memory, shards and Ray give one answer, bit for bit.

A run searches shards by numpy, which is the fastest exact way on CPUs for tens of prototypes; FAISS, its GPU and
`nearest` are for callers with thousands of prototypes or a GPU, and no command uses them yet.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from medq_ray.schema import HIT

BLOCK = 32_768
"""Images compared at once by one thread: 64 MB of 512 floats, 2.6 MB of similarities to 20 prototypes. A million take
0.20 s so, and 0.23 s by 4,096: the threads hand the interpreter over less often."""
GROUP = 32
"""Prototypes compared at once."""
SMALL = 1_000_000
"""Multiply-adds of one product. Up to here OpenBLAS has AVX-512 kernels that read both factors where they lie; beyond
it first copies them into panels, which costs more than a product with 20 columns (0.25 s against 0.16 s for a million
images of 512 floats on two Zen 4 cores)."""
PAIRS = 4_096
"""Pairs recomputed at once: 16 MB of 512 doubles."""
INDEX = 262_144
"""Images in one FAISS index: it copies 0.5 GB of 512 floats, on a GPU too."""
NEIGHBOURS = 64
"""Neighbours first asked for where a range is searched by nearest neighbours; four times as many while too few."""
GPU_NEIGHBOURS = 2_048
"""The most that FAISS finds on a GPU (faiss#1468)."""
FILES = 64
"""Shards searched by one Ray task: 30 MB of 256 x 512 floats, a tenth of a second."""
ORDER = [("image_id", "ascending"), ("prototype_id", "ascending")]
SHARD_HIT = HIT.append(pa.field("item", pa.string()))

Triples = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row of the image (int64), row of the prototype (int64) and cosine (float32) of some pairs."""


def margin(dim: int) -> float:
    """More than float32 gets wrong of the cosine of two unit vectors, whatever the order of its additions.

    The bound is dim x 2^-24 (Higham, Accuracy and Stability, Sec. 3.1). Doubled for lengths that are not quite one, and
    8 roundings more for thresholds that are float32 themselves: 6e-5 for 512 dimensions.
    """
    return (dim + 8) * 2.0**-23


def cosines(prototypes: np.ndarray, embeddings: np.ndarray, prototype: np.ndarray, image: np.ndarray) -> np.ndarray:
    """float32 (n,): the cosine of each pair of rows, a function of these two rows alone.

    Products of float32 are exact in float64; numpy adds a contiguous row of them pairwise, in an order that depends on
    its length only; the sum is rounded once.
    """
    found = np.empty(len(image), np.float32)
    for start in range(0, len(image), PAIRS):
        pairs = slice(start, start + PAIRS)
        found[pairs] = (prototypes[prototype[pairs]].astype(np.float64) * embeddings[image[pairs]]).sum(axis=1)
    return found


def multiply(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """rows (n, d) @ columns (d, p), in products of at most SMALL multiply-adds."""
    dim, count = columns.shape
    tile = max(1, SMALL // (dim * count))
    whole = len(rows) // tile * tile
    found = np.empty((len(rows), count), np.float32)
    np.matmul(rows[:whole].reshape(-1, tile, dim), columns, out=found[:whole].reshape(-1, tile, count))
    np.matmul(rows[whole:], columns, out=found[whole:])
    return found


def by_product(prototypes: np.ndarray, rows: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Image and prototype of all pairs whose float32 cosine exceeds `floor`, by numpy."""
    image, prototype = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(prototypes), GROUP):
        columns = np.ascontiguousarray(prototypes[start : start + GROUP].T)
        above = np.flatnonzero(multiply(rows, columns) > np.float32(floor))
        image.append(above // columns.shape[1])
        prototype.append(above % columns.shape[1] + start)
    return np.concatenate(image), np.concatenate(prototype)


def by_range(prototypes: np.ndarray, rows: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """The same by FAISS's range search, which it has on a CPU only (faiss#565)."""
    limits, _, image = flat_index(rows, gpu=False).range_search(prototypes, floor)
    return image, np.repeat(np.arange(len(prototypes)), np.diff(limits.astype(np.int64)))


def by_neighbours(prototypes: np.ndarray, rows: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """The same by FAISS's nearest neighbours on a GPU: more and more of them until the last one is below `floor`."""
    return grow(prototypes, rows, NEIGHBOURS, lambda similarity: np.full(len(similarity), floor), gpu=True)


ENGINES = {"numpy": (by_product, BLOCK), "faiss": (by_range, INDEX), "faiss-gpu": (by_neighbours, INDEX)}


def has_gpu() -> bool:
    """Whether FAISS was built for GPUs and sees one."""
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@cache
def gpu_resources():
    """FAISS's scratch memory on the GPU, 1.5 GB at most by its default, once for this process."""
    import faiss

    return faiss.StandardGpuResources()


def flat_index(rows: np.ndarray, *, gpu: bool):
    """A FAISS index of inner products over a copy of `rows`. Raises ValueError where FAISS has no GPU to put it on.

    FAISS multiplies in float32 on a GPU as well: it leaves TF32, whose errors exceed `margin`, switched off.
    """
    import faiss

    if gpu and not has_gpu():
        raise ValueError("this FAISS has no GPU; use the engine 'numpy' or 'faiss'")
    dim = rows.shape[1]
    index = faiss.GpuIndexFlatIP(gpu_resources(), dim) if gpu else faiss.IndexFlatIP(dim)
    index.add(rows)
    return index


def grow(
    prototypes: np.ndarray, rows: np.ndarray, k: int, floor_of: Callable[[np.ndarray], np.ndarray], *, gpu: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Image and prototype of all pairs whose float32 cosine reaches the prototype's floor.

    Asks FAISS for the k nearest, then for more for those prototypes whose last neighbour is not below their floor.
    Where a GPU cannot give more, the rows are halved: its 2,048 neighbours are all rows at last.

    floor_of: descending float32 cosines (m, k) -> floors (m,).
    """
    most = GPU_NEIGHBOURS if gpu else len(rows)
    index, left, k = flat_index(rows, gpu=gpu), np.arange(len(prototypes)), min(k, len(rows), most)
    found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    while len(left):
        similarity, image = index.search(prototypes[left], k)
        near = similarity >= floor_of(similarity)[:, None]
        done = ~near[:, -1] | (k == len(rows))
        which, place = np.nonzero(near & done[:, None])
        found.append((image[which, place], left[which]))
        left = left[~done]
        if len(left) and k == most:
            half = len(rows) // 2
            for start, part in ((0, rows[:half]), (half, rows[half:])):
                image, prototype = grow(prototypes[left], part, k, floor_of, gpu=gpu)
                found.append((image + start, left[prototype]))
            break
        k = min(4 * k, len(rows), most)
    image, prototype = zip(*found, strict=True)
    return np.concatenate(image), np.concatenate(prototype)


def above(prototypes: np.ndarray, embeddings: np.ndarray, tau: float, engine: str, start: int) -> Triples:
    """All pairs with cosine > tau among the prototypes and the engine's share of embeddings from row `start` on."""
    nominate, size = ENGINES[engine]
    rows = np.ascontiguousarray(embeddings[start : start + size], np.float32)
    image, prototype = nominate(prototypes, rows, float(np.float32(tau)) - margin(rows.shape[1]))
    similarity = cosines(prototypes, rows, prototype, image)
    hit = similarity > np.float32(tau)
    return image[hit] + start, prototype[hit], similarity[hit]


def join(found: list[Triples]) -> Triples:
    """Triples one after the other."""
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    image, prototype, similarity = zip(empty, *found, strict=True)
    return np.concatenate(image), np.concatenate(prototype), np.concatenate(similarity)


def as_prototypes(prototypes: np.ndarray, dim: int) -> np.ndarray:
    """Contiguous float32 (P, d)."""
    assert prototypes.ndim == 2 and prototypes.shape[1] == dim, "prototypes and images come from one encoder"
    return np.ascontiguousarray(prototypes, np.float32)


def within(
    prototypes: np.ndarray, ids: Sequence[str], embeddings: np.ndarray, tau: float, *, engine: str = "numpy"
) -> pa.Table:
    """All pairs with cosine > tau, strictly, as schema.HIT sorted by image_id, then prototype_id.

    prototypes: float32 (P, d) and embeddings: float32 (N, d), rows of unit length; ids: N image ids, unique.
    `prototype_id` is the row number in `prototypes`. Cosine and tau are compared as float32, as HIT holds them.

    engine: 'numpy', the fastest on a CPU and all of its cores; 'faiss'; or 'faiss-gpu', for thousands of prototypes.
    All give the same table. 'faiss-gpu' raises ValueError where FAISS has no GPU.
    """
    from joblib import cpu_count

    assert embeddings.ndim == 2 and len(ids) == len(embeddings), "one id for each embedding"
    prototypes = as_prototypes(prototypes, embeddings.shape[1])
    if len(prototypes) == 0:
        return HIT.empty_table()
    ours = engine == "numpy"  # FAISS has its own threads
    part = partial(above, prototypes, embeddings, tau, engine)
    with threadpool_limits(1 if ours else None, "blas"), ThreadPoolExecutor(cpu_count() if ours else 1) as threads:
        found = threads.map(part, range(0, len(embeddings), ENGINES[engine][1]))
        image, prototype, similarity = join(list(found))
    columns = [pa.array([ids[row] for row in image.tolist()], pa.string()), pa.array(prototype, pa.int32()), similarity]
    return pa.table(columns, schema=HIT).sort_by(ORDER)


def read_shard(path: Path, columns: list[str]) -> pa.Table:
    """Some columns of a shard. Raises ValueError naming one that cannot be read."""
    try:
        with pq.ParquetFile(path) as file:  # half the time of pq.read_table, which looks for a data set first
            return file.read(columns, use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        again = "delete it and run `medq ingest` again"
        raise ValueError(f"{path}: no readable Parquet table ({error}); {again}") from error


def shard_hits(path: Path, prototypes: np.ndarray, tau: float) -> pa.Table:
    """SHARD_HIT of one shard."""
    table = read_shard(path, ["image_id", "item", "problem", "embedding"])
    good = pc.equal(table["problem"], "")
    if not pc.all(good).as_py():
        table = table.filter(good)
    embeddings = table["embedding"].combine_chunks()
    embeddings = embeddings.flatten().to_numpy().reshape(len(embeddings), embeddings.type.list_size)
    prototypes = as_prototypes(prototypes, embeddings.shape[1])
    starts = range(0, len(embeddings), BLOCK)
    image, prototype, similarity = join([above(prototypes, embeddings, tau, "numpy", start) for start in starts])
    rows = table.select(["image_id", "item"]).take(pa.array(image))
    return pa.table([rows["image_id"], pa.array(prototype, pa.int32()), similarity, rows["item"]], schema=SHARD_HIT)


def batch_hits(batch: pa.Table, prototypes: np.ndarray, tau: float) -> pa.Table:
    """Ray Data task: (path) -> the hits of these shards, one shard in memory at a time."""
    with threadpool_limits(1, "blas"):  # one core a task
        return pa.concat_tables([shard_hits(Path(path), prototypes, tau) for path in batch["path"].to_pylist()])


def ray_hits(shards: Sequence[Path], prototypes: np.ndarray, tau: float) -> list[pa.Table]:
    """Hits of all shards by Ray Data, which starts Ray if it is not there; the paths go out, only hits come back."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    groups = [pa.table({"path": [str(p) for p in shards[i : i + FILES]]}) for i in range(0, len(shards), FILES)]
    hits = ray.data.from_arrow(groups).map_batches(
        batch_hits, fn_kwargs={"prototypes": prototypes, "tau": tau}, batch_format="pyarrow", batch_size=None
    )
    return list(hits.iter_batches(batch_format="pyarrow", batch_size=None))


def within_shards(prototypes: np.ndarray, shards: Sequence[Path], tau: float, *, distributed: bool = False) -> pa.Table:
    """`within` for images in Parquet files with columns image_id, item, problem and embedding (schema.looked_schema).

    Rows with a problem are passed over. Of an image id that occurs several times, the hit of the smallest item counts.
    Each thread, or each Ray task if `distributed`, holds one shard at a time; Ray tasks need to see the files under the
    same paths. Raises ValueError naming a shard that cannot be read.
    """
    from joblib import cpu_count

    shards = [Path(path).absolute() for path in shards]
    if len(shards) == 0 or len(prototypes) == 0:
        return HIT.empty_table()
    if distributed:
        found = ray_hits(shards, prototypes, tau)
    else:
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(cpu_count()) as threads:
            found = list(threads.map(partial(shard_hits, prototypes=prototypes, tau=tau), shards))
    hits = pa.concat_tables([SHARD_HIT.empty_table(), *found])
    hits = hits.sort_by([("item", "ascending"), ("similarity", "descending")])
    pairs = hits.group_by(["image_id", "prototype_id"], use_threads=False).aggregate([("similarity", "first")])
    return pairs.rename_columns(HIT.names).cast(HIT).sort_by(ORDER)


def nearest(prototypes: np.ndarray, embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each prototype: cosine, float32 (P, k), descending, and row, int64 (P, k); ties by row.

    By FAISS, 262,144 images at a time; on a GPU where FAISS has one, unless k exceeds the 2,048 that it finds there
    (faiss#1468): then on the CPU. Both give the same. Raises ValueError unless 1 <= k <= N.

    prototypes: float32 (P, d) and embeddings: float32 (N, d), rows of unit length.
    """
    if not 1 <= k <= len(embeddings):
        raise ValueError(f"k = {k}: expected 1 to {len(embeddings)}, the number of images")
    prototypes = as_prototypes(prototypes, embeddings.shape[1])
    slack, gpu = 2 * margin(embeddings.shape[1]), k <= GPU_NEIGHBOURS and has_gpu()
    best = join([])

    def floor_of(similarity: np.ndarray) -> np.ndarray:
        """Whoever is below it stays behind the k nearest, however float32 errs of either."""
        return similarity[:, min(k, similarity.shape[1]) - 1] - slack

    for start in range(0, len(embeddings), INDEX):
        rows = np.ascontiguousarray(embeddings[start : start + INDEX], np.float32)
        image, prototype = grow(prototypes, rows, k + 32, floor_of, gpu=gpu)
        here = (image + start, prototype, cosines(prototypes, rows, prototype, image))
        image, prototype, similarity = join([best, here])
        order = np.lexsort((image, -similarity, prototype))
        begins = np.searchsorted(prototype[order], np.arange(len(prototypes)))
        order = order[np.arange(len(order)) - begins[prototype[order]] < k]
        best = (image[order], prototype[order], similarity[order])
    return best[2].reshape(-1, k), best[0].reshape(-1, k)
