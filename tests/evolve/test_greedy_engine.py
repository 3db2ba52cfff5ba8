"""What a fine-tuning exports answers the same under vLLM, as the loop serves it, as under transformers: both
architectures, trained on two workers.

Greedy answers to 50 questions, over HTTP through the loop's own client. Pictures are of three sizes, so that both sides
have to resize them alike.
"""

import pyarrow as pa
import pytest
from PIL import Image

from medq_ray import config
from medq_ray.evolve.dataset import read_dataset, write_dataset
from medq_ray.evolve.feed import measure
from medq_ray.evolve.sft import fine_tune
from medq_ray.images import read_image
from medq_ray.model.ask import ask
from medq_ray.model.chat import Endpoint, Sampling
from medq_ray.model.deploy import serve_checkpoint
from medq_ray.model.prompts import prompt_of, render, uris_of
from medq_ray.model.tiny import embedded_checkpoint
from medq_ray.schema import KINDS, PROMPT
from tests import tiny_qwen
from tests.evolve import fake

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
SIZES = ((112, 112), (150, 90), (130, 200))
QUESTIONS, TOKENS = 50, 48
TIE = 0.125
"""Two tokens are a true tie when their logits are nearer: bfloat16 has steps of 1/16 between 8 and 16. None of 50 was
needed on the machine where this was written; another CPU may sum in another order."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    images = fake.write_images(tmp_path_factory.mktemp("images"), 13)
    for i, image in enumerate(images):
        with Image.open(image["uri"]) as picture:
            picture.resize(SIZES[i % len(SIZES)], Image.Resampling.BICUBIC).save(image["uri"])
    return images


@pytest.fixture(scope="module")
def samples(images):
    """With prompt and answer, four about an image."""
    asked = [(image, fake.question(image, kind)) for image in images for kind in KINDS][:QUESTIONS]
    return [q | {"prompt": render(q["text"], q["options"]), "answer": fake.truth(i, q)} for i, q in asked]


@pytest.fixture(scope="module")
def trained_qwen(ray_local, images, tmp_path_factory):
    """From random weights until it is sure of its answers: rounding would decide which of two tokens is first."""
    folder = tmp_path_factory.mktemp("qwen")
    start, dataset = tiny_qwen.write(folder / "start", seed=0), folder / "dataset"
    write_dataset(dataset, fake.samples(images).slice(0, QUESTIONS), fake.pooled(images))
    settings = config.Config(evolve=config.Evolve(
        learning_rate=3e-3, epochs=24, batch_size=10, answer_loss="mean", weight_decay=0, activation_checkpointing=False
    ))  # fmt: skip
    tokens = measure(read_dataset(dataset)[0].to_pylist(), start, 1)
    fine_tune(folder, dataset=dataset, tokens=tokens, checkpoint=start, config=settings, iteration=0)
    return folder / "checkpoint"


def served(url, name, samples, cache):
    prompts = pa.Table.from_pylist([prompt_of(sample) for sample in samples], schema=PROMPT)
    found = ask(prompts, Endpoint(url, name), Sampling(temperature=0.0, max_tokens=TOKENS), cache, "greedy").to_pylist()
    assert [row["error"] for row in found] == [""] * len(samples)
    texts = {row["question_id"]: row["text"] for row in found}
    return [texts[sample["question_id"]] for sample in samples]


@pytest.fixture(scope="module")
def load():
    """(encoder, model) of a folder under transformers, in the number format that `deploy.llm_config` asks for."""
    import torch
    from transformers import AutoModelForImageTextToText

    from medq_ray.evolve.encoding import SampleEncoder

    torch.set_num_threads(1)  # the engine computes beside it
    return lambda folder: (
        SampleEncoder(folder), AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).eval()
    )  # fmt: skip


def pictures(sample):
    return [read_image(uri).copy() for uri in uris_of(sample)]


def generated(encoder, model, sample):
    import torch

    from medq_ray.evolve.encoding import chat

    prompt, _ = chat(encoder.processor, sample["prompt"], "")
    inputs = encoder.processor(images=pictures(sample), text=[prompt], return_tensors="pt").to(torch.bfloat16)
    with torch.inference_mode():
        (tokens,) = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return encoder.processor.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def shortfall(encoder, model, sample, answer):
    """By how much a token of `answer`, after those before it, has a lower logit than the best one: the most of any."""
    import torch

    from medq_ray.evolve.encoding import IGNORED

    row = encoder.encode(pictures(sample), sample["prompt"], answer)
    tokens, labels, positions = row.pop("input_ids"), row.pop("labels")[1:], row.pop("positions")
    others = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in row.items()}
    with torch.inference_mode():
        logits = model(
            input_ids=tokens[None], position_ids=positions if len(positions) == 1 else positions[:, None], **others
        ).logits[0, :-1]
    said = labels != IGNORED
    scores = logits[said].float()
    return (scores.amax(1) - scores.gather(1, labels[said][:, None])[:, 0]).max().item()


def compare(encoder, model, samples, answers):
    ties = []
    for sample, answer in zip(samples, answers, strict=True):
        expected = generated(encoder, model, sample)
        if answer != expected:
            lost = shortfall(encoder, model, sample, answer)
            assert lost < TIE, f"{sample['question_id']}: {answer!r} is {lost:.3f} below {expected!r}"
            ties.append((sample["question_id"], answer, expected, lost))
    print(f"{len(samples) - len(ties)} of {len(samples)} answers are equal; ties: {ties}")
    assert len(ties) <= 2, ties


def test_the_trained_internvl(unbroken, samples, load, tmp_path):
    checkpoint = unbroken[0] / "checkpoint"
    with serve_checkpoint(checkpoint, "internvl", config.Engine()) as url:
        answers = served(url, "internvl", samples, tmp_path)
    compare(*load(checkpoint), samples, answers)


def test_the_trained_qwen(trained_qwen, samples, load, tmp_path):
    with serve_checkpoint(trained_qwen, "qwen", config.Engine()) as url:
        answers = served(url, "qwen", samples, tmp_path)
    compare(*load(trained_qwen), samples, answers)
    told = {}
    for sample, answer in zip(samples, answers, strict=True):
        told.setdefault(sample["prompt"], set()).add(answer)
    assert max(map(len, told.values())) > 1  # it looks: one question about several pictures, and more than one answer


def test_another_answer_is_no_tie(samples, load):
    loaded = load(embedded_checkpoint())
    told = generated(*loaded, samples[0])
    assert shortfall(*loaded, samples[0], told) < TIE < shortfall(*loaded, samples[0], {"A": "B"}.get(told, "A"))
