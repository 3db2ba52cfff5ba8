"""Every kind of leak is found and named; what only looks like one is not."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner
from fake_pool import fake_pool, looked

from medq_ray import cli
from medq_ray.artifacts import read_table, write_table
from medq_ray.pool.splits import CHECKS, Thresholds, describe, read_proof, verify
from medq_ray.pool.store import claimed, one_of_each
from medq_ray.schema import LISTED

APART = [{"split": split} for split in ("pool", "pool", "dev", "test")]


def leaks(pool) -> dict:
    return {check: count for check, count in verify(pool)["leaks"].items() if count}


def like(number: int, **changes) -> dict:
    """The looks of image `number`, with changes."""
    return {name: looked(number)[name] for name in ("phash", "sharpness", "noise", "thumb", "embedding")} | changes


def test_splits_that_share_nothing_pass(tmp_path):
    pool = fake_pool(tmp_path / "p", APART)
    proof = verify(pool)
    assert proof["passed"] and set(proof["leaks"]) == set(CHECKS)
    assert proof["splits"]["pool"] == {"images": 2, "patients": 2, "sessions": 0, "clusters": 0}
    assert proof["sources"] == {"s": "proven by the source's patient keys"}
    assert read_proof(pool, pool.rows()) == proof
    assert "passed" in describe(proof, pool.root)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"patient": "p0"}, "patient"),
        ({"session": "s0"}, "session"),
        ({"image_id": f"{0:016x}"}, "pixels"),
        (like(0), "near_duplicate"),
    ],
)
def test_what_two_splits_share_is_found_and_named(tmp_path, change, check):
    rows = [{"split": "pool", "session": "s0"}, {"split": "pool"}, {"split": "test"}, {"split": "dev"} | change]
    pool = fake_pool(tmp_path / "p", rows)
    found = leaks(pool)
    assert found.pop(check) == 1 and not found
    named = read_table(pool.root / "pairs.parquet").to_pylist()[0]
    assert {named["left_split"], named["right_split"]} == {"pool", "dev"} and f"{0:016x}" in (named["left"], named["right"])
    with pytest.raises(ValueError, match=f"splits leak \\(1 by {check}\\)"):
        read_proof(pool, pool.rows())


def test_a_degraded_twin_of_another_patient_is_no_near_duplicate(tmp_path):
    pool = fake_pool(tmp_path / "p", [*APART, {"split": "dev"} | like(0, sharpness=1.0, embedding=looked(4)["embedding"])])
    assert leaks(pool) == {}


@pytest.mark.parametrize(("proven", "found"), [(True, {}), (False, {"embedding": 1})])
def test_a_look_alike_by_embedding_is_a_leak_where_nobody_says_whose_it_is(tmp_path, proven, found):
    alike = {"split": "test", "embedding": looked(0)["embedding"]} | ({} if proven else {"patient": ""})
    pool = fake_pool(tmp_path / "p", [*APART, alike])
    assert leaks(pool) == found
    assert json.loads((pool.root / "proof.json").read_text())["look_alikes_of_proven_patients"] == (1 if proven else 0)


def test_look_alikes_without_a_patient_are_one_cluster_and_must_not_be_torn_apart(tmp_path):
    twin = like(0, sharpness=1.0, noise=3.0, embedding=looked(7)["embedding"], patient="")
    rows = [{"split": "pool", "patient": ""}, {"split": "pool"}, {"split": "dev"} | twin]
    pool = fake_pool(tmp_path / "p", rows)
    proof = verify(pool)
    assert proof["leaks"]["patient"] == 1 and not proof["passed"]
    assert proof["sources"]["s"] == "clustered, not proven, for 2 of 3 images; the others by patient keys"
    patients = pool.images()
    unknown = patients.filter(pc.invert(patients["proven"]))
    assert unknown["patient"].to_pylist() == [f"c{0:016x}"] * 2


def test_two_sources_may_have_one_patient_under_two_names(tmp_path):
    rows = [*APART, {"split": "test", "source": "other", "embedding": looked(0)["embedding"]}]
    assert leaks(fake_pool(tmp_path / "p", rows)) == {"embedding": 1}


def test_an_image_that_is_listed_no_more_is_no_look_alike(tmp_path):
    gone = {"patient": "", "embedding": looked(0)["embedding"]}
    pool = fake_pool(tmp_path / "p", [{"split": "dev"}, {"split": "pool"}, gone])
    manifest = pool.private / "manifests" / "s.parquet"
    write_table(manifest, read_table(manifest).slice(0, 2), LISTED)
    assert leaks(pool) == {}


def test_an_image_that_one_source_knows_is_known(tmp_path):
    """The same pixels twice, once without a name: one image, the named patient's."""
    twice = {"image_id": f"{0:016x}", "patient": "", "session": "loose"}
    pool = fake_pool(tmp_path / "p", [{}, twice, {"session": "loose", "patient": ""}, {"split": "dev"}])
    assert leaks(pool) == {}
    assert pool.images()["patient"].to_pylist() == ["p0", f"c{2:016x}", "p3"]
    torn = fake_pool(tmp_path / "torn", [{}, twice | {"split": "dev"}, {"split": "dev", "patient": "p0"}])
    assert leaks(torn) == {"patient": 1, "pixels": 1}


