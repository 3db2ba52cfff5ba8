"""What of a model decides memory and time: its parts, counted from its config on torch's meta device, without weights.

The configs of the recipes' models lie in `models/`, for machines that have never fetched them. They hold the
architecture's sizes as their owners publish them in config.json; the counts agree with the published checkpoints
(15.89 GB of bfloat16 for InternVL3-8B-hf, 8,292,166,656 parameters for Qwen2.5-VL-7B-Instruct).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medq_ray.evolve.adapters import ADAPTERS, settings_in
from medq_ray.model.deploy import HUB, resolve_checkpoint

if TYPE_CHECKING:
    from torch import nn

MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Stack:
    """Equal transformer blocks, one after another. Widths are in values a position."""

    blocks: int
    parameters: int
    """Of one block."""
    width: int
    query: int
    key: int
    """Of keys, and as much of values."""
    inner: int
    """Of the MLP."""
    gated: bool
    """Whether the MLP has two first layers, of which one gates the other."""
    rms: bool
    """Whether norms are RMSNorm as transformers writes it, which keeps the normalised input beside the output."""
    scaled: bool
    """Whether branches are scaled before they are added (layer scale), which keeps them."""
    fused: bool
    """Whether queries, keys and values come from one projection, whose output is kept whole; so they do where a vision
    tower attends in windows."""

    @classmethod
    def of(cls, blocks: "nn.ModuleList", width: int) -> "Stack":
        found = {name: tuple(weight.shape) for name, weight in blocks[0].named_parameters()}

        def out(*ends: str) -> int:
            return next((shape[0] for end in ends for name, shape in found.items() if name.endswith(end)), 0)

        return cls(
            blocks=len(blocks),
            parameters=sum(weight.numel() for weight in blocks[0].parameters()),
            width=width,
            query=out("q_proj.weight") or width,
            key=out("k_proj.weight") or width,
            inner=out("gate_proj.weight", "fc1.weight"),
            gated=out("gate_proj.weight") > 0,
            rms=not any("norm" in name and name.endswith("bias") for name in found),
            scaled=any("lambda" in name for name in found),
            fused=out("qkv.weight") > 0,
        )


@dataclass(frozen=True)
class Model:
    name: str
    parameters: dict[str, int]
    """Of 'vision', 'projector' and 'language' (`adapters.Adapter.part`; the head is language)."""
    vision: Stack
    language: Stack
    embedding: int
    """Weights of the table of tokens."""
    head: int
    """Weights of the output projection."""
    tied: bool
    """Whether they are the same."""
    vocabulary: int
    merged: int
    """Patches that one image token is made of."""
    patch: int
    """Pixels of a patch's side."""
    patch_values: int
    """Numbers that a patch is made of."""
    fixed: int | None
    """Tokens of an image of one tile, None where they follow from its size."""
    longest: int
    """Tokens that the language model has positions for."""
    classes: int
    """Positions of the vision tower for each image that are no patch."""

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    def image_tokens(self, side: int) -> int:
        """Of a square image of one tile."""
        return self.fixed or round(side / self.patch / self.merged**0.5) ** 2


def config_of(checkpoint: str) -> dict[str, Any]:
    """The config.json of what `engine.checkpoint` names, without access to the hub. Raises ValueError when it is of no
    checkpoint, or of one of the hub that is neither in the cache nor a recipe's."""
    if checkpoint.startswith(HUB):
        from huggingface_hub import try_to_load_from_cache

        repository = checkpoint.removeprefix(HUB)
        cached = try_to_load_from_cache(repository, "config.json")
        path = Path(cached) if isinstance(cached, str) else MODELS / f"{repository.replace('/', '--')}.json"
        if not path.is_file():
            raise ValueError(f"the sizes of {checkpoint} are not known here: give --checkpoint the folder of a copy")
    else:
        path = resolve_checkpoint(checkpoint) / "config.json"
    return settings_in(path)


def sizes_of(checkpoint: str) -> Model:
    """Of what `engine.checkpoint` names. Raises ValueError as `config_of`, and for an architecture without adapter."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    raw = config_of(checkpoint)
    if raw.get("model_type") not in ADAPTERS:
        known = ", ".join(sorted(ADAPTERS))
        raise ValueError(f"{checkpoint}: no adapter to fine-tune a {raw.get('model_type')!r} model; there are: {known}")
    adapter = ADAPTERS[raw["model_type"]]
    config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    parts = {"vision": 0, "projector": 0, "language": 0}
    for name, weight in model.named_parameters():
        parts[adapter.part(name)] += weight.numel()
    stacks = {adapter.part(name): module for name, module in model.named_modules()
              if isinstance(module, torch.nn.ModuleList)}  # fmt: skip
    vision, text = config.vision_config, config.text_config
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    patch = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)).weight
    merged = getattr(vision, "spatial_merge_size", None) or round(1 / config.downsample_ratio)
    return Model(
        name=checkpoint,
        parameters=parts,
        vision=Stack.of(stacks["vision"], vision.hidden_size),
        language=Stack.of(stacks["language"], text.hidden_size),
        embedding=table.numel(),
        head=head.numel(),
        tied=head is table,
        vocabulary=text.vocab_size,
        merged=merged**2,
        patch=patch.shape[-1],
        patch_values=patch[0].numel(),
        fixed=getattr(config, "image_seq_length", None),
        longest=text.max_position_embeddings,
        classes=int(any(name.endswith("cls_token") for name, _ in model.named_parameters())),
    )
