"""What `fine_tune` and `evolve` refuse before a worker starts, and which of Ray Train's failures end a training."""

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError

from medq_ray.config import Config, Evolve, validated
from medq_ray.evolve.dataset import write_dataset
from medq_ray.evolve.phase import too_long, without
from medq_ray.evolve.sft import check_room, fine_tune, run
from medq_ray.model.tiny import embedded_checkpoint
from medq_ray.serving import EngineError
from tests.evolve import fake


@pytest.fixture
def dataset(tmp_path):
    images = fake.write_images(tmp_path / "images", 2)
    write_dataset(tmp_path / "dataset", fake.samples(images), fake.pooled(images))
    return tmp_path / "dataset"


def given(tmp_path, dataset, **changes):
    return {"dataset": dataset, "tokens": {}, "checkpoint": embedded_checkpoint(), "config": Config(), "iteration": 0,
            "folder": tmp_path / "out", **changes}  # fmt: skip


def test_a_corrupt_shard_is_named(tmp_path, dataset):
    (shard,) = dataset.glob("train-*.parquet")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=str(shard)):
        fine_tune(**given(tmp_path, dataset))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_none_is_named(tmp_path, dataset):
    with pytest.raises(ValueError, match=f"checkpoint {tmp_path}: no Hugging Face checkpoint folder"):
        fine_tune(**given(tmp_path, dataset, checkpoint=tmp_path))


def test_samples_that_no_row_can_hold_are_dropped_with_their_reason(tmp_path):
    table = fake.samples(fake.write_images(tmp_path, 2))
    names = table["question_id"].to_pylist()
    tokens = {name: 100 + place for place, name in enumerate(names)}
    drops = too_long(tokens, 100 + len(names) - 3)
    assert drops.to_pylist() == [
        {"id": name, "step": "length", "reason": f"{tokens[name]} tokens, evolve.max_tokens={100 + len(names) - 3}",
         "keeper": ""}
        for name in sorted(names[-2:])
    ]  # fmt: skip
    assert without(table, drops["id"])["question_id"].to_pylist() == names[:-2]
    assert not too_long(tokens, 1000).num_rows


@pytest.mark.parametrize("changes, complaint", [
    ({"train_vision": False, "train_projector": False, "train_language": False}, "nothing to train"),
    ({"workers": 2, "min_workers": 3}, "min_workers=3 exceeds workers=2"),
])  # fmt: skip
def test_settings_that_train_nothing_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        validated({"evolve": Evolve().model_dump() | changes})


def test_workers_that_this_machine_has_no_room_for_are_not_waited_for(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_room(4, gpus=False)
    with pytest.raises(ValueError, match="5 workers .* Ray has 4 CPUs here: set evolve.workers"):
        check_room(5, gpus=False)
    with pytest.raises(ValueError, match="1 workers .* Ray has 0 GPUs here"):
        check_room(1, gpus=True)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    check_room(5, gpus=False)  # a cluster may grow


def trainer(*outcomes):
    """Of which each `fit` has the next outcome."""
    def fit():
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(return_value=outcome)

    left = iter(outcomes)
    return SimpleNamespace(fit=fit)


DIED = WorkerGroupError("gone", {1: ActorDiedError()})
DIED_STARTING = ControllerError(ActorDiedError())


@pytest.mark.parametrize("death", [DIED, DIED_STARTING])
def test_as_many_workers_may_die_as_is_said(death):
    assert run(trainer(death, death, {"done": 1}), 2) == {"done": 1}
    with pytest.raises(EngineError, match="a training worker died: The actor died"):
        run(trainer(death, death, {"done": 1}), 1)


@pytest.mark.parametrize("failure, complaint", [
    (WorkerGroupError("gone", {0: RuntimeError("peer"), 1: ValueError("sample 7")}), "^sample 7$"),
    (ControllerError(RuntimeError("no room")), "training could not go on: .* no room"),
])  # fmt: skip
def test_what_would_come_again_is_not_tried_again(failure, complaint):
    with pytest.raises((ValueError, EngineError), match=complaint):
        run(trainer(failure, {"done": 1}), 3)
