"""A Qwen2.5-VL of 1.3 M parameters with random weights: the second architecture of the tests, beside `model.tiny`.

What it has and the embedded InternVL has not: images keep their shape, so that each has its own number of tokens; the
vision tower attends in windows, of which an image of 112x112 has four; positions have three axes; two query heads share
one key-value head. Sizes are our choice.
"""

from pathlib import Path

from medq_ray.model import tiny

PATCH, MERGE, WIDTH = 14, 2, 128
LEAST, MOST = 56 * 56, 168 * 168
"""Pixels of an image after resizing: 4 to 36 tokens; 112x112 stays as it is, 16 tokens."""
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def write(folder: Path, seed: int) -> Path:
    """Write the checkpoint into `folder` as transformers and vLLM load it; equal seeds give equal weights."""
    import torch
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens(MARKS, special_tokens=True)
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": WIDTH,
            "num_heads": 4,
            "intermediate_size": 2 * WIDTH,
            "out_hidden_size": WIDTH,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "window_size": 56,
            "fullatt_block_indexes": [1, 3],
        },
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 2 * WIDTH,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
            "eos_token_id": token(tiny.END),
            "bos_token_id": None,
            "pad_token_id": token("<|endoftext|>"),
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).float()
    model.generation_config.eos_token_id = token(tiny.END)
    model.generation_config.pad_token_id = token("<|endoftext|>")
    pictures = {"patch_size": PATCH, "merge_size": MERGE, "image_mean": [tiny.MEAN] * 3, "image_std": [tiny.STD] * 3}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size={"shortest_edge": LEAST, "longest_edge": MOST}, **pictures),
        tokenizer,
        Qwen2VLVideoProcessor(**pictures),
        chat_template=tiny.CHAT_TEMPLATE.replace("<IMG_CONTEXT>", IMAGE),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
