"""Attention within samples that lie one after another in one row: no padding between the layers, and no sample sees
another.

Everything of a transformer but attention works token by token, so a packed row of shape (1, T) is right for all of it.
Here rows are cut at the samples' ends: by the variable-length kernel on a GPU, and on a CPU by spreading queries, keys
and values over (N, longest), where causal attention with padding on the right needs no mask. Nothing is computed
between samples, where a block-diagonal mask would compute T * T scores and throw most away.

Imported only by training workers: torch and transformers load with it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "medq_flash"
"""Of our attention in transformers' registry. Architectures whose vision tower attends within windows (Qwen2.5-VL) hand
over where these end if the name has "flash" in it, and loop over them in Python otherwise."""


@dataclass(frozen=True)
class Segments:
    """Where the N samples of a row of T tokens begin and end."""

    ends: Tensor  # int32 (N + 1,): 0 and the end of each
    longest: int

    @classmethod
    def of(cls, lengths: Tensor) -> "Segments":
        """lengths: int (N,), tokens of each sample."""
        return cls(nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32), int(lengths.max()))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Segments | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query (B, H, T, D) to (B, T, H, D).

    A causal module attends within `segments`, which the caller of the model passes; a vision tower within the ends it
    computes itself (`cu_seq_lens_q`), or within images of one size along B, by torch's attention as it is.
    """
    causal = bool(module.is_causal)
    if causal and segments is None or not causal and cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    if not causal:
        segments = Segments(cu_seq_lens_q.to(torch.int32), int(max_length_q))
    flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (T, H, D)
    within = varlen if query.is_cuda else spread
    return within(*flat, segments, causal, scaling)[None], None


def varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = segments.ends.to(query.device), segments.longest
    return varlen_attn(
        *(tensor.contiguous() for tensor in (query, key, value)), ends, ends, longest, longest,
        scale=scale, window_size=(-1, 0) if causal else (-1, -1), enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip


def spread(query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float | None) -> Tensor:
    ends = segments.ends.long()
    lengths, longest = ends.diff(), segments.longest
    starts = torch.arange(len(lengths)) * longest
    places = torch.arange(int(ends[-1])) + (starts - ends[:-1]).repeat_interleave(lengths)

    def rows(tensor: Tensor) -> Tensor:  # (T, H, D) to (N, H, longest, D)
        if bool((lengths == longest).all()):
            return tensor.unflatten(0, (len(lengths), longest)).transpose(1, 2)
        room = tensor.new_zeros(len(lengths) * longest, *tensor.shape[1:])
        return room.index_copy(0, places, tensor).unflatten(0, (len(lengths), longest)).transpose(1, 2)

    mask = None
    if not causal and bool((lengths < longest).any()):
        mask = (torch.arange(longest) < lengths[:, None])[:, None, None]
    found = nn.functional.scaled_dot_product_attention(
        rows(query), rows(key), rows(value), attn_mask=mask, is_causal=causal, scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip
    return found.transpose(1, 2).flatten(0, 1)[places]


AttentionInterface.register(NAME, packed_attention)
