"""Samples as the model reads them: chat turns through the checkpoint's own processor, labels on the answer only.

Imported only where samples are encoded: torch and transformers load with it. What a processor returns beside
token-aligned tensors (pixels, patch grids, tile counts) is joined along the first axis; of an architecture only its
position ids differ (`evolve.adapters`).
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor

from medq_ray.evolve.adapters import adapter_of
from medq_ray.evolve.dataset import turns
from medq_ray.images import read_image

IGNORED = -100
"""Label of tokens without loss (torch's convention)."""
ALIGNED = ("input_ids", "labels", "positions")
"""Names of the tensors with one column a token."""


def load_processor(checkpoint: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(checkpoint)


def skeleton(checkpoint: Path) -> torch.nn.Module:
    """The checkpoint's model without weights (on the meta device), in float32 whatever they are published in."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint), dtype=torch.float32)


def chat(processor: Any, prompt: str, answer: str, images: int = 1) -> tuple[str, str]:
    """(text up to where the model speaks, what it is to say with the end of its turn), by the chat template.

    The user turn is the one that the serving side sends (`prompts.messages`). Raises ValueError when the template
    is none, or does not write the assistant's turn as a continuation of the prompt.
    """
    turn, reply = turns(prompt, answer, images)
    try:
        asked = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        answered = processor.apply_chat_template([turn, reply], tokenize=False)
    except TemplateError as error:
        raise ValueError(f"the checkpoint's chat template cannot be used: {error}") from error
    if not answered.startswith(asked):
        raise ValueError("the chat template does not write an answer as a continuation of its generation prompt")
    return asked, answered[len(asked) :]


class SampleEncoder:
    """Encodes samples for one checkpoint. Raises ValueError like `adapter_of`."""

    def __init__(self, checkpoint: Path):
        self.checkpoint, self.adapter = checkpoint, adapter_of(checkpoint)
        self.processor = load_processor(checkpoint)

    @cached_property
    def model(self) -> torch.nn.Module:
        """Without weights. Made when an adapter asks for it: to import what it is made of takes 7 CPU seconds, in every
        process that encodes, and InternVL's positions do without."""
        return skeleton(self.checkpoint)

    def encode(self, pixels: Sequence[np.ndarray], prompt: str, answer: str) -> dict[str, Tensor]:
        """One sample of T tokens; pixels: its images (H, W, 3) uint8 in their order.

        int64 input_ids (T,), labels (T,) and positions (P, T), and the processor's pixels and what belongs to them.
        Prompt and answer are tokenised apart, as they are when the model generates. Loss is on the answer and on the
        token that ends the turn (eq. 4); what the template writes after that token is cut off.
        """
        asked, said = chat(self.processor, prompt, answer, len(pixels))
        inputs = dict(self.processor(images=list(pixels), text=[asked], return_tensors="pt"))
        reply = self.processor.tokenizer(said, add_special_tokens=False)["input_ids"]
        end = self.processor.tokenizer.eos_token_id
        if end not in reply:
            raise ValueError(f"the chat template does not end an answer with {self.processor.tokenizer.eos_token!r}")
        reply_ids = torch.tensor([reply[: reply.index(end) + 1]])
        length = inputs["input_ids"].shape[1]
        tokens = {k: v for k, v in inputs.items() if v.ndim == 2 and v.shape == (1, length)}
        others = {k: v for k, v in inputs.items() if k not in tokens}
        tokens = {k: torch.cat([v, torch.zeros_like(reply_ids, dtype=v.dtype)], 1) for k, v in tokens.items()}
        tokens["input_ids"][:, length:] = reply_ids
        tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
        labels = tokens["input_ids"][0].clone()
        labels[:length] = IGNORED
        positions = self.adapter.positions(lambda: self.model, tokens, others)
        return {"input_ids": tokens["input_ids"][0], "labels": labels, "positions": positions, **others}

    def read(self, sample: dict) -> dict[str, Tensor]:
        """`encode` of a row of schema.CHAT. Raises ValueError naming the sample and its file when an image cannot be
        read."""
        question, reply = ("".join(part["text"] or "" for part in turn["content"]) for turn in sample["messages"])
        try:
            pixels = [read_image(uri).copy() for uri in sample["images"]]  # torch wants a writable array
            return self.encode(pixels, question, reply)
        except ValueError as error:
            raise ValueError(f"sample {sample['question_id']}: {error}") from error


def pack(encoded: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Samples one after another as one row: token-aligned tensors joined along the last axis, `lengths` int64 (N,), the
    others joined along axis 0."""
    row = {k: torch.cat([one[k] for one in encoded], -1 if k in ALIGNED else 0) for k in encoded[0]}
    return row | {"lengths": torch.tensor([len(one["input_ids"]) for one in encoded])}
