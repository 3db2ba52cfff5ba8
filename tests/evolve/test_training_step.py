"""What a sample looks like to the model, what the loss is, and what one step does: in this process, without Ray."""

import json
import math
import shutil

import numpy as np
import pytest

from medq_ray.model.prompts import messages
from medq_ray.model.tiny import embedded_checkpoint
from tests.evolve import fake

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def processor():
    from medq_ray.evolve.encoding import load_processor

    return load_processor(embedded_checkpoint())


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    images = fake.write_images(tmp_path_factory.mktemp("images"), 2)
    asked = [(image, fake.question(image, kind)) for image in images for kind in ("yes_no", "what", "description")]
    return [{**q, "prompt": q["text"], "answer": fake.truth(i, q)} for i, q in asked]


@pytest.fixture(scope="module")
def encoded(processor, samples):
    from medq_ray.evolve.encoding import encode_all

    return encode_all(processor, samples)


@pytest.fixture
def model():
    from medq_ray.evolve.worker import load_model

    torch.set_num_threads(1)
    return load_model(embedded_checkpoint())


@pytest.fixture
def one_rank():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_prompt_is_what_is_served_and_labels_are_the_answer_and_its_end(processor, samples, encoded):
    from medq_ray.evolve.encoding import IGNORED

    for sample, (tokens, others) in zip(samples, encoded, strict=True):
        ids, labels = tokens["input_ids"][0], tokens["labels"][0]
        served = [{"type": "image"}, messages([""], sample["prompt"])[0]["content"][1]]
        asked = processor.apply_chat_template(
            [{"role": "user", "content": served}], tokenize=False, add_generation_prompt=True
        )
        prompt = processor(images=[np.zeros((112, 112, 3), np.uint8)], text=[asked])["input_ids"][0]
        assert ids[: len(prompt)].tolist() == prompt
        assert (labels[: len(prompt)] == IGNORED).all()
        assert labels[len(prompt) :].tolist() == ids[len(prompt) :].tolist()
        assert processor.tokenizer.decode(ids[len(prompt) :]) == sample["answer"] + processor.tokenizer.eos_token
        assert others["pixel_values"].shape == (1, 3, 112, 112)


def test_questions_of_one_image_share_its_pixels(encoded):
    assert encoded[0][1] is encoded[1][1] is encoded[2][1] is not encoded[3][1]


def test_a_comparison_has_both_images_in_their_order_and_mixes_with_others(processor, samples, encoded, model):
    from medq_ray.evolve.encoding import collate, encode_all
    from medq_ray.evolve.worker import sample_losses

    pair = encode_all(processor, [samples[0] | {"second_uri": samples[3]["uri"]}])
    (tokens, others), (single, first), (_, second) = pair[0], encoded[0], encoded[3]
    assert torch.equal(others["pixel_values"], torch.cat([first["pixel_values"], second["pixel_values"]]))
    placeholder = single["input_ids"][0].mode().values  # the image's tokens are the most frequent ones
    assert (tokens["input_ids"] == placeholder).sum() == 2 * (single["input_ids"] == placeholder).sum()
    alone = [sample_losses(model, collate(part, 0), "mean").item() for part in (pair, encoded[1:2])]
    together = sample_losses(model, collate([pair[0], encoded[1]], 0), "mean").tolist()
    assert together == pytest.approx(alone, rel=1e-4)


def test_collate_pads_on_the_right_and_ignores_padding(processor, encoded):
    from medq_ray.evolve.encoding import IGNORED, collate

    pad = processor.tokenizer.pad_token_id
    batch = collate(encoded, pad)
    lengths = [tokens["input_ids"].shape[1] for tokens, _ in encoded]
    assert batch["input_ids"].shape == batch["labels"].shape == (6, max(lengths))
    assert batch["pixel_values"].shape == (6, 3, 112, 112)
    for row, (tokens, _) in enumerate(encoded):
        length = lengths[row]
        assert torch.equal(batch["input_ids"][row, :length], tokens["input_ids"][0])
        assert (batch["input_ids"][row, length:] == pad).all()
        assert (batch["labels"][row, length:] == IGNORED).all()
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (max(lengths) - length)


def test_loss_is_the_hand_computed_one_on_answer_tokens_only(processor, encoded, model):
    from medq_ray.evolve.encoding import collate
    from medq_ray.evolve.worker import sample_losses

    batch = collate(encoded, processor.tokenizer.pad_token_id)
    losses, means = (sample_losses(model, batch, joined).tolist() for joined in ("sum", "mean"))
    for loss, mean, (tokens, others) in zip(losses, means, encoded, strict=True):
        ids, answer = tokens["input_ids"], (tokens["labels"][0] >= 0).nonzero()[:, 0].tolist()
        with torch.no_grad():
            logits = model(input_ids=ids, **others).logits[0].double()
        by_hand = 0.0
        for position in answer:  # -log p(y_i | y_<i, x, q), eq. 4
            scores = logits[position - 1]
            by_hand += math.log(sum(math.exp(s - scores.max()) for s in scores.tolist())) + float(scores.max())
            by_hand -= float(scores[ids[0, position]])
        assert loss == pytest.approx(by_hand, rel=1e-4)
        assert mean == pytest.approx(by_hand / len(answer), rel=1e-4)


