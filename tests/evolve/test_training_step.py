"""What the loss is, what a packed row computes and what one step does, for both architectures; without Ray."""

import math
import shutil
from pathlib import Path

import pytest

from medq_ray.evolve.packing import Row
from medq_ray.images import read_image
from tests.evolve import fake

torch = pytest.importorskip("torch")

SETTINGS = {"train_vision": True, "train_projector": True, "train_language": True, "activation_checkpointing": False,
            "learning_rate": 1e-3, "weight_decay": 0.0, "clip_norm": 1.0, "answer_loss": "sum"}  # fmt: skip


@pytest.fixture(scope="module")
def encoded(checkpoint, rows):
    """Six samples of different lengths, images and answers, with the comparison among them."""
    from medq_ray.evolve.encoding import SampleEncoder

    encoder = SampleEncoder(checkpoint)
    chosen = sorted(rows, key=lambda row: (-len(row["images"]), row["kind"], row["question_id"]))[:6]
    found = [encoder.read(row) for row in chosen]
    assert len({len(one["input_ids"]) for one in found}) > 2
    return found


@pytest.fixture
def model(checkpoint):
    return loaded(checkpoint)


def loaded(checkpoint: Path, **changes: object):
    """As one process holds it."""
    torch.set_num_threads(1)
    return fake.trainable(checkpoint, SETTINGS | changes)


def sharded(checkpoint: Path):
    """As a worker loads it."""
    from medq_ray.evolve.worker import load_model

    torch.set_num_threads(1)
    return load_model(checkpoint, SETTINGS, torch.device("cpu"))


@pytest.fixture
def one_rank():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(model, *rows: list) -> tuple[list[float], dict]:
    """Losses of all samples and the summed gradient, from rows one after another."""
    from medq_ray.evolve.encoding import pack
    from medq_ray.evolve.worker import sample_losses

    model.zero_grad()
    losses = []
    for row in rows:
        own = sample_losses(model, pack(row))
        own.sum().backward()
        losses += own.tolist()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(ours: dict, theirs: dict, tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    scale = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    assert scale > 0
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= tolerance * max(gradient.norm(), 1e-3 * scale), name


def test_loss_is_the_hand_computed_one_on_answer_tokens_only(checkpoint, rows, model):
    """Against transformers' own model and attention, one sample at a time, called as its users call it."""
    from transformers import AutoModelForImageTextToText

    from medq_ray.evolve.encoding import SampleEncoder, pack
    from medq_ray.evolve.worker import sample_losses

    encoder = SampleEncoder(checkpoint)
    plain = AutoModelForImageTextToText.from_pretrained(checkpoint, attn_implementation="eager")
    chosen = sorted(rows, key=lambda row: (-len(row["images"]), row["question_id"]))[:4]
    row = pack([encoder.read(sample) for sample in chosen])
    sums, means = (sample_losses(model, row, joined).tolist() for joined in ("sum", "mean"))
    for sample, loss, mean in zip(chosen, sums, means, strict=True):
        pixels = [read_image(uri).copy() for uri in sample["images"]]
        question, answer = (turn["content"][-1]["text"] for turn in sample["messages"])
        content = [{"type": "image"}] * len(pixels) + [{"type": "text", "text": question}]
        prompt = encoder.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        tokenizer = encoder.processor.tokenizer
        end = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        inputs = encoder.processor(images=pixels, text=[prompt + answer + tokenizer.eos_token], return_tensors="pt")
        assert inputs["input_ids"][0, -len(end) :].tolist() == end
        with torch.no_grad():
            logits = plain(**inputs).logits[0].double()
        by_hand = 0.0
        for back in range(len(end), 0, -1):  # -log p(y_i | y_<i, x, q), eq. 4
            scores = logits[-back - 1].tolist()
            highest = max(scores)
            by_hand += math.log(sum(math.exp(s - highest) for s in scores)) + highest - scores[end[-back]]
        assert loss == pytest.approx(by_hand, rel=1e-4)
        assert mean == pytest.approx(by_hand / len(end), rel=1e-4)


def test_packed_and_unpacked_samples_have_the_same_losses_and_gradients(model, encoded):
    apart, apart_gradient = gradients(model, *([one] for one in encoded))
    together, gradient = gradients(model, encoded)
    assert together == pytest.approx(apart, rel=1e-4)
    assert_close(gradient, apart_gradient, 1e-3)
    two_rows, halves = gradients(model, encoded[:2], encoded[2:])
    assert two_rows == pytest.approx(apart, rel=1e-4)
    assert_close(halves, apart_gradient, 1e-3)


def test_changing_one_sample_moves_no_logit_of_another(model, encoded):
    """Not by rounding: by nothing at all, since nothing of one sample is in another's sums."""
    from medq_ray.evolve.encoding import pack
    from medq_ray.evolve.worker import answer_logits

    changed = {**encoded[1], "pixel_values": encoded[1]["pixel_values"].flip(0) + 1}
    changed["input_ids"] = encoded[1]["input_ids"].clone()
    changed["input_ids"][-3] = changed["input_ids"][-3] % 200 + 100
    before, after = (pack([encoded[0], one, *encoded[2:]]) for one in (encoded[1], changed))
    with torch.no_grad():
        (ours, places), (others, _) = (answer_logits(model, row) for row in (before, after))
    start, end = before["lengths"].cumsum(0)[:2].tolist()
    touched = (places >= start) & (places < end)
    assert touched.any() and (~touched).any()
    assert not torch.equal(ours[touched], others[touched])
    assert torch.equal(ours[~touched], others[~touched])


def test_computing_activations_again_changes_no_gradient(checkpoint, model, encoded):
    again = loaded(checkpoint, activation_checkpointing=True)
    assert again.is_gradient_checkpointing and not model.is_gradient_checkpointing
    (losses, gradient), (kept, kept_gradient) = gradients(again, encoded), gradients(model, encoded)
    assert losses == kept
    assert_close(gradient, kept_gradient, 1e-6)


@pytest.mark.parametrize("part", ["vision", "projector", "language"])
def test_a_part_that_is_not_trained_gets_no_gradient_and_the_others_do(checkpoint, encoded, part):
    from medq_ray.evolve.adapters import adapter_of
    from medq_ray.evolve.worker import new_optimizer

    model, adapter = loaded(checkpoint, **{f"train_{part}": False}), adapter_of(checkpoint)
    _, found = gradients(model, encoded)
    names = {name for name, _ in model.named_parameters()}
    frozen = {name for name in names if adapter.part(name) == part}
    assert frozen and found.keys() == names - frozen
    assert {adapter.part(name) for name in names} == {"vision", "projector", "language"}
    assert all(gradient.any() for gradient in found.values())
    held = sum(p.numel() for group in new_optimizer(model, SETTINGS).param_groups for p in group["params"])
    assert held == sum(p.numel() for name, p in model.named_parameters() if name not in frozen)


def test_learning_rate_rises_then_falls_to_almost_nothing():
    from medq_ray.evolve.worker import learning_rate

    rates = [learning_rate(step, 100, {"learning_rate": 1.0, "warmup": 0.1}) for step in range(1, 101)]
    assert rates[9] == 1.0 == max(rates)
    assert all(a < b for a, b in zip(rates[:9], rates[1:10], strict=True))
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False))
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(1, 1, {"learning_rate": 1.0, "warmup": 0.0}) > 0