def test_what_all_rows_of_an_image_allow_is_allowed(tmp_path):
    pool = fake_pool(tmp_path / "p", [{"share": True}, {"image_id": f"{0:016x}", "share": False, "train": False}])
    verify(pool)
    assert pool.images().select(["share", "train"]).to_pylist() == [{"share": False, "train": False}]


@pytest.mark.parametrize("loose", [{"embedding": 1.0}, {"phash_radius": 0}, {"likeness_radius": 2}])
def test_a_proof_that_looked_away_is_refused(tmp_path, loose):
    pool = fake_pool(tmp_path / "p", APART)
    verify(pool, Thresholds(**loose))
    with pytest.raises(ValueError, match=f"made with a looser {next(iter(loose))}"):
        read_proof(pool, pool.rows())
    verify(pool, Thresholds(phash_radius=5, embedding=0.98))
    read_proof(pool, pool.rows())


def test_an_unfinished_ingest_is_no_pool_yet(tmp_path):
    pool = fake_pool(tmp_path / "p", APART)
    (pool.root / "shards" / "1.parquet").unlink()
    with pytest.raises(ValueError, match="2 images are listed but not ingested; ingest s again"):
        verify(pool)
    assert pool.good(partial=True)["image_id"].to_pylist() == [f"{0:016x}", f"{2:016x}"]


def test_verify_waits_for_no_ingest(tmp_path):
    pool = fake_pool(tmp_path / "p", APART)
    with claimed(pool.root), pytest.raises(ValueError, match="another ingest or verify is at work"):
        verify(pool)


def test_a_session_joins_clusters(tmp_path):
    rows = [{"patient": "", "session": session} for session in ("a", "a", "b", "")]
    pool = fake_pool(tmp_path / "p", rows)
    assert verify(pool)["splits"]["pool"]["clusters"] == 3
    assert pool.images()["patient"].to_pylist() == [f"c{i:016x}" for i in (0, 0, 2, 3)]


def test_a_proof_holds_for_the_images_that_it_was_made_of(tmp_path):
    pool = fake_pool(tmp_path / "p", APART)
    with pytest.raises(ValueError, match="no proof that its splits are apart"):
        read_proof(pool, pool.rows())
    verify(pool)
    fake_pool(tmp_path / "p", [*APART, {"split": "dev"}])
    with pytest.raises(ValueError, match="images have changed since the proof"):
        read_proof(pool, pool.rows())


@pytest.mark.parametrize("name", ["proof.json", "pairs.parquet", "clusters.parquet"])
def test_a_proof_that_was_edited_is_none(tmp_path, name):
    pool = fake_pool(tmp_path / "p", [*APART, {"split": "dev", "patient": "p0"}])
    assert not verify(pool)["passed"]
    path = pool.root / name
    if name == "proof.json":
        path.write_text(path.read_text().replace('"passed": false', '"passed": true'))
    else:
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match="changed by hand"):
        read_proof(pool, pool.rows())


