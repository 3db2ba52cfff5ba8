"""Ingest: everything in or in quarantine, nothing twice, the same pool however often it was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medq_ray.artifacts import read_table, write_table
from medq_ray.config import Encoder
from medq_ray.pool import ingest as module
from medq_ray.pool.hashing import phash, quality
from medq_ray.pool.ingest import Work, forget, ingest, unseen
from medq_ray.pool.listing import manifest_path
from medq_ray.pool.splits import verify
from medq_ray.pool.store import create_pool, open_pool, quarantined


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    """Forty pictures of CT, one of them twice, one cut off, one no picture."""
    folder = tmp_path / "ct"
    for seed in range(40):
        draw(folder / f"{seed:02d}.png", seed)
    draw(folder / "copy.bmp", 7)
    (folder / "cut.png").write_bytes((folder / "01.png").read_bytes()[:90])
    (folder / "none.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)


def test_an_open_chunk_is_the_same_whatever_was_done_before(tmp_path, monkeypatch):
    """A resumed ingest cuts what is left as an unbroken one would have cut it."""
    from fake_pool import fake_pool, listed

    import pyarrow as pa

    from medq_ray.schema import LISTED

    pool = fake_pool(tmp_path / "p", [{} for _ in range(8)], shards=1)  # items 0 to 7 are done
    rows = [listed(i, uri=f"/{i:02d}.png") for i in range(20)]
    todo = unseen(pool, pa.Table.from_pylist(rows[::-1], schema=LISTED), retry=False)
    assert todo["uri"].to_pylist() == [f"/{i:02d}.png" for i in range(8, 20)]


@pytest.mark.engine
def test_everything_is_in_or_in_quarantine(tmp_path, root, ray_local, small_chunks):
    counts = ingest("images", root, tmp_path / "p")
    assert (counts["listed"], counts["new"], counts["quarantined"], counts["images"]) == (43, 43, 3, 40)
    pool = open_pool(tmp_path / "p")
    verify(pool)
    images = pool.images()
    assert images.num_rows == counts["pool"] == 40 and images["uri"].to_pylist() == [""] * 40
    steps = {Path(path).name: (step, reason) for path, _, step, reason in quarantined(pool)}
    assert {name: step for name, (step, _) in steps.items()} == {"cut.png": "decode", "none.jpg": "decode", "copy.bmp": "duplicate"}
    assert all(str(tmp_path) not in reason for _, reason in steps.values())
    table = pool.embedded(images["image_id"].to_pylist()[:5])
    assert np.linalg.norm(np.array(table["embedding"].to_pylist()), axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    paths = pool.fetch(images["image_id"].to_pylist()[:5], tmp_path / "png")
    for row in table.to_pylist():
        with Image.open(paths[row["image_id"]]) as image:
            pixels = np.asarray(image)
            assert not image.info and row["phash"] == phash(pixels)
            assert (row["sharpness"], row["noise"]) == pytest.approx(quality(pixels), rel=1e-6)


@pytest.mark.engine
def test_a_second_ingest_does_only_what_is_new_and_forgets_what_is_gone(tmp_path, root, ray_local, small_chunks):
    first = ingest("images", root, tmp_path / "p")
    shards = {path.name: path.stat().st_mtime_ns for path in open_pool(tmp_path / "p").shards()}
    again = ingest("images", root, tmp_path / "p")
    assert again == first | {"new": 0}
    for seed in range(40, 45):
        draw(root / f"{seed}.png", seed)
    (root / "00.png").unlink()
    (root / "none.jpg").unlink()
    draw(root / "01.png", 99)
    grown = ingest("images", root, tmp_path / "p")
    assert (grown["new"], grown["images"], grown["quarantined"]) == (6, 44, 2)
    pool = open_pool(tmp_path / "p")
    rewritten = [path for path in pool.shards() if path.stat().st_mtime_ns != shards.get(path.name, path.stat().st_mtime_ns)]
    assert len(rewritten) <= 3  # those that three departed images were taken out of
    back = ingest("images", root, tmp_path / "p", split="dev")
    assert (back["new"], back["dev"], back["pool"]) == (0, 44, 0)


@pytest.mark.engine
def test_content_does_not_depend_on_the_way_to_it(tmp_path, root, ray_local, small_chunks):
    """A folder ingested in two parts is the folder ingested at once, and what is withdrawn leaves nothing."""
    late = [path for path in sorted(root.iterdir()) if path.stem in ("03", "17", "31", "none")]
    whole = ingest("images", root, tmp_path / "whole")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in late:
        path.rename(moved / path.name)
    ingest("images", root, tmp_path / "p")
    for path in late:
        (moved / path.name).rename(path)
    assert ingest("images", root, tmp_path / "p")["digest"] == whole["digest"]
    for i in range(3):
        draw(tmp_path / "other" / "ct" / f"{i}.png", 100 + i)
    assert ingest("images", tmp_path / "other", tmp_path / "p")["images"] == 43
    assert forget(open_pool(tmp_path / "p"), tmp_path / "other") == (3, 0)
    pool = open_pool(tmp_path / "p")
    assert pool.digest() == whole["digest"]
    assert sum(pq.read_metadata(path).num_rows for path in pool.shards()) == whole["listed"]
    with pytest.raises(ValueError, match="nothing was ingested from"):
        forget(pool, tmp_path / "other")


@pytest.mark.engine
def test_what_gave_no_image_is_tried_again_when_asked(tmp_path, root, ray_local):
    ingest("images", root, tmp_path / "p")
    good, stamp = (root / "01.png").read_bytes(), (root / "cut.png").stat()
    (root / "cut.png").write_bytes(good[: stamp.st_size])
    os.utime(root / "cut.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # for example, a disk that was away
    assert ingest("images", root, tmp_path / "p")["new"] == 0
    assert ingest("images", root, tmp_path / "p", work=Work(retry=True))["new"] == 2


@pytest.mark.engine
def test_no_image_at_all_is_an_error_with_the_first_reason(tmp_path, ray_local):
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of 1 files .* gave an image; the first: expected a picture"):
        ingest("images", tmp_path / "ct", tmp_path / "p")


def test_a_pool_is_bound_to_its_encoder_and_size(tmp_path):
    create_pool(tmp_path / "p", "embedded", 512)
    with pytest.raises(ValueError, match="was begun with encoder embedded [0-9a-f]{16}; use the same"):
        create_pool(tmp_path / "p", "hf-hub:a/b", 512)
    with pytest.raises(ValueError, match="was begun with side 512"):
        create_pool(tmp_path / "p", "embedded", 1024)


def test_a_salt_that_hides_nobody_is_refused(tmp_path, monkeypatch):
    for salt, complaint in (("   ", "fewer than 12 letters"), ("hospital", "fewer than 12 letters"), ("ü" * 20, "ASCII"), ("x" * 65, "at most 64")):
        monkeypatch.setenv("MEDQ_SALT", salt)
        with pytest.raises(ValueError, match=complaint):
            create_pool(tmp_path / "p", "embedded", 512)
        assert not (tmp_path / "p").exists()
    monkeypatch.setenv("MEDQ_SALT", " correct horse battery ")
    assert create_pool(tmp_path / "p", "embedded", 512).salt == "correct horse battery"
    create_pool(tmp_path / "p", "embedded", 512)


def test_a_pool_whose_beginning_was_killed_is_begun_again(tmp_path):
    (tmp_path / "p" / "private").mkdir(parents=True)
    (tmp_path / "p" / "pool.json.tmp").write_text("{")
    create_pool(tmp_path / "p", "embedded", 512)


def test_what_is_forgotten_is_gone_whenever_it_was_killed(tmp_path, monkeypatch):
    """The proof, the rest of a killed ingest, and the shards even if the kill came before them."""
    from fake_pool import fake_pool

    pool = fake_pool(tmp_path / "p", [{"uri": f"/data/{i}.png"} for i in range(3)])
    (pool.private / "manifests" / "s.parquet").rename(manifest_path(pool, "s", Path("/data")))
    (pool.private / "todo.parquet").touch()
    (pool.private / "listing" / manifest_path(pool, "s", Path("/data")).stem).mkdir(parents=True)
    verify(pool)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "prune", lambda pool: (_ for _ in ()).throw(KeyboardInterrupt))
        forget(pool, Path("/data"))
    assert sum(pq.read_metadata(path).num_rows for path in pool.shards()) == 3
    forget(pool, Path("/data"))
    left = {path.name for path in pool.root.rglob("*") if path.is_file()}
    assert left == {"pool.json", "salt", "lock", "quarantine.parquet"}


def test_what_another_reader_took_too_stays_and_is_said(tmp_path):
    from fake_pool import fake_pool

    pool = fake_pool(tmp_path / "p", [{"uri": "/data/0.png"}, {"uri": "/data/1.png"}])
    own = read_table(pool.private / "manifests" / "s.parquet")
    write_table(manifest_path(pool, "s", Path("/data/1.png")), own.slice(1), own.schema)
    (pool.private / "manifests" / "s.parquet").rename(manifest_path(pool, "s", Path("/data")))
    assert forget(pool, Path("/data")) == (1, 1)
    assert open_pool(pool.root).rows()["uri"].to_pylist() == ["/data/1.png"]


def test_a_folder_with_other_things_is_no_place_for_a_pool(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty and no pool"):
        create_pool(tmp_path / "p", "embedded", 512)


def test_private_files_are_private(tmp_path):
    pool = create_pool(tmp_path / "p", "embedded", 512)
    assert pool.private.stat().st_mode & 0o777 == 0o700 and len(pool.salt) == 32


def run_ingest(root: Path, pool: Path) -> subprocess.Popen:
    code = (
        "import sys; from medq_ray.pool import ingest as m; m.CHUNK = 16\n"
        "print(m.ingest('images', sys.argv[1], sys.argv[2], work=m.Work(workers=2))['digest'], flush=True)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(root), str(pool)], stdout=subprocess.PIPE, text=True)


def shards(pool: Path) -> list[Path]:
    return [path for path in (pool / "shards").glob("*.parquet")]


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


@pytest.mark.e2e
def test_killed_workers_and_drivers_change_nothing(tmp_path):
    """`kill -9` of an actor, of a decoder and, twice, of the driver: the content is that of an unbroken ingest."""
    root = tmp_path / "ct"
    for seed in range(640):
        draw(root / f"{seed:03d}.png", seed)
    with run_ingest(root, tmp_path / "whole") as unbroken:
        expected = unbroken.stdout.read().strip().splitlines()[-1]
    pool = tmp_path / "killed"
    for after in (1, 9):  # shards of 40
        with run_ingest(root, pool) as driver:
            wait_for(lambda: len(shards(pool)) >= after or driver.poll() is not None)  # noqa: B023
            driver.kill()
    with run_ingest(root, pool) as driver:
        wait_for(lambda: len(shards(pool)) >= 16)
        below = psutil.Process(driver.pid).children(recursive=True)
        commands = [(process.pid, " ".join(process.cmdline())) for process in below]
        actors, decoders = ([pid for pid, said in commands if word in said] for word in ("MapWorker", "medq_ray.pool.jail"))
        os.kill(actors[0], signal.SIGKILL)  # and its decoder with it
        os.kill(decoders[-1], signal.SIGKILL)
        out = driver.stdout.read().strip().splitlines()
    assert driver.returncode == 0 and out[-1] == expected
    assert len({pq.read_metadata(path).num_rows for path in shards(pool)}) == 1
    assert read_table(pool / "quarantine.parquet").num_rows == 0
    assert json.loads((pool / "pool.json").read_text())["encoder"].split()[0] == Encoder().name
