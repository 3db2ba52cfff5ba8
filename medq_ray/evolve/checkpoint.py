"""Checkpoints of a fine-tuning under way, sharded, and the plain Hugging Face folder that it ends with.

Imported only by training workers: torch loads with it. Ray Train keeps the checkpoints and registers one when all of
its files are there; only registered ones are restored, so a kill in the middle of a save costs what came after the one
before.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray.train
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from medq_ray.artifacts import SCRATCH
from medq_ray.serving import one_line

WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
DONE = "step.json"


@contextmanager
def written(what: str, folder: Path) -> Iterator[None]:
    """Raises ValueError, since it would come again, for what cannot be written to `folder`, naming how much room is
    left there."""
    try:
        yield
    except (CheckpointException, SafetensorError, OSError) as error:
        found = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        free = shutil.disk_usage(folder).free / 1e9
        raise ValueError(f"{what} cannot be written to {folder}, where {free:.1f} GB are free; make room and give the "
                         f"same command again ({one_line(found, 120)})") from error  # fmt: skip


def save(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, rank: int, scratch: Path) -> None:
    """Report the finished step to Ray Train with every rank's shard of weights and optimizer.

    Shards are written in `scratch`, on the disk that keeps them: what other places hold temporary files may be too
    small for 96 GB of an 8B model's. Raises ValueError as `written`.
    """
    weights, moments = get_state_dict(model, optimizer)
    with (
        written(f"checkpoint after step {step}", scratch),
        tempfile.TemporaryDirectory(dir=scratch, prefix="saving-") as folder,
    ):
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
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
    """Load Ray Train's last checkpoint, if there is one, whatever number of workers wrote it. Raises
    ValueError when it is damaged."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as folder:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        try:
            dcp.load(state, checkpoint_id=folder)
        except CheckpointException as error:
            raise ValueError(f"{folder}, the last checkpoint of this fine-tuning, cannot be read; delete {SCRATCH}/ "
                             f"beside metrics.jsonl to begin it anew ({one_line(error, 120)})") from error  # fmt: skip
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def export(model: nn.Module, source: Path, target: Path, rank: int) -> None:
    """Write a plain Hugging Face folder: our weights by the source's names and in its number format, all else copied
    from `source`. Raises ValueError as `written`."""
    from transformers import AutoModelForImageTextToText

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank != 0:
        return
    # A model that was loaded knows by which names a checkpoint has its weights; one that was built from a config writes
    # other ones, which vLLM does not know.
    whole = AutoModelForImageTextToText.from_pretrained(source, dtype="auto")
    whole.load_state_dict(state)
    shutil.rmtree(target, ignore_errors=True)
    with written("the trained checkpoint", target.parent):
        whole.save_pretrained(target)
        for file in sorted(source.iterdir()):
            if file.is_file() and not file.name.endswith(WEIGHT_FILES):
                shutil.copyfile(file, target / file.name)
