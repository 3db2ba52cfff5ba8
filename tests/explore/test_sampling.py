"""The budget is spent exactly, by weight, reproducibly, and never on what is forbidden."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_pool import CELLS, RATES, fetch, make_pool, make_prototypes, phase, rates, settings, unsure, with_dev

from medq_ray.depth import beside
from medq_ray.explore.sampling import Evidence, Hits, Ranked, quotas, weights
from medq_ray.explore.strategies import STRATEGIES
from medq_ray.pool.search import within_shards
from medq_ray.schema import FAILURE, HIT, PROTOTYPE, QUESTION, SELECTION, SHARE


@pytest.fixture
def selected(tmp_path_factory):
    """The selection that the phase writes."""

    def run(*args, **kwargs) -> pa.Table:
        folder = tmp_path_factory.mktemp("explore")
        phase(folder, *args, **kwargs)
        return pa.parquet.read_table(folder / "selection.parquet")

    return run


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
    pool, _ = make_pool(4)
    pool = pool.set_column(0, "image_id", pa.array(["a", "b", "c", "d"]))
    pool = pool.set_column(pool.schema.get_field_index("modality"), "modality", pa.array(["mri", "ct", "mri", "ct"]))
    hits = pa.table({"image_id": ["a", "c", "a", "b"], "prototype_id": pa.array([11, 10, 10, 12], pa.int32()),
                     "similarity": pa.array([0.8, 0.95, 0.9, 0.7], pa.float32())}, schema=HIT)  # fmt: skip
    found = Hits.of(hits, make_prototypes(), pool)
    motion, bias, metal = (found.of_cell(cell) for cell in CELLS[:3])
    assert motion.rows.tolist() == [2, 0] and motion.prototype.tolist() == [10, 10]
    assert motion.score == pytest.approx([0.8 * 0.95, 0.8 * 0.9])
    assert bias.rows.tolist() == [0, 2] and bias.prototype.tolist() == [11, 10] and bias.score[0] == pytest.approx(0.64)
    assert metal.rows.tolist() == [1] and found.of_cell("cell:mri/none").rows.size == 0
    assert motion.at(np.array([0, 2])).tolist() == [1, 0]


def test_the_budget_is_spent_exactly_and_mostly_on_the_weakness(selected):
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


def test_shares_follow_the_rates_where_look_alikes_abound(selected):
    pool, _ = make_pool(2000)
    table = selected(settings("explore.random_fraction=0"), pool, rates(0.6, 0.3, 0.3, 0.0))
    assert Counter(table["capability"].to_pylist()) == {CELLS[0]: 12, CELLS[1]: 6, CELLS[2]: 6}


def test_a_cell_without_look_alikes_gives_its_share_back(selected):
    pool, _ = make_pool()
    table = selected(settings("explore.random_fraction=0"), pool, anchors=make_prototypes(range(1)))
    assert set(table["capability"].to_pylist()) <= {CELLS[0], CELLS[1], ""} and table.num_rows == 24


def test_what_retrieval_cannot_fill_is_drawn_at_random_and_said(selected, capsys):
    pool, _ = make_pool()
    table = selected(settings("explore.tau_sim=0.999"), pool)
    assert table.num_rows == 24 and set(table["strategy"].to_pylist()) == {"random"}
    out = capsys.readouterr().out
    assert "0 images selected for a reason, 24 at random" in out and "prototype 10, 11, 12" in out


def test_same_seed_same_selection_other_seed_or_iteration_another(selected):
    pool, _ = make_pool()
    first = selected(settings(), pool)
    assert first.equals(selected(settings(), pool))
    assert not first.equals(selected(settings("seed=1"), pool))
    assert not first.equals(selected(settings(), pool, iteration=1))


def shuffled(table: pa.Table) -> pa.Table:
    return table.take(np.random.default_rng(3).permutation(table.num_rows))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_permuting_any_rows_changes_nothing(selected, strategy):
    pool, evidence = with_dev(make_pool()[0])
    config, anchors = settings(f"explore.strategy={strategy}"), make_prototypes()
    other = selected(config, shuffled(pool), dict(reversed(RATES.items())), anchors=shuffled(anchors),
                     **{name: shuffled(table) for name, table in evidence.items()})  # fmt: skip
    assert other.equals(selected(config, pool, anchors=anchors, **evidence))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_how_the_pool_lies_in_shards_changes_nothing(selected, strategy, tmp_path):
    pool, evidence = with_dev(make_pool()[0])
    config, found = settings(f"explore.strategy={strategy}"), []
    for count in (1, 7):
        rows = shuffled(pool) if count > 1 else pool
        problem, item = (pa.array(values, pa.string()) for values in ([""] * rows.num_rows, rows["image_id"].to_pylist()))
        rows = rows.append_column("problem", problem).append_column("item", item)
        paths = []
        for i in range(count):
            paths.append(tmp_path / f"{count}-{i}.parquet")
            pq.write_table(rows.take(list(range(i, rows.num_rows, count))), paths[-1])
        search = partial(within_shards, shards=paths)
        found.append(selected(config, pool, search=lambda anchors, tau, search=search: search(anchors, tau=tau),
                              **evidence))  # fmt: skip
    assert found[0].equals(found[1]) and found[0].num_rows == 24


def test_what_dev_images_say_weighs_in(selected):
    """Else the tests above would not notice if it did not."""
    pool, evidence = with_dev(make_pool()[0])
    assert not selected(settings(), pool, **evidence).equals(selected(settings(), pool))
    assert selected(settings("explore.neighbours=0"), pool, **evidence).equals(
        selected(settings("explore.neighbours=0"), pool))  # fmt: skip


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_what_was_taken_and_its_near_duplicates_are_never_selected(selected, strategy):
    pool, evidence = with_dev(make_pool()[0])
    rows = pool.to_pylist()
    twins = [row | {"image_id": f"f{i:015x}", "phash": row["phash"] ^ 1} for i, row in enumerate(rows)]
    doubled = pa.Table.from_pylist(rows + twins, schema=pool.schema)
    taken, config = set(), settings(f"explore.strategy={strategy}", "explore.budget=60")
    for iteration in range(3):
        names = set(selected(config, doubled, iteration=iteration, taken=taken, **evidence)["image_id"].to_pylist())
        hashes = {row["image_id"]: row["phash"] & ~1 for row in rows + twins}
        assert len({hashes[name] for name in names}) == len(names) == 60
        assert not {hashes[name] for name in names} & {hashes[name] for name in taken}
        taken |= names


def test_a_small_pool_is_used_up_and_said(selected, capsys):
    pool, truth = make_pool(20)
    table = selected(settings("explore.budget=50"), pool)
    assert set(table["image_id"].to_pylist()) == set(truth)
    assert "only 20 images" in capsys.readouterr().out


def test_draws_are_spread_over_patients(selected):
    pool, _ = make_pool(400)
    crowded = pa.array(["crowd" if i % 2 else f"p{i}" for i in range(400)])
    pool = pool.set_column(pool.schema.get_field_index("patient"), "patient", crowded)
    table = selected(settings("explore.random_fraction=0", "explore.breadth=4"), pool, anchors=make_prototypes())
    aimed = [row["patient"] for row in table.to_pylist() if row["strategy"] == "failure_driven"]
    assert Counter(aimed)["crowd"] <= 0.3 * len(aimed)


def test_the_random_strategy_ignores_prototypes(selected):
    pool, _ = make_pool()
    config = settings("explore.strategy=random")
    table = selected(config, pool)
    assert set(table["strategy"].to_pylist()) == {"random"} and table.num_rows == 24
    assert table.equals(selected(config, pool, anchors=PROTOTYPE.empty_table()))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_neither_dev_and_test_images_nor_their_near_duplicates_nor_what_is_not_allowed_are_selected(strategy, selected):
    pool, _ = make_pool(200)
    rows = pool.to_pylist()
    for row in rows[:60]:
        row["split"] = "dev"
    for row, dev in zip(rows[60:120], rows[:60], strict=True):
        row["phash"] = dev["phash"] ^ 1
    mixed = pa.Table.from_pylist(rows, schema=pool.schema)
    allowed = pa.array([row["image_id"] for row in rows[:160]])
    config = settings(f"explore.strategy={strategy}", "explore.budget=50", "explore.random_fraction=0.2")
    names = set(selected(config, mixed, allowed=allowed)["image_id"].to_pylist())
    assert names == {row["image_id"] for row in rows[120:160]}


def test_every_prototype_gets_as_much_whatever_the_rates(selected):
    pool, _ = make_pool(2000)
    config = settings("explore.strategy=uniform_over_prototypes", "explore.random_fraction=0")
    table = selected(config, pool, rates(0.9, 0.1, 0.0, 0.0))
    assert Counter(table["prototype_id"].to_pylist()) == {10: 8, 11: 8, 12: 8}
    assert set(zip(table["prototype_id"].to_pylist(), table["capability"].to_pylist(), strict=True)) == {
        (10, CELLS[0]), (11, CELLS[1]), (12, CELLS[2])}  # fmt: skip


def test_uncertainty_takes_the_least_sure_of_what_it_looked_at(selected):
    pool, _ = make_pool(200)
    config = settings("explore.strategy=uncertainty", "explore.budget=20", "explore.candidates=20")
    table = selected(config, pool)
    aimed = table.filter(pa.compute.equal(table["strategy"], "uncertainty"))
    surest = sorted((int(name[-2:], 16) for name in pool["image_id"].to_pylist()), reverse=True)[:15]
    assert sorted((int(name[-2:], 16) for name in aimed["image_id"].to_pylist()), reverse=True) == surest
    assert sorted(aimed["score"].to_pylist(), reverse=True) == [value / 256 for value in surest]


def test_a_picture_is_written_once_and_stays_with_its_depth_if_it_was_selected(tmp_path):
    written = []

    def counted(names, folder):
        written.extend(names)
        folder.mkdir(exist_ok=True)
        found = fetch(names, folder)
        for path in map(Path, found.values()):
            path.touch()
            beside(path).touch()
        return found

    pool = make_pool(200)[0]
    nowhere = pa.array([""] * pool.num_rows)  # as in a pool, whose images lie in volumes and archives
    pool = pool.set_column(pool.schema.get_field_index("uri"), "uri", nowhere)
    phase(tmp_path, settings("explore.strategy=uncertainty"), pool, fetch=counted)
    assert len(written) > 24 and len(set(written)) == len(written)
    selected = map(Path, pq.read_table(tmp_path / "selection.parquet")["uri"].to_pylist())
    assert set((tmp_path / "images").iterdir()) == {file for path in selected for file in (path, beside(path))}


def test_uncertainty_without_logprobs_is_refused(tmp_path):
    def silent(prompts, sampling, label):
        table = unsure(prompts, sampling, label)
        nulls = pa.nulls(len(table), pa.float64())
        return table.set_column(table.schema.get_field_index("entropy"), "entropy", nulls)

    with pytest.raises(ValueError, match="needs an endpoint with logprobs"):
        phase(tmp_path, settings("explore.strategy=uncertainty"), make_pool(200)[0], ask_self=silent)


def test_a_coreset_leaves_no_image_farther_from_it_than_a_random_draw_does(selected):
    pool, _ = make_pool(400)
    vectors = np.array(pool["embedding"].to_pylist())
    where = {name: i for i, name in enumerate(pool["image_id"].to_pylist())}

    def radius(table: pa.Table) -> float:
        own = vectors[[where[name] for name in table["image_id"].to_pylist()]]
        return float((1 - vectors @ own.T).min(axis=1).max())

    options = ["explore.random_fraction=0", "explore.candidates=20"]
    found = [radius(selected(settings(f"explore.strategy={name}", *options), pool)) for name in ("coreset", "random")]
    assert found[0] < 0.8 * found[1]


def test_sessions_of_a_patient_take_turns(selected):
    pool, _ = make_pool(400)
    one = pool.set_column(pool.schema.get_field_index("patient"), "patient", pa.array(["p"] * 400))
    sessions = pa.array([f"s{i % 50 if i % 50 < 5 else 0}" for i in range(400)])
    one = one.set_column(one.schema.get_field_index("session"), "session", sessions)
    session = dict(zip(one["image_id"].to_pylist(), sessions.to_pylist(), strict=True))
    config = settings("explore.random_fraction=0", "explore.breadth=100", "explore.budget=10", "explore.tau_sim=0")
    table = selected(config, one, rates(0, 0, 0, 1.0), anchors=make_prototypes(range(4)))
    counts = Counter(session[name] for name in table["image_id"].to_pylist())
    assert set(counts) == {f"s{i}" for i in range(5)} and max(counts.values()) - min(counts.values()) <= 1


def test_the_phase_writes_its_tables_and_repeats_byte_for_byte(tmp_path):
    pool, _ = make_pool()
    foreign = pool.slice(0, 5).set_column(pool.schema.get_field_index("split"), "split", pa.array(["dev"] * 5))
    mixed = pa.concat_tables([foreign, pool.slice(5)])
    counts = phase(tmp_path / "a", settings(), mixed)
    phase(tmp_path / "b", settings(), mixed)
    names = ["dropped.parquet", "questions.parquet", "retrieved.parquet", "selection.parquet", "shares.parquet"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (counts["selected"], counts["targeted"], counts["questions"], counts["dropped"]) == (24, 18, 96, 0)
    table = pa.parquet.read_table(tmp_path / "a" / "selection.parquet")
    assert not set(table["image_id"].to_pylist()) & set(foreign["image_id"].to_pylist())
    assert pa.parquet.read_table(tmp_path / "a" / "questions.parquet").schema == QUESTION
    shares = pa.parquet.read_table(tmp_path / "a" / "shares.parquet")
    assert shares.schema == SHARE and sum(shares["quota"].to_pylist()) == sum(shares["drawn"].to_pylist()) == 18
    assert sum(shares["weight"].to_pylist()) == pytest.approx(1)


def test_no_failures_make_a_random_selection(tmp_path):
    counts = phase(tmp_path, settings(), make_pool()[0], rates(0, 0, 0, 0), anchors=PROTOTYPE.empty_table())
    assert (counts["selected"], counts["targeted"], counts["hits"]) == (24, 0, 0)


def test_an_empty_pool_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pool has no images"):
        phase(tmp_path, settings(), make_pool()[0].slice(0, 0))


def test_an_image_inside_another_file_becomes_a_picture_of_its_own(tmp_path):
    pool, _ = make_pool(60)
    uris = pa.array([""] * 30 + pool["uri"].to_pylist()[30:])
    inside = pool.set_column(pool.schema.get_field_index("uri"), "uri", uris)
    phase(tmp_path, settings(), inside)
    for row in pa.parquet.read_table(tmp_path / "selection.parquet").to_pylist():
        was = dict(zip(inside["image_id"].to_pylist(), inside["uri"].to_pylist(), strict=True))[row["image_id"]]
        assert row["uri"] == (was or f"{tmp_path}/images/{row['image_id']}.png")


def test_dev_images_that_were_answered_right_speak_against_a_look_alike():
    """Two directions of one modality: images of the first failed, of the second did not."""
    ids = [f"{i:02d}" for i in range(20)]
    cells = [CELLS[0]] * 10 + [CELLS[3]] * 10
    rows = [{"question_id": f"{name}-{kind}", "image_id": name, "modality": "mri", "capabilities": [cell]}
            for name, cell in zip(ids, cells, strict=True) for kind in ("what", "how")]  # fmt: skip
    asked = pa.Table.from_pylist(rows, schema=QUESTION)
    failed = pa.Table.from_pylist([row for row in rows if row["capabilities"] == [CELLS[0]]], schema=FAILURE)
    evidence, known = Evidence.of(asked, failed), np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    assert evidence.names == ids
    motion, bias, metal = (evidence.likelihood(cell, known, np.eye(2, dtype=np.float32), 5) for cell in CELLS[:3])
    assert motion == pytest.approx([1.0, 0.1 / 5.1]) and bias == pytest.approx(0.1 / 5.1)
    assert metal == pytest.approx(1)  # there is no dev image of its modality


def test_weighing_puts_the_likely_first_and_leaves_the_rest():
    found = Ranked(np.array([7, 3, 5, 9]), np.array([1, 1, 2, 2], np.int32), np.float32([0.9, 0.8, 0.7, 0.6]),
                   np.array([0.9, 0.8, 0.7, 0.6]))  # fmt: skip
    again = found.weighed(3, lambda rows: np.where(rows == 5, 1.0, 0.1))
    assert again.rows.tolist() == [5, 7, 3, 9] and again.prototype.tolist() == [2, 1, 1, 2]
    assert again.score == pytest.approx([0.7, 0.09, 0.08, 0.6]) and found.rows.tolist() == [7, 3, 5, 9]


def test_a_share_that_is_used_up_gives_back_though_its_twins_look_free(selected):
    """Six images and their twins for one cell; what they cannot fill goes to the other cell, not to chance."""
    pool, truth = make_pool(400)
    rows = pool.to_pylist()
    motion = [row for row in rows if truth[row["image_id"]] == CELLS[0]][:6]
    others = [row for row in rows if truth[row["image_id"]] == CELLS[3]]
    twins = [row | {"image_id": f"f{i:015x}", "phash": row["phash"] ^ 1} for i, row in enumerate(motion)]
    few = pa.Table.from_pylist(motion + twins + others, schema=pool.schema)
    anchors = [row | {"capabilities": [(CELLS[i], 1.0)]} for i, row in enumerate(make_prototypes(range(4)).to_pylist())]
    anchors = pa.Table.from_pylist([anchors[0], anchors[3]], schema=PROTOTYPE)
    config = settings("explore.random_fraction=0", "explore.budget=40", "explore.breadth=1")
    table = selected(config, few, rates(0.9, 0, 0, 0.1), anchors=anchors)
    assert Counter(table["strategy"].to_pylist()) == {"failure_driven": 40}
    assert Counter(table["capability"].to_pylist()) == {CELLS[0]: 6, CELLS[3]: 34}


def test_rates_without_cells_make_a_random_selection(selected):
    table = selected(settings(), make_pool()[0], {"kind:what": {"e": 0.9}})
    assert set(table["strategy"].to_pylist()) == {"random"} and table.num_rows == 24
