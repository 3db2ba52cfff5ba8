"""The budget is spent exactly, by weight, reproducibly, and never on what is forbidden."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from medq_ray.config import Config, override
from medq_ray.explore.retrieve import retrieve
from medq_ray.explore.sampling import candidates, explore, quotas, select, weights
from medq_ray.pool.search import within
from medq_ray.schema import PROTOTYPE, QUESTION, SELECTION, embedded_image_schema

DIM = 24
CELLS = ("cell:mri/motion", "cell:mri/bias_field", "cell:ct/metal", "cell:mri/none")


def units(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def centres() -> np.ndarray:
    return units(np.random.default_rng(5).standard_normal((len(CELLS), DIM)))


def make_pool(count: int = 600, seed: int = 0) -> tuple[pa.Table, dict[str, str]]:
    """Embedded images and each one's true cell: 5 % rare (three cells), the rest 'mri/none'; two images a patient."""
    rng = np.random.default_rng(seed)
    rows, truth = [], {}
    for i in range(count):
        cell = (i // 20) % 3 if i % 20 == 0 else 3
        name = f"{rng.integers(2**60):016x}"
        truth[name] = CELLS[cell]
        vector = units(centres()[cell][None] + 0.12 * rng.standard_normal((1, DIM)))[0]
        rows.append({"image_id": name, "uri": f"/{name}", "split": "pool", "modality": "ct" if cell == 2 else "mri",
                     "source": "s", "patient": f"p{i // 2}", "session": f"p{i // 2}",
                     "phash": int(rng.integers(2**63)), "sharpness": 1.0, "noise": 1.0, "thumb": bytes(256),
                     "embedding": vector.tolist()})  # fmt: skip
    return pa.Table.from_pylist(rows, schema=embedded_image_schema(DIM)), truth


def searcher(pool: pa.Table):
    """What the run does over shards, over a table."""
    vectors = np.array(pool["embedding"].to_pylist(), np.float32).reshape(pool.num_rows, -1)
    return lambda anchors, tau: within(anchors, pool["image_id"].to_pylist(), vectors, tau)


def fetch(names: list[str], folder) -> dict[str, str]:
    return {name: f"{folder}/{name}.png" for name in names}


def make_prototypes(cells: range = range(3)) -> pa.Table:
    rows = [{"prototype_id": 10 + i, "size": 5, "members": [], "medoid": "", "medoid_uri": "", "silhouette": 0.5,
             "cohesion": 0.9, "capabilities": [(CELLS[i], 0.8), (CELLS[(i + 1) % 2], 0.2)],
             "visual": centres()[i].tolist()} for i in cells]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=PROTOTYPE)


def rates(*values: float) -> dict[str, dict]:
    return {cell: {"e": e} for cell, e in zip(CELLS, values, strict=True)} | {"kind:what": {"e": 0.9}}


RATES = rates(0.8, 0.6, 0.4, 0.1)


def settings(*assignments: str) -> Config:
    return override(
        Config(), ["explore.budget=24", "explore.random_fraction=0.25", "explore.tau_sim=0.6", *assignments]
    )


def selected(config: Config, pool: pa.Table, error=RATES, *, anchors=None, iteration=0, taken=frozenset()) -> pa.Table:
    anchors = make_prototypes() if anchors is None else anchors
    hits = retrieve(anchors, pool, searcher(pool), config.explore.tau_sim)
    return select(pool, hits, anchors, error, config=config, iteration=iteration, taken=set(taken))


def test_quotas_sum_to_the_budget_for_any_rates():
    rng = np.random.default_rng(0)
    for _ in range(500):
        weight = {f"cell:{i}": float(w) for i, w in enumerate(rng.random(rng.integers(1, 30)) ** rng.integers(1, 9))}
        total = int(rng.integers(0, 3000))
        share = quotas(weight, total)
        assert sum(share.values()) == total and min(share.values()) >= 0
        norm = sum(weight.values())
        assert all(abs(share[name] - total * value / norm) < 1 for name, value in weight.items())


def test_quotas_of_no_weight_are_nothing_and_zero_weights_get_nothing():
    assert quotas({}, 5) == {}
    assert quotas({"a": 0.0, "b": 0.0}, 5) == {"a": 0, "b": 0}
    assert quotas({"a": 0.0, "b": 0.3}, 5) == {"a": 0, "b": 5}


