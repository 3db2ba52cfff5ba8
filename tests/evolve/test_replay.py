"""Which samples a fine-tuning is given, with the fine-tuning itself left out."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from medq_ray.artifacts import SCRATCH, read_table
from medq_ray.config import Config, Evolve
from medq_ray.evolve import phase
from medq_ray.evolve.dataset import read_dataset
from tests.evolve import fake


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return fake.write_images(tmp_path_factory.mktemp("images"), 4)


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    def nothing(folder, **_) -> dict:
        (folder / SCRATCH).mkdir()
        return {"seconds": 0}

    monkeypatch.setattr(phase, "fine_tune", nothing)
    monkeypatch.setattr(phase, "measure", lambda samples, *_: {sample["question_id"]: 60 for sample in samples})


@pytest.mark.parametrize(("replay", "trained"), [("all", 16), ("none", 8)])
def test_earlier_samples_are_used_again_unless_told_otherwise(images, tmp_path, replay, trained):
    tables, config = fake.tables(images), Config(evolve=Evolve(replay=replay, tfidf_keep=100))
    earlier = None
    for t, own in enumerate((images[:2], images[2:])):
        names = pa.array([row["image_id"] for row in own])
        mine = pc.is_in(tables["annotations"]["image_id"], value_set=names)
        now = tables | {"annotations": tables["annotations"].filter(mine)}
        folder = tmp_path / str(t)
        counts = phase.evolve(folder, config=config, iteration=t, earlier=earlier, checkpoint=tmp_path, **now)
        earlier = read_table(folder / "new.parquet")
    assert (counts["new"], counts["trained_on"]) == (8, trained)
    samples = read_table(tmp_path / "1" / "train" / "samples.parquet")
    assert set(samples["iteration"].to_pylist()) == ({0, 1} if replay == "all" else {1})
    rows, card = read_dataset(tmp_path / "1" / "dataset")
    assert rows["question_id"].to_pylist() == samples["question_id"].to_pylist()
    assert card["samples"] == trained


def test_an_image_seen_before_keeps_its_likeness_out_even_where_nothing_is_replayed(images, tmp_path):
    tables = fake.tables(images[:2]) | {"images": fake.pooled([{**row, "phash": 7} for row in images[:2]])}
    first = pc.equal(tables["annotations"]["image_id"], images[0]["image_id"])
    config, earlier = Config(evolve=Evolve(replay="none", tfidf_keep=100)), None
    for t, mine in enumerate((first, pc.invert(first))):
        now = tables | {"annotations": tables["annotations"].filter(mine)}
        if t == 1:
            with pytest.raises(ValueError, match="no sample to train on; all 4 annotations were dropped"):
                phase.evolve(tmp_path / "1", config=config, iteration=1, earlier=earlier, checkpoint=tmp_path, **now)
        else:
            phase.evolve(tmp_path / "0", config=config, iteration=0, earlier=None, checkpoint=tmp_path, **now)
            earlier = read_table(tmp_path / "0" / "new.parquet")
    drops = read_table(tmp_path / "1" / "dropped.parquet").to_pylist()
    assert {(drop["step"], drop["keeper"]) for drop in drops} == {("duplicate", images[0]["image_id"])}
