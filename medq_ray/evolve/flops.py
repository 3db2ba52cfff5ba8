"""How many operations a training step needs, and how many a device could do: what model FLOPs utilisation is made of.

Counted as Kaplan et al. (2020) do: six operations for each weight and each position that passes it (two forward, four
backward), and those of attention; what activation checkpointing computes again is not useful work and not counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12}
"""Dense bfloat16 operations a second by NVIDIA's data sheets; a device whose name holds none of these has no MFU."""


@dataclass(frozen=True)
class Sizes:
    """Of a model, in weights that positions pass (embeddings are looked up, not passed)."""

    language: int
    """Of the language model's blocks; every token passes them."""
    head: int
    """Of the output projection; only positions with loss pass it."""
    vision: int
    """Of the vision tower; every patch passes them."""
    projector: int
    """Every image token passes them; a few patches make one."""
    width: int
    """Of the language model."""
    layers: int


def step_flops(sizes: Sizes, lengths: Iterable[int], answers: int, patches: int, image_tokens: int) -> float:
    """Of samples with these token counts, `answers` tokens with loss among them, and of their images; forward and
    back, as if all weights were trained. Attention within images is left out."""
    lengths = list(lengths)
    weights = sizes.language * sum(lengths) + sizes.head * answers
    weights += sizes.vision * patches + sizes.projector * image_tokens
    attention = sizes.layers * sizes.width * sum(length * length for length in lengths)  # causal: half of the scores
    return 6.0 * (weights + attention)


def peak_of(device: str) -> float | None:
    """Operations a second of a device of this name; None where it is not known."""
    return next((peak for name, peak in PEAK.items() if name in device), None)
