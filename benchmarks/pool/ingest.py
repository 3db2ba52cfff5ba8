"""Ingest throughput with one worker and with two, and memory at 10,000 and at 100,000 images.

    python -m benchmarks.pool.ingest ROOT POOL WORKERS     # one ingest; prints images a second

Pictures of 96 pixels, so that the machine's disk does not decide; the embedded encoder on CPUs.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.pool.rows import row

PIXELS = 96


def draw(root: Path, start: int, stop: int) -> None:
    """JPEG files number `start` to `stop`, all different."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(start, stop):
        blocks = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(np.kron(blocks, np.ones((PIXELS // 6, PIXELS // 6, 1), np.uint8))).save(root / f"{i:06d}.jpg")


def rate(pool: Path) -> float:
    """Images a second from the first shard on: start-up of Ray and of the actors is not counted."""
    import pyarrow.parquet as pq

    shards = sorted((pool / "shards").glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    images = sum(pq.read_metadata(path).num_rows for path in shards[1:])
    return images / (shards[-1].stat().st_mtime - shards[0].stat().st_mtime)


def proportional(process: psutil.Process) -> int:
    """Bytes of a process with what it shares divided by those who share it; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except OSError:
        return 0


def run(root: Path, pool: Path, workers: int) -> tuple[float, float, float]:
    """(images/s, seconds in all, peak GB of all its processes together) of one ingest in processes of its own."""
    command = [sys.executable, "-m", "benchmarks.pool.ingest", str(root), str(pool), str(workers)]
    start, peak, done = time.perf_counter(), 0, threading.Event()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                break
            peak = max(peak, sum(map(proportional, everyone)))
            done.wait(1.0)
    assert process.returncode == 0, "the ingest failed"
    return rate(pool), time.perf_counter() - start, peak / 2**30


def measure(quick: bool) -> list[dict]:
    """Two rows: two workers over one; memory of the large folder over the small one."""
    small, large = (2_000, 4_000) if quick else (10_000, 100_000)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ct"
        draw(root, 0, small)
        one, _, _ = run(root, Path(folder) / "one", 1)
        two, _, little = run(root, Path(folder) / "two", 2)
        draw(root, small, large)
        every, seconds, much = run(root, Path(folder) / "large", 2)
    return [
        row("ingest: two workers over one", two, one, two / one, "images/s",
            f"{small:,} JPEGs of {PIXELS} px, embedded encoder"),
        row("ingest: peak memory", much, little, much / little, "GB",
            f"peer: ours at {small:,}; ours: at {large:,} images, {every:.0f} images/s, {seconds:.0f} s in all"),
    ]  # fmt: skip


if __name__ == "__main__":
    from medq_ray.pool.ingest import Work, ingest

    print(json.dumps(ingest("images", Path(sys.argv[1]), Path(sys.argv[2]), work=Work(workers=int(sys.argv[3])))))
