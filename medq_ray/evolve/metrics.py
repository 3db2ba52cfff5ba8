"""What a fine-tuning tells while it runs: metrics.jsonl for programs, TensorBoard files for people.

Imported only by training workers: torch loads with it.
"""

import json
import os
import resource
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import nn

from medq_ray.evolve.adapters import Adapter
from medq_ray.evolve.checkpoint import written
from medq_ray.evolve.flops import Sizes, peak_of, step_flops

FILE, BOARD = "metrics.jsonl", "tensorboard"


def sizes_of(model: nn.Module, adapter: Adapter) -> Sizes:
    """Of a model, sharded or not."""
    parts = {"language": 0, "vision": 0, "projector": 0}
    for name, parameter in model.named_parameters():
        parts[adapter.part(name)] += parameter.numel()
    head = model.get_output_embeddings().weight
    looked_up = {id(weight): weight.numel() for weight in (model.get_input_embeddings().weight, head)}  # often the same
    text = model.config.text_config
    return Sizes(
        language=parts["language"] - sum(looked_up.values()), head=head.numel(),
        vision=parts["vision"], projector=parts["projector"], width=text.hidden_size, layers=text.num_hidden_layers,
    )  # fmt: skip


def patch_values(model: nn.Module) -> int:
    """Pixel values of one patch: what a weight of a vision tower's first layer, a convolution, looks at."""
    return next(m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)).weight.shape[1:].numel()


class Metrics:
    """Of rank 0, a line a step: what the step was (`worker.finish_step`) and how fast: seconds, samples and tokens a
    second, memory in bytes (a GPU's peak, or the process's), MFU where the device's peak is known, else null."""

    def __init__(
        self, folder: Path, model: nn.Module, adapter: Adapter, device: torch.device, world: int, done: int
    ):
        """done: steps to go on after; what a killed run wrote after its last checkpoint is done again. Raises
        ValueError as `checkpoint.written`, and so does `write`."""
        self.device, self.world, self.sizes = device, world, sizes_of(model, adapter)
        self.patch = patch_values(model)
        path = folder / FILE
        lines = path.read_text().splitlines(True)[:done] if path.exists() else []
        temporary = path.with_name(path.name + ".tmp")
        with written("its metrics", folder):
            temporary.write_text("".join(lines))
            os.replace(temporary, path)
            self.log = open(path, "a")
            self.board = SummaryWriter(str(folder / BOARD), purge_step=done + 1)

    def write(self, numbers: dict[str, Any], seconds: float) -> None:
        lengths, patches = numbers.pop("lengths"), numbers.pop("pixels") // self.patch
        needed = step_flops(self.sizes, lengths, numbers["answer_tokens"], patches, numbers["image_tokens"])
        peak = peak_of(torch.cuda.get_device_name(self.device)) if self.device.type == "cuda" else None
        numbers |= {
            "tokens": sum(lengths),
            "seconds": round(seconds, 4),
            "samples_per_second": round(numbers["samples"] / seconds, 2),
            "tokens_per_second": round(sum(lengths) / seconds, 1),
            "mfu": round(needed / seconds / (peak * self.world), 4) if peak else None,
            "memory_bytes": self.memory(),
        }
        with written(f"the metrics of step {numbers['step']}", Path(self.log.name).parent):
            self.log.write(json.dumps(numbers) + "\n")
            self.log.flush()
            for name, value in numbers.items():
                if value is not None and name not in ("step", "epoch"):
                    self.board.add_scalar(name, value, numbers["step"])
            self.board.flush()

    def memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
