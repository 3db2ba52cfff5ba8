"""Thousands of damaged and hostile files: no ingest aborts, no decoder grows over its limit, each file has an outcome.

3,000 files; `pytest tests/pool/test_fuzz.py --fuzz 100000` for a night.
"""

import threading
from pathlib import Path

import psutil
import pytest
from mutations import seeds, write_all

from medq_ray.pool.decode import Limits
from medq_ray.pool.ingest import Work, ingest
from medq_ray.pool.sources import Options
from medq_ray.pool.store import open_pool, quarantined

SHARES = {"dicom": 0.4, "nifti": 0.15, "fastmri": 0.15, "images": 0.3}
LIMITS = Limits(memory_mb=1536, seconds=10)


class Watch(threading.Thread):
    """Looks at every decoder while it lives: the most address space that one has ever had, in MB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.seen, self.stop = 0, set(), threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.2):
            for process in psutil.process_iter(["pid", "cmdline"]):
                if "medq_ray.pool.jail" in (process.info["cmdline"] or ()):
                    self.look(process.info["pid"])

    def look(self, pid: int) -> None:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:  # gone
            return
        peaks = [int(line.split()[1]) // 1024 for line in lines if line.startswith("VmPeak")]
        self.seen.add(pid)
        self.most = max([self.most, *peaks])


@pytest.mark.parametrize("source", SHARES)
def test_the_seeds_are_good_files(source, tmp_path):
    """Else every mutation would be refused for a reason that was there before."""
    from medq_ray.pool.sources import list_rows, reader

    for i, (suffix, data) in enumerate(seeds(source)):
        (tmp_path / f"{i}{suffix}").write_bytes(data)
    rows = list(list_rows(source, tmp_path, Options(modality="ct")))
    assert len({row.path for row in rows}) >= 2
    assert all(reader(source).decode(row, 256).ndim == 3 for row in rows[::5])


@pytest.mark.e2e
@pytest.mark.parametrize("source", SHARES)
def test_every_hostile_file_is_decoded_or_quarantined(source, tmp_path, ray_local, request):
    count = round(request.config.getoption("--fuzz") * SHARES[source])
    root = tmp_path / "root"
    root.mkdir()
    bombs = write_all(root, source, count, seed=20)
    watch = Watch()
    watch.start()
    counts = ingest(source, root, tmp_path / "p", options=Options(modality="ct", slices=2), work=Work(workers=2, limits=LIMITS))
    watch.stop.set()
    watch.join()
    pool = open_pool(tmp_path / "p")
    refused = {path for path, _, step, _ in quarantined(pool) if step != "duplicate"}
    with_image = set(pool.good()["uri"].to_pylist())
    every = {str(path) for path in root.iterdir()}
    assert refused | with_image == every  # the reader's `find` takes all of them
    assert all(any(name.startswith(f"{i:05d}") for name in map(lambda path: Path(path).name, refused)) for i in range(bombs))
    assert with_image and refused, counts
    assert watch.seen and watch.most <= LIMITS.memory_mb
    for _, _, _, reason in quarantined(pool):
        assert len(reason) < 300 and str(tmp_path) not in reason
