"""A run takes a pool that is proven, of its encoder, allowed by its sources, and has the images it asks about."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner
from fake_pool import fake_pool

from medq_ray import cli, recipes
from medq_ray.artifacts import read_json, read_table
from medq_ray.config import Config, override
from medq_ray.pool.ingest import ingest
from medq_ray.pool.prepare import check_pool, prepare, reviewable
from medq_ray.pool.splits import verify
from medq_ray.pool.store import open_pool
from medq_ray.schema import POOL_IMAGE
from medq_ray.synthetic.world import read_world, write_world


def settings(pool, *assignments: str) -> Config:
    return override(Config(), [f"pool.path={pool.root}", *assignments])


def test_a_pool_without_a_passing_proof_is_refused(tmp_path):
    pool = fake_pool(tmp_path / "p", [{}, {"split": "dev"}])
    with pytest.raises(ValueError, match="no proof that its splits are apart; run `medq pool verify"):
        check_pool(settings(pool))
    verify(pool)
    given = check_pool(settings(pool))
    assert given.pool == pool and given.digest == pool.digest()
    leaky = fake_pool(tmp_path / "leaky", [{}, {"split": "dev", "patient": "p0"}])
    verify(leaky)
    with pytest.raises(ValueError, match="its splits leak"):
        check_pool(settings(leaky))


def test_another_encoder_is_refused(tmp_path):
    pool = fake_pool(tmp_path / "p", [{}])
    verify(pool)
    with pytest.raises(ValueError, match="embeddings of the encoder 'embedded [0-9a-f]{16}'; set encoder.name to it"):
        check_pool(settings(pool, "encoder.name=hf-hub:a/b"))


def test_the_sources_terms_stop_a_run_until_acknowledged(tmp_path):
    again = {"image_id": f"{1:016x}", "source": "a"}  # the same pixels, from a source that allows everything
    pool = fake_pool(tmp_path / "p", [again, {"source": "eyeq", "share": False, "licence": "Kaggle"}, {}])
    verify(pool)
    check_pool(settings(pool))
    abroad = "oracle.base_url=https://api.example.com/v1"
    with pytest.raises(ValueError, match="eyeq .licence: Kaggle. may not be sent to https://api.example.com"):
        check_pool(settings(pool, abroad))
    check_pool(settings(pool, abroad, "pool.acknowledged=[eyeq]"))


def test_a_marked_pool_stays_here_whatever_is_acknowledged(tmp_path):
    pool = fake_pool(tmp_path / "p", [{"source": "eyeq", "share": False}, {}])
    verify(pool)
    marked = CliRunner().invoke(cli.main, ["pool", "mark", str(pool.root)])
    assert marked.exit_code == 0 and "never leave this machine" in marked.output
    check_pool(settings(pool))
    check_pool(settings(pool, "oracle.base_url=http://127.0.0.1:1/v1"))
    for model in ("oracle", "engine"):
        with pytest.raises(ValueError, match="is marked: its images never leave .* medq pool mark .* --may-leave"):
            check_pool(settings(pool, f"{model}.base_url=https://api.example.com/v1", "pool.acknowledged=[eyeq]"))
    assert CliRunner().invoke(cli.main, ["pool", "mark", str(pool.root), "--may-leave"]).exit_code == 0
    check_pool(settings(pool, "oracle.base_url=https://api.example.com/v1", "pool.acknowledged=[eyeq]"))


def test_a_pool_must_have_the_images_that_are_asked_about(tmp_path):
    write_world(tmp_path / "w", 40, 3, size=56)
    pool = fake_pool(tmp_path / "p", [{}])
    verify(pool)
    with pytest.raises(ValueError, match="lacks 26 of the 26 dev and test images .*run .medq ingest world .* --split source"):
        config = settings(pool)
        prepare(tmp_path / "step", world=read_world(tmp_path / "w"), config=config, given=check_pool(config), own=tmp_path)


@pytest.mark.engine
def test_a_worlds_own_pool_and_one_ingested_before_are_the_same(tmp_path, ray_local):
    write_world(tmp_path / "w", 60, 3, size=56)
    world = read_world(tmp_path / "w")
    counts = prepare(tmp_path / "a", world=world, config=Config(), given=None, own=tmp_path / "own")
    ingest("world", tmp_path / "w", tmp_path / "p", split="source")
    verify(open_pool(tmp_path / "p"))
    config = override(Config(), [f"pool.path={tmp_path / 'p'}"])
    again = prepare(tmp_path / "b", world=world, config=config, given=check_pool(config), own=tmp_path)
    assert counts == again and counts["images"] == 60
    tables = [read_table(tmp_path / name / "images.parquet") for name in "ab"]
    assert all(table.schema == POOL_IMAGE for table in tables)
    salted = ["patient", "session"]  # with other salts
    assert tables[0].drop_columns(salted).equals(tables[1].drop_columns(salted))
    assert read_json(tmp_path / "a" / "pool.json") == read_json(tmp_path / "b" / "pool.json")
    assert sorted(tables[0]["uri"].to_pylist()) == sorted(world.images["uri"].to_pylist())
    place = pc.index_in(tables[0]["image_id"], value_set=world.images["image_id"].combine_chunks())
    assert tables[0]["split"].equals(world.images["split"].take(place))
    assert pc.all(tables[0]["proven"]).as_py()


def test_only_images_that_somebody_can_review_are_selected(tmp_path, capsys):
    write_world(tmp_path / "w", 40, 3, size=56)
    world = read_world(tmp_path / "w")
    images = pa.table({"image_id": ["no image of the world", *world.images["image_id"].to_pylist()[:5]]})
    assert reviewable(images, world, recipes.demo()).num_rows == 5
    assert "1 images of the pool are not selected: only people can review them" in capsys.readouterr().out
    assert reviewable(images, world, Config()).num_rows == 6