def test_a_sample_without_loss_adds_nothing(processor, encoded, model):
    from medq_ray.evolve.encoding import collate
    from medq_ray.evolve.worker import sample_losses, without_loss

    losses = sample_losses(model, collate([without_loss(encoded[0])], processor.tokenizer.pad_token_id))
    losses.sum().backward()
    assert losses.tolist() == [0.0]
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_batches_hold_every_sample_once_and_depend_on_seed_and_epoch():
    from medq_ray.evolve.worker import batches

    first = list(batches(25, 4, [0, 1], 0))
    assert [len(batch) for batch in first] == [4] * 6 + [1]
    assert sorted(i for batch in first for i in batch) == list(range(25))
    assert first == list(batches(25, 4, [0, 1], 0))
    assert first not in (list(batches(25, 4, [0, 1], 1)), list(batches(25, 4, [0, 2], 0)))


def test_learning_rate_rises_then_falls_to_almost_nothing():
    from medq_ray.evolve.worker import learning_rate

    rates = [learning_rate(step, 100, {"learning_rate": 1.0, "warmup": 0.1}) for step in range(1, 101)]
    assert rates[9] == 1.0 == max(rates)
    assert all(a < b for a, b in zip(rates[:9], rates[1:10], strict=True))
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False))
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(1, 1, {"learning_rate": 1.0, "warmup": 0.0}) > 0


def test_a_unit_for_each_block_or_one_for_all_is_the_same_step(processor, samples, encoded, one_rank, monkeypatch):
    """The embedded model's blocks are too small for units of their own; a real model's are not."""
    from torch.distributed.fsdp import FSDPModule

    from medq_ray.evolve import worker
    from medq_ray.evolve.encoding import collate

    inputs = collate(encoded, processor.tokenizer.pad_token_id)
    units, weights = [], []
    for smallest in (worker.UNIT, 1):
        monkeypatch.setattr(worker, "UNIT", smallest)
        model = worker.sharded(worker.load_model(embedded_checkpoint()), torch.device("cpu"))
        units.append(sum(isinstance(module, FSDPModule) for module in model.modules()))
        optimizer = worker.new_optimizer(model, {"learning_rate": 1e-3, "weight_decay": 0.0})
        ids = [sample["question_id"] for sample in samples]
        settings = {"clip_norm": 1.0, "answer_loss": "sum"}
        worker.take_step(model, optimizer, inputs, ids, 1, len(ids), 1e-3, settings)
        weights.append({name: p.full_tensor() for name, p in model.named_parameters()})
    assert units == [1, 8]  # four blocks that see, three that read, and the rest
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_nan_stops_before_the_weights_change_and_names_the_samples(processor, samples, encoded, model, one_rank):
    from medq_ray.evolve import worker
    from medq_ray.evolve.encoding import collate

    tokens, others = encoded[1]
    poisoned = [encoded[0], (tokens, {"pixel_values": torch.full_like(others["pixel_values"], math.nan)})]
    model = worker.sharded(model, torch.device("cpu"))
    optimizer = worker.new_optimizer(model, {"learning_rate": 1e-3, "weight_decay": 0.0})
    before = [p.full_tensor().clone() for p in model.parameters()]
    ids = [sample["question_id"] for sample in samples[:2]]
    inputs = collate(poisoned, processor.tokenizer.pad_token_id)
    with pytest.raises(ValueError, match=f"step 7: loss nan.*1 samples.*{ids[1]}"):
        worker.take_step(model, optimizer, inputs, ids, 7, 2, 1e-3, {"clip_norm": 1.0, "answer_loss": "sum"})
    assert all(torch.equal(p.full_tensor(), old) for p, old in zip(model.parameters(), before, strict=True))


def test_checkpoints_that_cannot_be_trained_are_refused(tmp_path):
    from medq_ray.evolve.encoding import load_processor

    with pytest.raises(ValueError, match="config.json is missing"):
        load_processor(tmp_path / "nowhere")
    silent = tmp_path / "silent"
    shutil.copytree(embedded_checkpoint(), silent)
    (silent / "chat_template.jinja").unlink()
    for name in ("processor_config.json", "tokenizer_config.json"):
        assert "chat_template" not in json.loads((silent / name).read_text())
    with pytest.raises(ValueError, match="no chat template"):
        load_processor(silent)


def test_a_broken_image_is_named_with_its_sample(processor, samples, tmp_path):
    from medq_ray.evolve.encoding import encode_all

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"{samples[0]['question_id']}.*broken.png"):
        encode_all(processor, [{**samples[0], "uri": str(broken)}])