def test_the_content_digest_does_not_see_salt_shards_or_paths_and_sees_everything_else(tmp_path):
    rows = [{"split": "pool", "patient": patient, "session": f"{patient}-1"} for patient in "aabbc"]
    first = fake_pool(tmp_path / "a", rows).digest()
    moved = [row | {"patient": row["patient"] * 2, "uri": f"/there/{i}"} for i, row in enumerate(rows)]
    assert fake_pool(tmp_path / "b", moved, shards=3).digest() == first
    for i, change in enumerate([{"patient": "c"}, {"split": "dev"}, {"labels": '{"quality": "good"}'}, {"digest": "x"},
                                {"problem": "crash: no", "image_id": ""}, {"session": "x"}]):  # fmt: skip
        assert fake_pool(tmp_path / f"c{i}", [rows[0] | change, *rows[1:]]).digest() != first, change


def test_a_patient_with_a_bad_file_is_still_told_from_others(tmp_path):
    """Two patients with a good and a bad file each, and then one with all four."""
    rows = [{"split": split, "patient": patient, **bad} for split, patient in (("pool", "a"), ("test", "b"))
            for bad in ({}, {"problem": "decode: no", "image_id": ""})]  # fmt: skip
    pool = fake_pool(tmp_path / "p", rows)
    assert verify(pool)["passed"]
    fake_pool(tmp_path / "p", [row | {"patient": "a"} for row in rows])
    with pytest.raises(ValueError, match="images have changed since the proof"):
        read_proof(pool, pool.rows())


def test_thresholds_are_numbers(tmp_path):
    pool = fake_pool(tmp_path / "p", APART)
    with pytest.raises(ValueError, match="expected numbers, found NaN"):
        verify(pool, Thresholds(embedding=float("nan")))
    refused = CliRunner().invoke(cli.main, ["pool", "verify", str(pool.root), "--embedding", "nan"])
    assert refused.exit_code == 2 and "'nan' is not a number" in refused.output


def test_pairs_of_dev_and_test_count_once(tmp_path):
    rows = [{"split": split, "patient": "", "embedding": looked(0)["embedding"]} for split in ("dev", "test", "pool")]
    assert leaks(fake_pool(tmp_path / "p", rows)) == {"embedding": 3}


def test_vectors_of_one_image_are_found_in_any_shard(tmp_path):
    pool = fake_pool(tmp_path / "p", APART, shards=3)
    verify(pool)
    table = pool.embedded([f"{i:016x}" for i in (3, 1)])
    assert table["image_id"].to_pylist() == [f"{i:016x}" for i in (1, 3)]
    assert np.array(table["embedding"].to_pylist()) == pytest.approx(np.array([looked(i)["embedding"] for i in (1, 3)]), rel=1e-6)


def test_the_command_fails_on_a_leak(tmp_path):
    fine, leaky = fake_pool(tmp_path / "fine", APART), fake_pool(tmp_path / "leaky", [*APART, {"split": "dev", "patient": "p0"}])
    done = [CliRunner().invoke(cli.main, ["pool", "verify", str(pool.root)]) for pool in (fine, leaky)]
    assert [result.exit_code for result in done] == [0, 1]
    assert "passed" in done[0].output and "LEAK      1  patients or clusters in two splits" in done[1].output
    for_programs = CliRunner().invoke(cli.main, ["pool", "verify", str(leaky.root), "--json"])
    assert json.loads(for_programs.stdout)["leaks"]["patient"] == 1


def test_every_image_of_a_large_pool_keeps_its_own_patient():
    """Arrow groups a table of more than 32,768 rows in an order of its own."""
    ids = [f"{i:016x}" for i in range(50_000)]
    columns = {"image_id": ids, "patient": [name[::-1] for name in ids], "session": ids}
    allowed = [i % 3 == 0 for i in range(len(ids))]
    good = pa.table(columns | {"share": allowed, "train": allowed[::-1]})
    assert one_of_each(good).equals(good)