def stepped(model, rows: list[tuple[Row, list]]) -> dict:
    """One step of `rows` on one rank."""
    from medq_ray.evolve import worker
    from medq_ray.evolve.encoding import pack

    optimizer = worker.new_optimizer(model, SETTINGS)
    packed = [(row, pack(samples)) for row, samples in rows]
    done = [(row, tensors, worker.backward(model, tensors, row, "sum")) for row, tensors in packed]
    samples = [{"question_id": f"q{i}"} for i in range(10)]
    return worker.finish_step(model, optimizer, done, samples, 1e-3, SETTINGS)


def test_units_rows_and_rows_that_do_not_count_make_no_difference(checkpoint, encoded, one_rank, monkeypatch):
    """The embedded model's blocks are too small for units of their own; a real model's are not."""
    from torch.distributed.fsdp import FSDPModule

    from medq_ray.evolve import worker

    whole = [(Row(1, (0, 1, 2, 3, 4, 5), 6, True), encoded)]
    parts = [(Row(1, (0, 1), 6, False), encoded[:2]), (Row(1, (5,), 6, False, counted=False), encoded[5:]),
             (Row(1, (2, 3, 4, 5), 6, True), encoded[2:])]  # fmt: skip
    units, weights, numbers = [], [], []
    for smallest, rows in ((worker.UNIT, whole), (1, whole), (worker.UNIT, parts)):
        monkeypatch.setattr(worker, "UNIT", smallest)
        model = sharded(checkpoint)
        units.append(sum(isinstance(module, FSDPModule) for module in model.modules()))
        numbers.append(stepped(model, rows))
        weights.append({name: p.full_tensor() for name, p in model.named_parameters()})
        monkeypatch.undo()
    assert units[0] == units[2] == 1 and units[1] > 6
    for found in numbers[1:]:
        assert found == {name: pytest.approx(value, rel=1e-4) for name, value in numbers[0].items()}
    for other in weights[1:]:
        for name, weight in weights[0].items():  # Adam's first step is the sign of a gradient, also of a tiny one
            assert ((weight - other[name]).abs() > 1e-4).float().mean() < 0.02, name


