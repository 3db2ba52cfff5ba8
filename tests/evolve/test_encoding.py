"""What a sample looks like to the model, for both architectures."""

import json
import shutil

import numpy as np
import pytest

from medq_ray.evolve.adapters import adapter_of
from medq_ray.images import read_image
from medq_ray.model.tiny import embedded_checkpoint

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def encoder(checkpoint):
    from medq_ray.evolve.encoding import SampleEncoder

    return SampleEncoder(checkpoint)


def said(row: dict) -> tuple[str, str]:
    return row["messages"][0]["content"][-1]["text"], row["messages"][1]["content"][0]["text"]


def test_the_prompt_is_what_is_served_and_labels_are_the_answer_and_its_end(encoder, rows):
    from medq_ray.evolve.encoding import IGNORED

    for row in rows:
        encoded = encoder.read(row)
        ids, labels = encoded["input_ids"], encoded["labels"]
        question, answer = said(row)
        served = [{"type": "image"}] * len(row["images"]) + [{"type": "text", "text": question}]
        asked = encoder.processor.apply_chat_template(
            [{"role": "user", "content": served}], tokenize=False, add_generation_prompt=True
        )
        pixels = [read_image(uri).copy() for uri in row["images"]]
        prompt = encoder.processor(images=pixels, text=[asked])["input_ids"][0]
        assert ids[: len(prompt)].tolist() == list(prompt)
        assert (labels[: len(prompt)] == IGNORED).all()
        assert labels[len(prompt) :].tolist() == ids[len(prompt) :].tolist()
        end = encoder.processor.tokenizer.eos_token
        assert encoder.processor.tokenizer.decode(ids[len(prompt) :]) == answer + end


def test_positions_are_those_that_the_model_itself_would_take(encoder, checkpoint, rows):
    """Caught where the language model gets them, when the model is called as transformers' users call it."""
    from transformers import AutoModelForImageTextToText

    model, caught = AutoModelForImageTextToText.from_pretrained(checkpoint), []
    rotary = model.model.language_model.rotary_emb
    rotary.register_forward_pre_hook(lambda _, arguments, named: caught.append(named.get("position_ids", arguments[-1])),
                                     with_kwargs=True)  # fmt: skip
    for row in rows:
        pixels = [read_image(uri).copy() for uri in row["images"]]
        content = [{"type": "image"}] * len(pixels) + [{"type": "text", "text": said(row)[0]}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": said(row)[1]}]
        text = encoder.processor.apply_chat_template(turns, tokenize=False)
        inputs = encoder.processor(images=pixels, text=[text], return_tensors="pt")
        with torch.inference_mode():
            model(**inputs)
        ours = encoder.read(row)["positions"]
        theirs = caught.pop().reshape(-1, inputs["input_ids"].shape[1])
        assert len(theirs) == len(ours) == (3 if "image_grid_thw" in inputs else 1)
        assert torch.equal(ours, theirs[:, : ours.shape[1]])


def test_a_comparison_has_both_images_in_their_order(encoder, rows):
    pair = next(row for row in rows if len(row["images"]) == 2)
    both = encoder.read(pair)
    alone = [encoder.read(pair | {"images": [uri], "messages": one_image(pair)}) for uri in pair["images"]]
    assert torch.equal(both["pixel_values"], torch.cat([one["pixel_values"] for one in alone]))


def one_image(row: dict) -> list[dict]:
    question, reply = row["messages"]
    return [{**question, "content": question["content"][1:]}, reply]


def test_packing_loses_nothing_and_says_where_samples_end(encoder, rows):
    from medq_ray.evolve.encoding import pack

    encoded = [encoder.read(row) for row in rows]
    row = pack(encoded)
    ends = row["lengths"].cumsum(0).tolist()
    assert row["input_ids"].shape == row["labels"].shape == row["positions"].shape[1:] == (ends[-1],)
    for one, start, end in zip(encoded, [0, *ends], ends, strict=False):
        for name in ("input_ids", "labels", "positions"):
            assert torch.equal(row[name][..., start:end], one[name]), name
    assert torch.equal(row["pixel_values"], torch.cat([one["pixel_values"] for one in encoded]))


def test_images_of_other_sizes_have_other_numbers_of_tokens(qwen, rows):
    from medq_ray.evolve.encoding import SampleEncoder

    encoder = SampleEncoder(qwen)
    counts = set()
    for row in rows:
        if len(row["images"]) == 1:
            ids = encoder.read(row)["input_ids"]
            counts.add((row["images"][0], int((ids == encoder.model.config.image_token_id).sum())))
    assert sorted(count for _, count in counts) == [15, 16, 24]  # one for each image, of 84x140, 112x112, 168x112


@pytest.mark.parametrize("break_it, complaint", [
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template; add chat_template.jinja"),
    (lambda folder: edit(folder / "config.json", model_type="llava"), "no adapter to fine-tune a 'llava' model; there "
                                                                      "are: internvl, qwen2_5_vl"),
    (lambda folder: (folder / "config.json").write_text("{'single': 1}"), "config.json is not JSON .*copy it again"),
    (lambda folder: (folder / "tokenizer.json").write_text('{"version": '), "tokenizer.json is not JSON .*copy it"),
])  # fmt: skip
def test_checkpoints_that_cannot_be_trained_are_refused(tmp_path, break_it, complaint):
    folder = shutil.copytree(embedded_checkpoint(), tmp_path / "checkpoint")
    adapter_of(folder)
    break_it(folder)
    with pytest.raises(ValueError, match=f"checkpoint .*{complaint}"):
        adapter_of(folder)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("template, complaint", [
    ("{% for m in messages %}{{ m['role'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}say:{% endif %}",
     "continuation of its generation prompt"),
    ("{% for m in messages %}{{ m['role'] }}\n{% endfor %}", "does not end an answer with '<|im_end|>'"),
    ("{% for m in messages %}", "chat template cannot be used: .*end of template"),
])  # fmt: skip
def test_chat_templates_that_cannot_be_trained_with_are_refused(template, complaint):
    from medq_ray.evolve.encoding import SampleEncoder

    encoder = SampleEncoder(embedded_checkpoint())
    encoder.processor.chat_template = template
    with pytest.raises(ValueError, match=complaint):
        encoder.encode([np.zeros((112, 112, 3), np.uint8)], "Which?", "A")


def test_a_broken_image_is_named_with_its_sample(encoder, rows, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"sample {rows[0]['question_id']}: .*broken.png"):
        encoder.read({**rows[0], "images": [str(broken)] * len(rows[0]["images"])})