def test_raising_one_rate_never_lowers_its_share():
    rng = np.random.default_rng(1)
    for _ in range(500):
        error = {f"cell:{i}": {"e": float(e)} for i, e in enumerate(rng.random(8))}
        alpha, total, name = float(rng.choice([0, 0.5, 1, 2])), int(rng.integers(1, 200)), f"cell:{rng.integers(8)}"
        before = quotas(weights(error, alpha), total)[name]
        error[name] = {"e": error[name]["e"] + float(rng.random())}
        assert quotas(weights(error, alpha), total)[name] >= before


def test_alpha_zero_is_uniform_over_all_cells_and_only_cells_count():
    assert weights(rates(0.9, 0.5, 0.0, 0.0), 0) == dict.fromkeys(sorted(CELLS), 1.0)
    assert weights(rates(0.5, 0.2, 0, 0), 2) == pytest.approx(
        {"cell:ct/metal": 0, "cell:mri/bias_field": 0.04, "cell:mri/motion": 0.25, "cell:mri/none": 0}
    )


def test_a_look_alike_inherits_the_mixture_of_the_best_prototype_and_keeps_its_modality():
    anchors = make_prototypes()
    hits = pa.table({"image_id": ["a", "a", "b"], "prototype_id": pa.array([10, 11, 12], pa.int32()),
                     "similarity": pa.array([0.9, 0.8, 0.7], pa.float32())})  # fmt: skip
    found = candidates(hits, anchors, {"a": "mri", "b": "ct"})
    assert {cell: [(c.image_id, c.prototype_id) for c in own] for cell, own in found.items()} == {
        "cell:mri/motion": [("a", 10)],
        "cell:mri/bias_field": [("a", 11)],
        "cell:ct/metal": [("b", 12)],
    }
    assert found["cell:mri/motion"][0].score == pytest.approx(0.8 * 0.9)
    assert found["cell:mri/bias_field"][0].score == pytest.approx(0.8 * 0.8)


def test_the_budget_is_spent_exactly_and_mostly_on_the_weakness():
    pool, truth = make_pool(2000)
    table = selected(settings(), pool)
    rows = table.to_pylist()
    assert table.schema == SELECTION and len(rows) == 24
    names = [row["image_id"] for row in rows]
    assert names == sorted(set(names)) and set(names) <= set(truth)
    assert Counter(row["strategy"] for row in rows) == {"failure_driven": 18, "random": 6}
    aimed = [row for row in rows if row["strategy"] == "failure_driven"]
    assert sum(truth[row["image_id"]] == row["capability"] for row in aimed) >= 0.8 * len(aimed)
    assert all(row["prototype_id"] in (10, 11, 12) and row["similarity"] > 0.6 for row in aimed)
    drawn = [row for row in rows if row["strategy"] == "random"]
    assert all((row["capability"], row["prototype_id"], row["similarity"]) == ("", None, None) for row in drawn)


def test_shares_follow_the_rates_where_look_alikes_abound():
    pool, _ = make_pool(2000)
    table = selected(settings("explore.random_fraction=0"), pool, rates(0.6, 0.3, 0.3, 0.0))
    assert Counter(table["capability"].to_pylist()) == {CELLS[0]: 12, CELLS[1]: 6, CELLS[2]: 6}


def test_a_cell_without_look_alikes_gives_its_share_back():
    pool, _ = make_pool()
    table = selected(settings("explore.random_fraction=0"), pool, anchors=make_prototypes(range(1)))
    assert set(table["capability"].to_pylist()) <= {CELLS[0], CELLS[1], ""} and table.num_rows == 24


def test_what_retrieval_cannot_fill_is_drawn_at_random_and_said(capsys):
    pool, _ = make_pool()
    table = selected(settings("explore.tau_sim=0.999"), pool)
    assert table.num_rows == 24 and set(table["strategy"].to_pylist()) == {"random"}
    out = capsys.readouterr().out
    assert "drawn at random" in out and "prototype 10, 11, 12" in out


def test_same_seed_same_selection_other_seed_or_iteration_another():
    pool, _ = make_pool()
    first = selected(settings(), pool)
    assert first.equals(selected(settings(), pool))
    assert not first.equals(selected(settings("seed=1"), pool))
    assert not first.equals(selected(settings(), pool, iteration=1))


def test_permuting_the_rows_changes_nothing():
    pool, _ = make_pool()
    anchors, rng = make_prototypes(), np.random.default_rng(3)
    shuffled = selected(
        settings(), pool.take(rng.permutation(pool.num_rows)), anchors=anchors.take(rng.permutation(anchors.num_rows))
    )
    assert shuffled.equals(selected(settings(), pool))


