"""The embedded model under training: an InternVL of 1.7 M parameters that transformers and vLLM both load.

Floor 2. A ViT of 4 layers x 128 sees 112x112 pixels as 8x8 patches, a pixel shuffle makes 16 image tokens of them and
a Qwen2-style language model of 3 layers x 128 answers. Sizes are our choice: small enough for two CPU cores, and every
part of a real InternVL is there. The shipped weights come from `python -m medq_ray.model.assets.train vlm`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medq_ray import questions
from medq_ray.model.prompts import render
from medq_ray.schema import DEGRADATIONS, GRADES, MODALITIES, SEVERITIES

if TYPE_CHECKING:
    from transformers import InternVLForConditionalGeneration, InternVLProcessor, PreTrainedTokenizerFast

SIZE, PATCH, WIDTH, IMAGE_TOKENS = 112, 14, 128, 16
VOCABULARY = 576
"""Most tokens of the byte-level BPE: 256 bytes, 7 special ones and merges; the wording needs no more."""
MEAN, STD = 0.5, 0.25
"""Pixel normalisation of all three channels."""

END = "<|im_end|>"
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ['image', 'image_url'] %}<IMG_CONTEXT>
{% else %}{{ part['text'] }}{% endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
"""User turn: image, newline, text. Assistant turn: answer and END."""


def embedded_checkpoint() -> Path:
    """Folder of the shipped base model."""
    return Path(__file__).parent / "assets" / "vlm"


def wording() -> list[str]:
    """Every prompt and answer form of `medq_ray.questions`, once each: what the tokenizer is trained on."""
    rng = np.random.default_rng(0)
    lines = list(questions.LETTERS)
    for modality in MODALITIES:
        lines.append(questions.description(modality))
        lines.append(render(*questions.what(modality, DEGRADATIONS[modality], rng)))
        lines += [render(*questions.yes_no(modality, name)) for name in (None, *DEGRADATIONS[modality])]
        lines += [render(*questions.how(modality, general, rng)) for general in (True, False)]
        lines.append(questions.describe(modality, "none", "none"))
        for name in DEGRADATIONS[modality]:
            lines += [questions.describe(modality, name, severity) for severity in SEVERITIES[1:]]
    lines += [f" {name}" for name in (*GRADES, *SEVERITIES)]
    return lines


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over `wording`: each of its words is one or two tokens, any other text falls back to bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", END, *special.values()],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    turns = [f"<|im_start|>user\n{line}{END}\n<|im_start|>assistant\n" for line in wording()]
    tokenizer.train_from_iterator(turns, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token="<|endoftext|>",
        extra_special_tokens=special,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
    """Resizes an image to one tile of SIZE x SIZE, normalises it and writes the chat turns."""
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    side = {"height": SIZE, "width": SIZE}
    normal = {"image_mean": [MEAN] * 3, "image_std": [STD] * 3}
    return InternVLProcessor(
        GotOcr2ImageProcessor(size=side, crop_to_patches=False, min_patches=1, max_patches=1, **normal),
        tokenizer,
        InternVLVideoProcessor(size=side, **normal),
        image_seq_length=IMAGE_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def dct_filters(count: int, side: int) -> np.ndarray:
    """float32 (count, 3, side, side): 2-D DCT-II filters, lowest frequencies first, as a start for patch embeddings.

    Three of four filters are of luminance, the others of the two opponent colours. Amplitudes rise with frequency f
    as 1 + f, since those of images fall about so: without it blur and noise hide below the patch mean. Our choice.
    """
    grid = (np.arange(side) + 0.5) * np.pi / side
    waves = np.cos(np.outer(np.arange(side), grid)) * np.sqrt(2 / side)
    waves[0] /= np.sqrt(2)
    order = sorted(np.ndindex(side, side), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))
    colours = [(np.array([1, -1, 0]) / np.sqrt(2)), (np.array([1, 1, -2]) / np.sqrt(6))]
    luminance = count - 2 * (count // 8)
    # every frequency up to two thirds of the luminance filters, then a sparse comb up to the finest
    dense = luminance * 2 // 3
    picks = [(uv, np.ones(3) / np.sqrt(3)) for uv in order[:dense]]
    comb = np.linspace(dense, len(order) - 1, luminance - dense).round().astype(int)
    picks += [(order[i], np.ones(3) / np.sqrt(3)) for i in comb]
    picks += [(uv, colour) for colour in colours for uv in order[: count // 8]]
    filters = [
        (1 + np.hypot(*uv)) * colour[:, None, None] * np.outer(waves[uv[0]], waves[uv[1]])[None]
        for uv, colour in picks
    ]
    return (np.stack(filters) / (2 * side)).astype(np.float32)


def build(seed: int) -> tuple[InternVLForConditionalGeneration, InternVLProcessor]:
    """A randomly initialised model (float32, CPU) and its processor; equal seeds give equal weights."""
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    tokenizer = build_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    config = InternVLConfig(
        vision_config={
            "hidden_size": WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 4 * WIDTH,
            "image_size": [SIZE, SIZE],
            "patch_size": [PATCH, PATCH],
            "use_qk_norm": False,
            "attention_bias": True,
            "layer_norm_eps": 1e-5,
            "layer_scale_init_value": 1.0,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 3 * WIDTH,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": True,
            "eos_token_id": token(END),
            "bos_token_id": None,
            "pad_token_id": token("<|endoftext|>"),
        },
        image_token_id=token("<IMG_CONTEXT>"),
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(config).float()
    patches = model.model.vision_tower.embeddings.patch_embeddings.projection
    with torch.no_grad():
        patches.weight.copy_(torch.from_numpy(dct_filters(WIDTH, PATCH)))
        patches.bias.zero_()
    model.generation_config.eos_token_id = token(END)
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model, build_processor(tokenizer)


def save(model: InternVLForConditionalGeneration, processor: InternVLProcessor, folder: str | Path) -> None:
    """Write a checkpoint folder (safetensors, config, tokenizer, chat template) that transformers and vLLM load."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
