"""A checkpoint folder answers the same under vLLM, as the loop serves it, as under transformers: both architectures.

Greedy answers to 50 questions, over HTTP through the loop's own client. Pictures are of three sizes, so that both sides
have to resize them alike.
"""

import pyarrow as pa
import pytest
from PIL import Image

from medq_ray import config
from medq_ray.images import read_image
from medq_ray.model.ask import ask
from medq_ray.model.chat import Endpoint, Sampling
from medq_ray.model.prompts import prompt_of, render, uris_of
from medq_ray.model.tiny import embedded_checkpoint
from medq_ray.schema import KINDS, PROMPT
from tests import tiny_qwen
from tests.evolve import fake

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
SIZES = ((112, 112), (150, 90), (130, 200))
TOKENS = 48


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """50 questions with prompt and answer, four about an image."""
    images = fake.write_images(tmp_path_factory.mktemp("images"), 13)
    for i, image in enumerate(images):
        with Image.open(image["uri"]) as picture:
            picture.resize(SIZES[i % len(SIZES)], Image.Resampling.BICUBIC).save(image["uri"])
    asked = [(image, fake.question(image, kind)) for image in images for kind in KINDS][:50]
    return [q | {"prompt": render(q["text"], q["options"]), "answer": fake.truth(i, q)} for i, q in asked]


@pytest.fixture(scope="module")
def trained_qwen(samples, tmp_path_factory):
    return train(tiny_qwen.write(tmp_path_factory.mktemp("qwen"), seed=0), samples, steps=160)


def train(checkpoint, samples, steps):
    """The checkpoint after `steps` of plain torch on ten of the samples each, in place: random weights are never sure
    of a token, and would leave it to rounding which of two is first."""
    import torch
    from transformers import AutoModelForImageTextToText

    from medq_ray.evolve.encoding import collate, encode_all, load_processor

    torch.set_num_threads(1)
    processor = load_processor(checkpoint)
    encoded = encode_all(processor, samples)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).train()
    # Without warm-up, and with Adam's usual 0.999, 100 steps end in answers that do not depend on the picture.
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    draws = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min((step + 1) / 10, 1 - step / steps)
        batch = [encoded[i] for i in torch.randperm(len(encoded), generator=draws)[:10].tolist()]
        model(**collate(batch, processor.tokenizer.pad_token_id)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(checkpoint)
    return checkpoint


def served(url, name, samples, cache):
    prompts = pa.Table.from_pylist([prompt_of(sample) for sample in samples], schema=PROMPT)
    found = ask(prompts, Endpoint(url, name), Sampling(temperature=0.0, max_tokens=TOKENS), cache, "greedy").to_pylist()
    assert [row["error"] for row in found] == [""] * len(samples)
    texts = {row["question_id"]: row["text"] for row in found}
    return [texts[sample["question_id"]] for sample in samples]


def generated(checkpoint, samples):
    """The answers of transformers, in the number format that vLLM computes with (`deploy.llm_config`)."""
    import torch
    from transformers import AutoModelForImageTextToText

    from medq_ray.evolve.encoding import chat, load_processor

    processor = load_processor(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    texts = []
    for sample in samples:
        prompt, _ = chat(processor, sample["prompt"], "")
        pictures = [read_image(uri).copy() for uri in uris_of(sample)]
        inputs = processor(images=pictures, text=[prompt], return_tensors="pt").to(torch.bfloat16)
        with torch.inference_mode():
            (tokens,) = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        texts.append(processor.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def test_the_embedded_internvl(vlm_endpoint, samples, tmp_path):
    assert served(vlm_endpoint, "base", samples, tmp_path) == generated(embedded_checkpoint(), samples)


def test_a_qwen(ray_local, trained_qwen, samples, tmp_path):
    from medq_ray.model.deploy import serve_checkpoint

    with serve_checkpoint(trained_qwen, "qwen", config.Engine()) as url:
        answers = served(url, "qwen", samples, tmp_path)
    assert answers == generated(trained_qwen, samples)
    assert len(set(answers)) > 5  # one answer to everything would be equal too