def test_nan_stops_before_the_weights_change_and_names_the_samples(checkpoint, encoded, one_rank):
    from medq_ray.evolve import worker

    poisoned = [encoded[2], {**encoded[3], "pixel_values": torch.full_like(encoded[3]["pixel_values"], math.nan)}]
    model = sharded(checkpoint)
    before = [p.full_tensor().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="step 7: loss nan.*1 samples.* q3; .*lower evolve.learning_rate"):
        stepped(model, [(Row(7, (2, 3), 2, True), poisoned)])
    assert all(torch.equal(p.full_tensor(), old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_model_that_was_not_trained_is_exported_as_it_was_loaded(checkpoint, one_rank, tmp_path):
    """Through shards and back, byte for byte, by the same names."""
    from medq_ray.evolve.checkpoint import export

    export(sharded(checkpoint), checkpoint, tmp_path / "export", 0)
    files, again = ({path.name: path.read_bytes() for path in folder.iterdir()}
                    for folder in (checkpoint, tmp_path / "export"))  # fmt: skip
    assert again == files


def test_a_checkpoint_in_bfloat16_is_trained_in_float32_and_exported_as_it_came(checkpoint, one_rank, tmp_path):
    """Steps of 2e-5 are lost in bfloat16, which has three decimal digits."""
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    from medq_ray.evolve import worker
    from medq_ray.evolve.checkpoint import export

    folder = shutil.copytree(checkpoint, tmp_path / "half")
    AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16).save_pretrained(folder)
    model = sharded(folder)
    optimizer = worker.new_optimizer(model, SETTINGS)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert {tensor.dtype for tensor in (*model.parameters(), *moments)} == {torch.float32}
    export(model, folder, tmp_path / "export", 0)
    assert {weight.dtype for weight in load_file(tmp_path / "export" / "model.safetensors").values()} == {torch.bfloat16}


def test_weights_that_are_cut_off_or_missing_are_refused(checkpoint, one_rank, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    path = folder / "model.safetensors"
    weights = load_file(path)
    lost = sorted(weights)[-1]
    save_file({name: weight for name, weight in weights.items() if name != lost}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"checkpoint {folder}: 1 of its tensors are missing"):
        sharded(folder)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"checkpoint {folder}: its weights cannot be read; copy"):
        sharded(folder)


@pytest.fixture
def no_room():
    """No file may be larger than 100 kB: a write fails as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_with_what_found_no_room(checkpoint, one_rank, tmp_path, no_room):
    from medq_ray.evolve import worker
    from medq_ray.evolve.checkpoint import export, save

    model = sharded(checkpoint)
    with pytest.raises(ValueError, match=f"checkpoint after step 7 .* {tmp_path}, .* GB are free; make room"):
        save(model, worker.new_optimizer(model, SETTINGS), 7, 0, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"trained checkpoint .* {tmp_path}, .* GB are free; make room"):
        export(model, checkpoint, tmp_path / "export", 0)


def test_counted_operations_are_those_that_torch_counts(checkpoint, encoded):
    """Within 10 %: ours counts weights, torch what its kernels were given. Ours are more by biases and by the gradient
    of the pixels, which nobody computes: 3 % of the tiny Qwen's, whose patches are a tenth of its weights."""
    from torch.utils.flop_counter import FlopCounterMode

    from medq_ray.evolve.adapters import adapter_of
    from medq_ray.evolve.encoding import pack
    from medq_ray.evolve.flops import step_flops
    from medq_ray.evolve.metrics import patch_values, sizes_of
    from medq_ray.evolve.worker import sample_losses

    model, row = loaded(checkpoint), pack(encoded)
    with FlopCounterMode(display=False) as counter:
        sample_losses(model, row).sum().backward()
    patches, seen = row["pixel_values"].numel() // patch_values(model), row["input_ids"] == model.config.image_token_id
    ours = step_flops(sizes_of(model, adapter_of(checkpoint)), row["lengths"].tolist(),
                      int((row["labels"] >= 0).sum()), patches, int(seen.sum()))  # fmt: skip
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.1)
