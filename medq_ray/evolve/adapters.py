"""What fine-tuning must know of an architecture: the one place where model types are named.

All else (packing, sharding, losses, checkpoints, export) is the same code for all of them. Imported by training workers
and, for its names, by `medq plan`; torch loads only with the tensors it is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


Model = Callable[[], "nn.Module"]
"""Gives the model without weights."""


def text_positions(model: Model, tokens: dict[str, Tensor], others: dict[str, Tensor]) -> Tensor:
    """int64 (1, T): 0 to T - 1."""
    import torch

    return torch.arange(tokens["input_ids"].shape[1])[None]


def multimodal_positions(model: Model, tokens: dict[str, Tensor], others: dict[str, Tensor]) -> Tensor:
    """int64 (3, T): time, height and width, which are all the same for text (Qwen2.5-VL's M-RoPE)."""
    positions, _ = model().model.get_rope_index(
        tokens["input_ids"],
        mm_token_type_ids=tokens["mm_token_type_ids"],
        image_grid_thw=others.get("image_grid_thw"),
        attention_mask=tokens["attention_mask"],
    )
    return positions[:, 0]


@dataclass(frozen=True)
class Adapter:
    vision: str
    """Name of the module that sees."""
    projector: str
    """Of the one that turns what was seen into tokens; may lie within `vision`."""
    positions: Callable[[Model, dict[str, Tensor], dict[str, Tensor]], Tensor]
    """(what gives the model, one sample's token-aligned tensors (1, T), its others) to its position ids (P, T)."""

    def part(self, parameter: str) -> str:
        """'vision', 'projector' or 'language': where a parameter of this name belongs; the head is language."""
        for part, module in (("projector", self.projector), ("vision", self.vision)):
            if parameter.startswith(module + "."):
                return part
        return "language"


ADAPTERS = {
    "internvl": Adapter("model.vision_tower", "model.multi_modal_projector", text_positions),
    "qwen2_5_vl": Adapter("model.visual", "model.visual.merger", multimodal_positions),
}
"""By the model_type of a checkpoint's config.json."""


TEMPLATES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
"""Files of a checkpoint in which its chat template may be, where it is not in chat_template.jinja."""


def adapter_of(checkpoint: Path) -> Adapter:
    """Of a Hugging Face checkpoint folder. Raises ValueError when it is none or damaged, has no chat template, or is of
    an architecture without adapter, naming those there are."""
    if not (checkpoint / "config.json").exists():
        raise ValueError(f"checkpoint {checkpoint}: no Hugging Face checkpoint folder (config.json is missing)")
    settings = {path.name: settings_in(path) for path in sorted(checkpoint.glob("*.json"))}
    jinja = checkpoint / "chat_template.jinja"
    templates = [settings[name].get("chat_template") for name in TEMPLATES if name in settings]
    if not any([*templates, jinja.exists() and jinja.read_text().strip()]):
        raise ValueError(f"checkpoint {checkpoint}: its processor has no chat template; add chat_template.jinja")
    model_type = settings["config.json"].get("model_type", "")
    if model_type not in ADAPTERS:
        known = ", ".join(sorted(ADAPTERS))
        raise ValueError(f"checkpoint {checkpoint}: no adapter to fine-tune a {model_type!r} model; there are: {known}")
    return ADAPTERS[model_type]


def settings_in(path: Path) -> dict:
    """A JSON file of a checkpoint. Raises ValueError naming it when it is none."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"checkpoint file {path} is not JSON ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"checkpoint file {path} holds no settings; copy it again")
    return found
