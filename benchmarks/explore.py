"""Exploring: one tree cut many times against a fit for each number of clusters, and a selection from a million images.

    python -m benchmarks.explore [--only clusters memory selection] [--json FILE]

Peer is scikit-learn's AgglomerativeClustering (Ward's linkage), fitted anew for each N_c from 2 to 64, and its
silhouette_score; both choose by the silhouette, and their labels are compared for every N_c. About nine minutes on two
cores, most of them the peer's.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

FAILURES, LARGE, DIM, MOST, GROUPS = 5_000, 20_000, 512, 64, 30
POOL, BUDGET, PROTOTYPES, HITS = 1_000_000, 2_000, 20, 150_000
HELD_OUT, TAKEN, DEV = 10_000, 8_000, 1_305
"""Images of dev and test, and of four earlier selections, near-duplicates of which are not selected; dev questions."""


def points(count: int, seed: int = 0) -> np.ndarray:
    """float64 (count, DIM): failures around GROUPS directions, in groups of unequal size."""
    rng = np.random.default_rng(seed)
    group = rng.choice(GROUPS, count, p=rng.dirichlet(np.full(GROUPS, 2.0)))
    return rng.standard_normal((count, DIM)) + 2 * rng.standard_normal((GROUPS, DIM))[group]


def clusters() -> list[dict]:
    """One row: all cuts and their silhouettes."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    from medq_ray.evaluate.clusters import cluster, distances, linkage, silhouettes

    data = points(FAILURES)
    started = time.perf_counter()
    chosen = cluster(data, MOST)
    own = time.perf_counter() - started
    condensed = distances(data)
    cuts = {found.count: found for found in silhouettes(condensed, linkage(condensed), MOST)}
    peer, best, same = 0.0, (-1.0, 0), 0
    for count in range(2, MOST + 1):
        started = time.perf_counter()
        fit = AgglomerativeClustering(count, linkage="ward").fit(data)
        score = silhouette_score(data, fit.labels_)
        peer += time.perf_counter() - started
        best = max(best, (score, -count))
        same += adjusted_rand_score(fit.labels_, cuts[count].labels) == 1 and abs(score - cuts[count].silhouette) < 1e-9
    note = f"same labels and silhouettes for {same} of {MOST - 1} N_c; chosen {chosen.count} and {-best[1]}"
    assert same == MOST - 1 and chosen.count == -best[1], note
    return [row(f"N_c of 2 to {MOST}, {FAILURES:,} x {DIM}", own, peer, "s", note)]


CHILD = """
import json, re, sys, time
from pathlib import Path
import benchmarks.explore as bench
started = time.perf_counter()
found = getattr(bench, sys.argv[1])()
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"seconds": time.perf_counter() - started, "peak": int(peak[1]) / 2**20, "note": found}))
"""


