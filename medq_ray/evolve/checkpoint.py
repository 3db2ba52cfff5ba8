"""Checkpoints of a fine-tuning under way, sharded, and the plain Hugging Face folder that it ends with.

Imported only by training workers: torch loads with it. Ray Train keeps the checkpoints and registers one when all of
its files are there; only registered ones are restored, so a kill in the middle of a save costs what came after the one
before.
"""

import json
import shutil
import tempfile
from pathlib import Path

import ray.train
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from medq_ray.serving import one_line

WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
DONE = "step.json"


def save(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, rank: int, scratch: Path) -> None:
    """Report the finished step to Ray Train with every rank's shard of weights and optimizer.

    Shards are written in `scratch`, on the disk that keeps them: what other places hold temporary files may be too
    small for 96 GB of an 8B model's. Raises OSError where they cannot be written.
    """
    weights, moments = get_state_dict(model, optimizer)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="saving-") as folder:
        try:
            dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
        except CheckpointException as error:
            first = one_line(next(iter(error.failures.values()))[0], 120)
            free = shutil.disk_usage(scratch).free / 1e9
            raise OSError(f"checkpoint after step {step} cannot be written to {scratch}, where {free:.1f} GB are free; "
                          f"make room and give the same command again ({first})") from error  # fmt: skip
        if rank == 0:
            Path(folder, DONE).write_text(json.dumps(step))
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def steps_done() -> int:
    """Of the fine-tuning, by Ray Train's last checkpoint; 0 where there is none."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        return json.loads(Path(folder, DONE).read_text())


def restore(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load Ray Train's last checkpoint, if there is one, whatever number of workers wrote it."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as folder:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def export(model: nn.Module, source: Path, target: Path, rank: int) -> None:
    """Write a plain Hugging Face folder: our weights in the source's number format, all else copied from `source`."""
    from transformers import AutoConfig

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        dtype = AutoConfig.from_pretrained(source).dtype or torch.float32
        names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        tied = names - {name for name, _ in model.named_parameters()}  # stored once, under the first name
        shutil.rmtree(target, ignore_errors=True)
        model.save_pretrained(target, state_dict={k: v.to(dtype) for k, v in state.items() if k not in tied})
        for file in sorted(source.iterdir()):
            if file.is_file() and not file.name.endswith(WEIGHT_FILES):
                shutil.copyfile(file, target / file.name)
