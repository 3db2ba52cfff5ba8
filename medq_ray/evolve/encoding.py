"""Samples as the model reads them: chat turns through the checkpoint's own processor, labels on the answer only.

Imported by the training workers: torch and transformers load with it. No architecture is named here; what a
processor returns beside token-aligned tensors (pixels, patch grids, tile counts) is joined along the first axis.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medq_ray.evolve.dataset import turns
from medq_ray.images import read_image
from medq_ray.model.prompts import uris_of

IGNORED = -100
"""Label of tokens without loss (torch's convention)."""

Encoded = tuple[dict[str, Tensor], dict[str, Tensor]]
"""One sample as keyword arguments of the model: (token-aligned tensors of shape (1, T), all others)."""


def load_processor(checkpoint: Path) -> Any:
    """The checkpoint's processor. Raises ValueError when the folder is missing or has no chat template."""
    from transformers import AutoProcessor

    if not (checkpoint / "config.json").exists():
        raise ValueError(f"checkpoint {checkpoint}: no Hugging Face checkpoint folder (config.json is missing)")
    processor = AutoProcessor.from_pretrained(checkpoint)
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(f"checkpoint {checkpoint}: its processor has no chat template; add chat_template.jinja")
    return processor


def chat(processor: Any, prompt: str, answer: str, images: int = 1) -> tuple[str, str]:
    """(text up to where the model speaks, what it is to say with the end of its turn), by the chat template.

    The user turn is the one that the serving side sends (`prompts.messages`). Raises ValueError when the template
    does not write the assistant's turn as a continuation of the prompt.
    """
    turn, reply = turns(prompt, answer, images)
    asked = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    answered = processor.apply_chat_template([turn, reply], tokenize=False)
    if not answered.startswith(asked):
        raise ValueError("the chat template does not write an answer as a continuation of its generation prompt")
    return asked, answered[len(asked) :]


def encode(processor: Any, pixels: Sequence[np.ndarray], prompt: str, answer: str) -> Encoded:
    """One sample; pixels: its images in their order.

    Prompt and answer are tokenised apart, as they are when the model generates. Loss is on the answer and on the
    token that ends the turn (eq. 4); what the template writes after that token is cut off.
    """
    asked, said = chat(processor, prompt, answer, len(pixels))
    inputs = dict(processor(images=list(pixels), text=[asked], return_tensors="pt"))
    reply = processor.tokenizer(said, add_special_tokens=False)["input_ids"]
    end = processor.tokenizer.eos_token_id
    if end not in reply:
        raise ValueError(f"the chat template does not end an answer with {processor.tokenizer.eos_token!r}")
    reply_ids = torch.tensor([reply[: reply.index(end) + 1]])
    length = inputs["input_ids"].shape[1]
    tokens = {k: v for k, v in inputs.items() if v.ndim == 2 and v.shape == (1, length)}
    others = {k: v for k, v in inputs.items() if k not in tokens}
    tokens = {k: torch.cat([v, torch.zeros_like(reply_ids, dtype=v.dtype)], 1) for k, v in tokens.items()}
    tokens["input_ids"][:, length:] = reply_ids
    tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
    tokens["labels"] = tokens["input_ids"].clone()
    tokens["labels"][:, :length] = IGNORED
    return tokens, others


def encode_all(processor: Any, samples: list[dict]) -> list[Encoded]:
    """All samples, encoded; the questions of one image share its tensors (112x112: 150 kB an image).

    Raises ValueError naming the sample and its file when an image cannot be read.
    """
    shared: dict[tuple[str, ...], dict[str, Tensor]] = {}
    pixels: dict[str, np.ndarray] = {}
    encoded = []
    for sample in samples:
        uris = uris_of(sample)
        try:
            for uri in uris:
                if uri not in pixels:
                    pixels[uri] = read_image(uri).copy()  # torch wants a writable array
            tokens, others = encode(processor, [pixels[uri] for uri in uris], sample["prompt"], sample["answer"])
        except ValueError as error:
            raise ValueError(f"sample {sample['question_id']}: {error}") from error
        encoded.append((tokens, shared.setdefault(tuple(uris), others)))
    return encoded


def collate(encoded: list[Encoded], pad: int) -> dict[str, Tensor]:
    """One batch: token-aligned tensors padded on the right to (N, longest), the others joined along axis 0."""
    filler = {"input_ids": pad, "labels": IGNORED}
    longest = max(tokens["input_ids"].shape[1] for tokens, _ in encoded)

    def padded(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1]), value=value)

    first_tokens, first_others = encoded[0]
    batch = {k: torch.cat([padded(tokens[k], filler.get(k, 0)) for tokens, _ in encoded]) for k in first_tokens}
    return batch | {k: torch.cat([others[k] for _, others in encoded]) for k in first_others}