def apart(name: str) -> dict:
    """Run a function of this module in a process of its own: {seconds, peak in GB, note}."""
    done = subprocess.run([sys.executable, "-c", CHILD, name], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def large() -> str:
    from medq_ray.evaluate.clusters import cluster

    found = cluster(points(LARGE), MOST)
    return f"{found.count} clusters, silhouette {found.silhouette:.3f}"


def memory() -> list[dict]:
    """One row: peak memory of clustering LARGE failures, against the goal of 8 GB."""
    found = apart("large")
    note = f"peer: the goal; exact, one tree; {found['seconds']:.0f} s; {found['note']}"
    return [row(f"memory at {LARGE:,} x {DIM}", found["peak"], 8.0, "GB", note)]


def film(rows: np.ndarray) -> np.ndarray:
    """Rows of which the first half comes in runs of ten alike, as frames of a film do."""
    half = len(rows) // 2
    rows[:half] = rows[np.arange(half) // 10 * 10]
    return rows


def million() -> str:
    """A selection of BUDGET from POOL images, of which each prototype retrieves HITS."""
    from medq_ray.config import Config, override
    from medq_ray.explore.chosen import Chosen
    from medq_ray.explore.sampling import Evidence, Hits
    from medq_ray.explore.strategies import Means, select
    from medq_ray.schema import DEGRADATIONS, FAILURE, HIT, MODALITIES, POOL_IMAGE, PROTOTYPE, QUESTION

    rng = np.random.default_rng(0)
    names = pa.array([f"{i:016x}" for i in range(POOL)])
    modality = rng.integers(len(MODALITIES), size=POOL)
    thumbs = film(rng.integers(0, 256, (POOL, 256), dtype=np.uint8))
    columns = {
        "image_id": names, "split": pa.array(np.where(rng.random(POOL) < HELD_OUT / POOL, "dev", "pool")), "uri": pa.array([""] * POOL),
        "modality": pa.array(np.array(MODALITIES)[modality]), "patient": pa.array([f"p{i // 20}" for i in range(POOL)]),
        "session": pa.array([f"s{i // 5}" for i in range(POOL)]),
        "phash": pa.array(film(rng.integers(0, 2**63, POOL, dtype=np.uint64))),
        "thumb": pa.FixedSizeBinaryArray.from_buffers(pa.binary(256), POOL, [None, pa.py_buffer(thumbs.tobytes())]),
        "sharpness": pa.array(np.ones(POOL, np.float32)), "noise": pa.array(np.ones(POOL, np.float32)),
    }  # fmt: skip
    images = pa.table([columns.get(f.name, pa.nulls(POOL, f.type)) for f in POOL_IMAGE], schema=POOL_IMAGE)
    cells = [f"cell:{m}/{d}" for m in MODALITIES for d in DEGRADATIONS[m]]
    mixtures = [[(cell, 0.25) for cell in rng.choice(cells[5 * (i % 5) : 5 * (i % 5) + 5], 4, replace=False)]
                for i in range(PROTOTYPES)]  # fmt: skip
    prototypes = pa.Table.from_pylist(
        [{"prototype_id": i, "size": 10, "members": [], "medoid": "", "medoid_uri": "", "silhouette": 0.5,
          "cohesion": 0.9, "capabilities": mixture, "visual": []} for i, mixture in enumerate(mixtures)],
        schema=PROTOTYPE,
    )  # fmt: skip
    rows = np.concatenate([np.sort(rng.choice(POOL, HITS, replace=False)) for _ in range(PROTOTYPES)])
    hits = pa.table([names.take(pa.array(rows)), pa.array(np.repeat(np.arange(PROTOTYPES, dtype=np.int32), HITS)),
                     pa.array(rng.uniform(0.75, 1, len(rows)).astype(np.float32))], schema=HIT)  # fmt: skip
    config = override(Config(), [f"explore.budget={BUDGET}"])
    rates = {cell: {"e": rng.random()} for cell in cells}
    asked = [{"question_id": f"d{i}", "image_id": f"d{i}", "modality": cells[i % len(cells)][5:].partition("/")[0],
              "capabilities": [cells[i % len(cells)]]} for i in range(DEV)]  # fmt: skip
    failed = pa.Table.from_pylist(asked[::3], schema=FAILURE)
    vectors = rng.standard_normal((POOL // 8, DIM), np.float32)

    def embedded(ids: list[str]) -> np.ndarray:
        return vectors[: len(ids)]

    taken = names.take(pa.array(rng.choice(POOL, TAKEN, replace=False))).to_pylist()
    started = time.perf_counter()
    chosen = Chosen(images, names, taken, radius=4, tolerance=0.1)
    evidence = Evidence.of(pa.Table.from_pylist(asked, schema=QUESTION), failed)
    means = Means(config, Hits.of(hits, prototypes, chosen.images), rates, evidence, rng, embedded, dict, None, taken)
    missing, _ = select(chosen, means)
    assert missing == 0 and chosen.table().num_rows == BUDGET
    return f"{time.perf_counter() - started:.1f} s for the selection itself"


def selection() -> list[dict]:
    """One row: memory and time of a selection from a million images, against 8 GB."""
    found = apart("million")
    note = f"peer: 8 GB; {PROTOTYPES * HITS:,} hits, budget {BUDGET:,}; {found['note']}"
    return [row(f"selection from {POOL:,} images", found["peak"], 8.0, "GB", note)]


def row(name: str, own: float, peer: float, unit: str, note: str) -> dict:
    return {"name": name, "ours": own, "peer": peer, "ratio": peer / own, "unit": unit, "note": note}


PARTS = {"clusters": clusters, "memory": memory, "selection": selection}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write the rows there as {name: {ours, peer, ratio, unit}}")
    chosen = parser.parse_args()
    rows = []
    for name in chosen.only:
        for found in PARTS[name]():
            rows.append(found)
            numbers = f"{found['ours']:>9.2f}{found['peer']:>9.1f}{found['ratio']:>8.1f}"
            print(f"{found['name']:<34}{numbers}  {found['unit']:<4}{found['note']}", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps({found.pop("name"): found for found in rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
