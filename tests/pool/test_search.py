"""Threshold search is exact, strict and the same from every path; so are nearest neighbours."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medq_ray.pool import search
from medq_ray.schema import HIT


def units(n: int, d: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ids(n: int) -> list[str]:
    return [f"{(i * 7919) % 65521:016x}" for i in range(n)]


def planted(tau: float, d: int = 512, n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Two prototypes and n unit vectors at float32 steps around cosine tau to the first, most within 1e-7 of it."""
    axis, other = np.linalg.qr(np.random.default_rng(5).standard_normal((d, 2)))[0].T
    cosine = tau + np.linspace(-1.5e-7, 1.5e-7, n)
    rows = cosine[:, None] * axis + np.sqrt(1 - cosine**2)[:, None] * other
    return np.array([axis, other], np.float32), rows.astype(np.float32)


def exact(prototype: np.ndarray, row: np.ndarray) -> float:
    """The cosine of exact products and an exact sum, rounded to float32."""
    return np.float32(math.fsum(prototype.astype(float) * row.astype(float)))


@pytest.fixture
def paths(monkeypatch):
    """Every engine on this machine: the GPU's code, with its 2,048 neighbours cut to 16, over an index on the CPU."""
    flat = search.flat_index
    monkeypatch.setattr(search, "flat_index", lambda rows, gpu: flat(rows, gpu=False))
    monkeypatch.setattr(search, "GPU_NEIGHBOURS", 16)
    monkeypatch.setattr(search, "NEIGHBOURS", 4)
    engines = {name: (nominate, 64 if name != "numpy" else size) for name, (nominate, size) in search.ENGINES.items()}
    monkeypatch.setattr(search, "ENGINES", engines)
    return list(engines)


def same_from(engines: list[str], prototypes: np.ndarray, rows: np.ndarray, tau: float) -> pa.Table:
    first, *others = (search.within(prototypes, ids(len(rows)), rows, tau, engine=engine) for engine in engines)
    assert all(first.equals(other) for other in others)
    return first


@pytest.mark.parametrize("block", [7, 64, 65_536])
def test_finds_exactly_the_pairs_above_tau(monkeypatch, block):
    monkeypatch.setitem(search.ENGINES, "numpy", (search.by_product, block))
    anchors, images, names = units(5, 16, 0), units(300, 16, 1), ids(300)
    hits = search.within(anchors, names, images, 0.3)
    assert hits.schema == HIT
    expected = {
        (names[i], j) for i in range(300) for j in range(5) if float(images[i].astype(float) @ anchors[j]) > 0.3
    }
    found = list(zip(hits["image_id"].to_pylist(), hits["prototype_id"].to_pylist(), strict=True))
    assert set(found) == expected and len(found) == len(expected)
    assert found == sorted(found)


def test_the_threshold_itself_is_not_a_hit():
    axes = np.eye(2, dtype=np.float32)
    assert search.within(axes[:1], ["a", "b"], axes, 0.0)["image_id"].to_pylist() == ["a"]
    assert search.within(axes[:1], ["a", "b"], axes, 1.0).num_rows == 0


def test_permuting_rows_changes_nothing():
    anchors, images, names = units(4, 32, 2), units(500, 32, 3), ids(500)
    order = np.random.default_rng(0).permutation(500)
    straight = search.within(anchors, names, images, 0.1)
    assert straight.equals(search.within(anchors, [names[i] for i in order], images[order], 0.1))


def test_no_prototypes_and_no_images(paths):
    for engine in paths:
        assert search.within(np.empty((0, 8), np.float32), ids(3), units(3, 8, 0), -1, engine=engine).num_rows == 0
        assert search.within(units(2, 8, 0), [], np.empty((0, 8), np.float32), -1, engine=engine).num_rows == 0


@pytest.mark.parametrize("tau", [0.75, 0.3, -0.4])
def test_every_engine_gives_one_table_around_the_threshold(paths, tau):
    """Some planted cosines round to tau itself, some to its float32 neighbours: the exact cosine decides."""
    prototypes, rows = planted(tau)
    cosine = [exact(prototypes[0], row) for row in rows]
    assert np.float32(tau) in cosine and min(cosine) < np.float32(tau) < max(cosine)
    hits = same_from(paths, prototypes, rows, tau)
    first = hits.filter(pa.array(np.array(hits["prototype_id"]) == 0))
    expected = {name: value for name, value in zip(ids(len(rows)), cosine, strict=True) if value > np.float32(tau)}
    assert dict(zip(first["image_id"].to_pylist(), first["similarity"].to_pylist(), strict=True)) == expected


@pytest.mark.parametrize("tau", [-1.0, 0.0, 0.5])
def test_every_engine_gives_one_table_for_many_prototypes_and_hits(paths, tau):
    """Groups of prototypes, whole and partial tiles, halved shards, and all pairs as candidates."""
    rows = np.concatenate([units(150, 24, 9), np.repeat(units(1, 24, 10), 90, axis=0)])
    same_from(paths, units(70, 24, 8), rows, tau)


def test_candidates_reach_below_the_threshold_by_what_float32_gets_wrong():
    """The fast product of unit vectors errs by less than `margin`, so no hit is missed."""
    for dim in (1, 2, 16, 512, 2048):
        prototypes, rows = units(40, dim, 0), units(500, dim, 1)
        fast = search.multiply(rows, np.ascontiguousarray(prototypes.T))
        assert np.abs(fast - rows.astype(float) @ prototypes.T.astype(float)).max() < search.margin(dim) / 2