@pytest.mark.parametrize("strategy", ["failure_driven", "random"])
def test_what_was_taken_and_its_near_duplicates_are_never_selected(strategy):
    pool, _ = make_pool()
    rows = pool.to_pylist()
    twins = [row | {"image_id": f"f{i:015x}", "phash": row["phash"] ^ 1} for i, row in enumerate(rows)]
    doubled = pa.Table.from_pylist(rows + twins, schema=pool.schema)
    taken, config = set(), settings(f"explore.strategy={strategy}", "explore.budget=60")
    for iteration in range(3):
        names = set(selected(config, doubled, iteration=iteration, taken=taken)["image_id"].to_pylist())
        hashes = {row["image_id"]: row["phash"] & ~1 for row in rows + twins}
        assert len({hashes[name] for name in names}) == len(names) == 60
        assert not {hashes[name] for name in names} & {hashes[name] for name in taken}
        taken |= names


def test_a_small_pool_is_used_up_and_said(capsys):
    pool, truth = make_pool(20)
    table = selected(settings("explore.budget=50"), pool)
    assert set(table["image_id"].to_pylist()) == set(truth)
    assert "only 20 images" in capsys.readouterr().out


def test_draws_are_spread_over_patients():
    pool, _ = make_pool(400)
    crowded = pa.array(["crowd" if i % 2 else f"p{i}" for i in range(400)])
    pool = pool.set_column(pool.schema.get_field_index("patient"), "patient", crowded)
    table = selected(settings("explore.random_fraction=0", "explore.breadth=4"), pool, anchors=make_prototypes())
    aimed = [row["patient"] for row in table.to_pylist() if row["strategy"] == "failure_driven"]
    assert Counter(aimed)["crowd"] <= 0.3 * len(aimed)


def test_the_random_strategy_ignores_prototypes():
    pool, _ = make_pool()
    config = settings("explore.strategy=random")
    table = selected(config, pool)
    assert set(table["strategy"].to_pylist()) == {"random"} and table.num_rows == 24
    assert table.equals(selected(config, pool, anchors=PROTOTYPE.empty_table()))


def test_the_phase_writes_its_tables_and_repeats_byte_for_byte(tmp_path):
    pool, _ = make_pool()
    foreign = pool.slice(0, 5).set_column(pool.schema.get_field_index("split"), "split", pa.array(["dev"] * 5))
    mixed = pa.concat_tables([foreign, pool.slice(5)])
    common = {"config": settings(), "iteration": 0, "prototypes": make_prototypes(), "rates": RATES, "taken": set(),
              "search": searcher(mixed), "fetch": fetch}  # fmt: skip
    counts = explore(tmp_path / "a", pool=mixed, **common)
    explore(tmp_path / "b", pool=mixed, **common)
    names = ["questions.parquet", "retrieved.parquet", "selection.parquet"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (counts["selected"], counts["targeted"], counts["questions"]) == (24, 18, 96)
    table = pa.parquet.read_table(tmp_path / "a" / "selection.parquet")
    assert not set(table["image_id"].to_pylist()) & set(foreign["image_id"].to_pylist())
    assert pa.parquet.read_table(tmp_path / "a" / "questions.parquet").schema == QUESTION


def test_no_failures_make_a_random_selection(tmp_path):
    pool, _ = make_pool()
    counts = explore(tmp_path, config=settings(), iteration=0, prototypes=PROTOTYPE.empty_table(),
                     rates=rates(0, 0, 0, 0), pool=pool, search=searcher(pool), fetch=fetch, taken=set())  # fmt: skip
    assert (counts["selected"], counts["targeted"], counts["hits"]) == (24, 0, 0)


def test_an_empty_pool_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pool has no images"):
        explore(tmp_path, config=settings(), iteration=0, prototypes=make_prototypes(), rates=RATES,
                pool=make_pool()[0].slice(0, 0), search=searcher(make_pool()[0]), fetch=fetch, taken=set())  # fmt: skip


def test_an_image_inside_another_file_becomes_a_picture_of_its_own(tmp_path):
    pool, _ = make_pool(60)
    inside = pool.set_column(pool.schema.get_field_index("uri"), "uri", pa.array([""] * 30 + pool["uri"].to_pylist()[30:]))
    explore(tmp_path, config=settings(), iteration=0, prototypes=make_prototypes(), rates=RATES, pool=inside,
            search=searcher(pool), fetch=fetch, taken=set())  # fmt: skip
    for row in pa.parquet.read_table(tmp_path / "selection.parquet").to_pylist():
        was = dict(zip(inside["image_id"].to_pylist(), inside["uri"].to_pylist(), strict=True))[row["image_id"]]
        assert row["uri"] == (was or f"{tmp_path}/images/{row['image_id']}.png")
