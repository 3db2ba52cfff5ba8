"""Samples as chat messages in shards, and the card: what goes in comes out, counted."""

import numpy as np
import pyarrow as pa
import pytest

from medq_ray import schema
from medq_ray.artifacts import digest_folder, read_table, write_table
from medq_ray.evolve import dataset
from medq_ray.evolve.card import card, described, table
from medq_ray.evolve.dataset import read_dataset, write_dataset
from tests.evolve import fake


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return fake.write_images(tmp_path_factory.mktemp("images"), 4)


@pytest.fixture(scope="module")
def pool(images):
    second = {"source": "ct-mar", "licence": "own", "share": False}
    return fake.pooled([{**row, **(second if i == 1 else {})} for i, row in enumerate(images)])


def test_a_sample_becomes_two_turns_with_its_images_in_order(images, pool, tmp_path):
    samples = fake.samples(images)
    write_dataset(tmp_path / "d", samples, pool)
    rows, _ = read_dataset(tmp_path / "d")
    assert rows.schema == schema.CHAT
    found = {row["question_id"]: row for row in rows.to_pylist()}
    assert list(found) == sorted(samples["question_id"].to_pylist())
    row = next(row for row in found.values() if row["kind"] == "comparison")
    sample = next(row for row in samples.to_pylist() if row["kind"] == "comparison")
    image, text = {"type": "image", "text": None}, {"type": "text", "text": sample["prompt"]}
    assert row["messages"] == [
        {"role": "user", "content": [image, image, text]},
        {"role": "assistant", "content": [{"type": "text", "text": sample["answer"]}]},
    ]
    assert row["images"] == [images[0]["uri"], images[1]["uri"]]
    assert row["image_ids"] == [images[0]["image_id"], images[1]["image_id"]]
    assert (row["sources"], row["licences"]) == (["synthetic", "ct-mar"], ["CC0", "own"])
    one = next(row for row in found.values() if row["kind"] == "description")
    assert [part["type"] for part in one["messages"][0]["content"]] == ["image", "text"] and len(one["images"]) == 1
    assert (one["route"], one["labelled_by"], one["simulated"], one["iteration"]) == ("oracle", "oracle", True, 0)


def test_shards_hold_every_sample_once_and_equal_samples_give_equal_bytes(images, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD", 5)
    samples = fake.samples(images)
    assert samples.num_rows == 17
    write_dataset(tmp_path / "a", samples, pool)
    names = [f"train-{i:05d}-of-00004.parquet" for i in range(4)]
    assert sorted(path.name for path in (tmp_path / "a").glob("*.parquet")) == names
    assert [read_table(tmp_path / "a" / name).num_rows for name in names] == [5, 5, 5, 2]
    rng = np.random.default_rng(0)
    write_dataset(tmp_path / "b", samples.slice(0, 3), pool)  # what was there before is replaced
    write_dataset(tmp_path / "b", samples.take(rng.permutation(17)), pool.take(rng.permutation(pool.num_rows)))
    assert digest_folder(tmp_path / "a") == digest_folder(tmp_path / "b")
    assert read_dataset(tmp_path / "a")[0].num_rows == 17


def test_a_missing_or_foreign_shard_is_noticed(images, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD", 5)
    samples = fake.samples(images)
    with pytest.raises(ValueError, match="no data set"):
        read_dataset(tmp_path / "none")
    write_dataset(tmp_path / "d", samples, pool)
    shard = tmp_path / "d" / "train-00001-of-00004.parquet"
    rows = read_table(shard)
    shard.unlink()
    with pytest.raises(ValueError, match="its 3 shards are not the 17 samples of its card.json"):
        read_dataset(tmp_path / "d")
    other = [{**row, "messages": row["messages"][::-1]} for row in rows.to_pylist()]
    write_table(shard, other, schema.CHAT)
    with pytest.raises(ValueError, match="its 4 shards are not the 17 samples"):
        read_dataset(tmp_path / "d")
    shard.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="train-00001-of-00004.parquet: no readable Parquet table"):
        read_dataset(tmp_path / "d")


def test_the_digest_does_not_depend_on_where_images_lie(images, pool, tmp_path):
    samples = fake.samples(images)
    moved = pa.Table.from_pylist([{**row, "uri": "/elsewhere"} for row in samples.to_pylist()], schema=schema.SAMPLE)
    changed = pa.Table.from_pylist([{**row, "answer": "B"} for row in samples.to_pylist()], schema=schema.SAMPLE)
    digests = [
        write_dataset(tmp_path / str(i), table, pool)["digests"] for i, table in enumerate((samples, moved, changed))
    ]
    assert digests[0] == digests[1] and digests[0]["images"] == digests[2]["images"]
    assert digests[0]["samples"] != digests[2]["samples"]


def test_the_card_counts(images, pool, tmp_path):
    samples = fake.samples(images).to_pylist()
    samples[0] |= {"labelled_by": "dr-a", "simulated": False, "route": "expert", "iteration": 1}
    found = write_dataset(tmp_path / "d", pa.Table.from_pylist(samples, schema=schema.SAMPLE), pool)
    assert (found["samples"], found["images"], found["simulated"]) == (17, 4, 16)
    assert found["counts"]["iteration"] == {"0": 16, "1": 1}
    assert found["counts"]["route"] == {"expert": 1, "oracle": 16}
    assert found["counts"]["kind"] == {"comparison": 1, "description": 4, "how": 4, "what": 4, "yes_no": 4}
    assert found["counts"]["licence"] == {"CC0": 13, "own": 5}
    assert found["counts"]["capability"]["kind:what"] == 4 and sum(found["counts"]["modality"].values()) == 17
    assert found["labelled_by"] == {"dr-a": {"samples": 1, "simulated": 0}, "oracle": {"samples": 16, "simulated": 16}}
    assert found["sources"] == [
        {"source": "ct-mar", "licence": "own", "share": False, "train": True, "images": 1, "samples": 5},
        {"source": "synthetic", "licence": "CC0", "share": True, "train": True, "images": 3, "samples": 13},
    ]
    text = (tmp_path / "d" / "README.md").read_text()
    assert "17 questions with answers about 4 medical images" in text
    assert "**16 of the 17 labels are simulated**" in text
    assert "| ct-mar | own | no | yes | 1 | 5 |" in text and "| dr-a | 1 | 0 |" in text
    assert "The terms of ct-mar do not allow" in text and found["digests"]["samples"] in text


def test_a_card_without_simulated_labels_says_nothing_of_them(pool):
    text = described(card(schema.CHAT.empty_table(), pool, "0"))
    assert "simulated**" not in text and "do not allow" not in text


def test_a_cell_with_a_bar_stays_one_cell():
    assert table(["a"], [["x|y"]]) == ["| a |", "| --- |", "| x\\|y |", ""]


def test_an_image_of_unknown_source_is_refused(images, pool, tmp_path):
    with pytest.raises(ValueError, match=f"image {images[0]['image_id']} of sample .* is not in the pool"):
        write_dataset(tmp_path / "d", fake.samples(images), pool.slice(1))