def test_a_cosine_does_not_depend_on_its_neighbours():
    prototypes, rows = units(3, 300, 0), units(50, 300, 1)
    prototype, image = np.divmod(np.arange(150), 50)
    together = search.cosines(prototypes, rows, prototype, image)
    alone = [search.cosines(prototypes[j : j + 1], rows[i : i + 1], np.zeros(1, int), np.zeros(1, int))[0]
             for j, i in zip(prototype, image, strict=True)]  # fmt: skip
    assert together.tolist() == alone


def test_a_machine_without_a_gpu_says_so():
    if search.has_gpu():
        pytest.skip("FAISS sees a GPU here")
    with pytest.raises(ValueError, match="no GPU"):
        search.within(units(1, 8, 0), ids(5), units(5, 8, 1), 0.5, engine="faiss-gpu")


def write_shards(folder: Path, names: list[str], rows: np.ndarray, size: int, problem: list[str] = ()) -> list[Path]:
    folder.mkdir()
    table = pa.table(
        {
            "item": [f"item{i:05d}" for i in range(len(names))],
            "image_id": names,
            "problem": problem or [""] * len(names),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]),
        }
    )
    for start in range(0, len(names), size):
        pq.write_table(table.slice(start, size), folder / f"{start:05d}.parquet")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("size", [1, 37, 600])
def test_shards_give_the_table_of_memory(tmp_path, size):
    prototypes, rows = planted(0.75)
    shards = write_shards(tmp_path / "shards", ids(600), rows, size)
    expected = search.within(prototypes, ids(600), rows, 0.75)
    assert search.within_shards(prototypes, shards, 0.75).equals(expected)
    assert search.within_shards(prototypes, shards[::-1], 0.75).equals(expected)


def test_rows_with_a_problem_are_no_hits(tmp_path):
    rows, names = units(90, 16, 0), ids(90)
    bad = [i % 3 == 0 for i in range(90)]
    problem = ["decode: broken" if b else "" for b in bad]
    shards = write_shards(tmp_path / "shards", ["" if b else name for b, name in zip(bad, names)], rows, 20, problem)
    good = [i for i in range(90) if not bad[i]]
    hits = search.within_shards(rows[:4], shards, 0.2)
    assert hits.equals(search.within(rows[:4], [names[i] for i in good], rows[good], 0.2))
    nothing = write_shards(tmp_path / "none", [""] * 5, rows[:5], 5, ["decode: broken"] * 5)
    assert search.within_shards(rows[:4], nothing, 0.2).equals(HIT.empty_table())


def test_of_a_repeated_image_the_smallest_item_counts(tmp_path):
    near = np.array([[0.9, np.sqrt(1 - 0.81)], [0.8, 0.6]], np.float32)
    first = write_shards(tmp_path / "one", ["a", "a"], near, 1)
    axis = np.array([[1, 0]], np.float32)
    for shards in (first, first[::-1]):
        hits = search.within_shards(axis, shards, 0.5)
        assert hits.num_rows == 1 and hits["similarity"][0].as_py() == np.float32(0.9)


def test_no_shards_no_prototypes_and_a_damaged_shard(tmp_path):
    assert search.within_shards(units(2, 8, 0), [], 0.5).equals(HIT.empty_table())
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 and nothing else")
    assert search.within_shards(np.empty((0, 8), np.float32), [damaged], 0.5).equals(HIT.empty_table())
    with pytest.raises(ValueError, match=r"damaged\.parquet"):
        search.within_shards(units(2, 8, 0), [damaged], 0.5)


@pytest.mark.engine
def test_ray_gives_the_table_of_memory(ray_local, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "FILES", 3)
    prototypes, rows = planted(0.75)
    shards = write_shards(tmp_path / "shards", ids(600), rows, 37)
    expected = search.within(prototypes, ids(600), rows, 0.75)
    assert search.within_shards(prototypes, shards, 0.75, distributed=True).equals(expected)
    assert search.within_shards(prototypes, shards, 1.0, distributed=True).equals(HIT.empty_table())


def brute(prototypes: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition: all cosines, sorted by value and then by row."""
    prototype, image = np.divmod(np.arange(len(prototypes) * len(rows)), len(rows))
    cosine = search.cosines(prototypes, rows, prototype, image).reshape(len(prototypes), -1)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosine, order, axis=1), order


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("k", [1, 5, 16])
def test_nearest_is_sorted_by_cosine_then_row(paths, monkeypatch, k, gpu):
    """Repeated rows tie exactly, planted ones by less than float32 tells apart; shards end in the midst of them."""
    monkeypatch.setattr(search, "has_gpu", lambda: gpu)
    monkeypatch.setattr(search, "INDEX", 100)
    prototypes, near = planted(0.75, n=200)
    rows = np.concatenate([units(60, 512, 3), near, np.repeat(near[150:151], 70, axis=0)])
    similarity, row = search.nearest(prototypes, rows, k)
    assert similarity.dtype == np.float32 and row.dtype == np.int64
    expected = brute(prototypes, rows, k)
    assert similarity.tolist() == expected[0].tolist() and row.tolist() == expected[1].tolist()


def test_more_neighbours_than_a_gpu_finds_are_found_on_the_cpu(monkeypatch):
    used, flat = [], search.flat_index
    monkeypatch.setattr(search, "has_gpu", lambda: True)
    monkeypatch.setattr(search, "flat_index", lambda rows, gpu: used.append(gpu) or flat(rows, gpu=False))
    prototypes, rows = units(2, 4, 0), units(2_100, 4, 1)
    for k in (2_048, 2_049, 2_100):
        expected = brute(prototypes, rows, k)
        assert all(map(np.array_equal, search.nearest(prototypes, rows, k), expected))
    assert used[0] is True and used[-2:] == [False, False]


@pytest.mark.parametrize("k", [0, 6])
def test_more_neighbours_than_images_are_refused(k):
    with pytest.raises(ValueError, match="1 to 5"):
        search.nearest(units(1, 4, 0), units(5, 4, 1), k)
