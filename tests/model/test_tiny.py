"""The embedded base model loads, answers, keeps its wording and is competent exactly where it should be."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medq_ray import questions
from medq_ray.model import tiny
from medq_ray.model.assets.corpus import Drawn, everyday_plan
from medq_ray.model.assets.train_vlm import pixels_of, training_question, world_questions
from medq_ray.model.prompts import parse_letter, render
from medq_ray.schema import DEGRADATIONS, EVERYDAY, MODALITIES, SEVERITIES
from medq_ray.synthetic.world import make_image

ASSETS = tiny.embedded_checkpoint().parent
FIRST_SEED = 990_000_000


@pytest.fixture(scope="module")
def base():
    from transformers import AutoProcessor, InternVLForConditionalGeneration

    folder = tiny.embedded_checkpoint()
    return InternVLForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def replies(base, asked: list[tuple[np.ndarray, str]], tokens: int = 4) -> list[str]:
    """Greedy answers of the shipped checkpoint by transformers' own processor and `generate`."""
    model, processor = base
    turns = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}] for _, prompt in asked
    ]
    text = [processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
    inputs = processor(images=[[image] for image, _ in asked], text=text, padding=True, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def accuracy(base, rows: list[Drawn]) -> float:
    """Share of right letters over the three perception kinds, asked as a world asks."""
    asked = [q for q in world_questions(rows, 0) if q["options"]]
    images = [make_image(*row)[0] for row in rows]
    said = replies(base, [(images[int(q["image_id"])], render(q["text"], q["options"])) for q in asked])
    return float(np.mean([parse_letter(r, len(q["options"])) == q["answer"] for r, q in zip(said, asked, strict=True)]))


def test_the_vision_tower_is_the_encoders(base):
    """The mean patch of both towers agrees up to the encoder's half precision: it was copied whole and then frozen."""
    from medq_ray.model.encoder import load_encoder

    images = np.stack([make_image(m, DEGRADATIONS[m][2], "severe", FIRST_SEED)[0] for m in MODALITIES])
    visual = load_encoder("embedded").model.visual
    with torch.inference_mode():
        ours = base[0].model.vision_tower(pixels_of(images)).last_hidden_state[:, 1:].mean(1)
        theirs, _ = visual._pool(visual.transformer(visual._embeds(pixels_of(images))))
        torch.testing.assert_close(visual.ln_post(ours), theirs, rtol=0.01, atol=0.01)


def test_base_is_competent_on_everyday_cells_and_blind_to_specific_ones(base):
    usual = [(m, d) for m in MODALITIES for d in DEGRADATIONS[m] if d in EVERYDAY]
    specific = [(m, d) for m in MODALITIES for d in DEGRADATIONS[m] if d not in EVERYDAY]
    rows = [
        [Drawn(*cells[i % len(cells)], SEVERITIES[1 + i // len(cells) % 2], FIRST_SEED + i) for i in range(count)]
        for cells, count in ((usual, 60), (specific, 120))
    ]
    competent, blind = (accuracy(base, part) for part in rows)
    assert competent > 0.75
    assert competent - blind >= 0.25
    assert blind < (1 / 2 + 1 / 4 + 1 / 3) / 3  # guessing: yes/no, one of four, one of three


def test_base_describes_in_the_reference_form(base):
    image, _ = make_image("fundus", "blur", "severe", FIRST_SEED)
    (text,) = replies(base, [(image, questions.description("fundus"))], tokens=48)
    assert questions.read_description(text)["modality"] == "fundus"


def test_every_prompt_and_answer_survives_the_tokenizer(base):
    tokenizer = base[1].tokenizer
    for line in tiny.wording():
        assert tokenizer.decode(tokenizer(line).input_ids) == line
    assert tokenizer.decode(tokenizer("naïve 中文 Größe").input_ids) == "naïve 中文 Größe"


def test_names_are_few_tokens_and_answers_one(base):
    tokenizer = base[1].tokenizer
    for name in questions.DEGRADATION_NAMES.values():
        assert len(tokenizer(" " + name).input_ids) <= 4, name
    end = tokenizer.convert_tokens_to_ids(tiny.END)
    for letter in questions.LETTERS:
        turn = tokenizer(f"<|im_start|>assistant\n{letter}{tiny.END}").input_ids
        assert turn[-1] == end and tokenizer.decode(turn[-2:-1]) == letter


def test_chat_template_is_image_newline_text(base):
    content = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "Is it?"}]
    text = base[1].apply_chat_template(
        [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}], tokenize=False
    )
    assert text == "<|im_start|>user\n<IMG_CONTEXT>\nIs it?<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"


def test_training_sees_the_pixels_that_the_processor_makes(base):
    image, _ = make_image("ct", "none", "none", FIRST_SEED)
    made = base[1].image_processor(images=[image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(made, pixels_of(image[None]), rtol=0, atol=1e-5)


def test_training_shows_no_specific_degradation():
    rng = np.random.default_rng(0)
    hidden = {questions.DEGRADATION_NAMES[d] for names in DEGRADATIONS.values() for d in names if d not in EVERYDAY}
    for row in everyday_plan(600):
        assert row.degradation == "none" or row.degradation in EVERYDAY
        assert not any(name in training_question(row, "description", rng)[1] for name in hidden)
        prompt, letter = training_question(row, "what", rng)
        (option,) = [line[3:] for line in prompt.split("\n") if line.startswith(f"{letter}. ")]
        assert option not in hidden


def test_build_and_save_are_deterministic(tmp_path):
    files = []
    for name in ("a", "b"):
        model, processor = tiny.build(3)
        tiny.save(model, processor, tmp_path / name)
        files.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert files[0] == files[1]
    other, _ = tiny.build(4)
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)
    assert 1e6 < sum(p.numel() for p in other.parameters()) < 4e6


def test_patch_filters_are_orthogonal_and_reach_the_finest_detail():
    filters = tiny.dct_filters(128, 14).reshape(128, -1)
    products = filters @ filters.T
    scale = np.sqrt(np.diag(products))
    np.testing.assert_allclose(products / np.outer(scale, scale), np.eye(128), atol=1e-5)
    checkerboard = np.indices((14, 14)).sum(0) % 2 - 0.5
    assert np.abs(filters @ np.tile(checkerboard, (3, 1, 1)).ravel()).max() > 0.1


def test_assets_fit_into_twelve_megabytes():
    assert sum(p.stat().st_size for p in Path(ASSETS).rglob("*") if p.is_file()) <= 12_000_000


def test_render_is_the_form_that_the_tokenizer_was_trained_on():
    assert render(*questions.yes_no("mri", None)) in tiny.wording()
