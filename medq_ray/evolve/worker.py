"""Fine-tuning as one worker does it: FSDP2 over all workers, eq. 4 on the answer tokens, a checkpoint an epoch.

Imported only by Ray Train's workers: torch and transformers load with it.
"""

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from medq_ray.artifacts import read_table
from medq_ray.evolve.encoding import IGNORED, Encoded, collate, encode_all, load_processor

UNIT = 5_000_000
"""Fewest parameters of a block that is gathered by itself. Below it (the embedded model's blocks have 0.2 million) its
messages cost more than its memory: 48 samples/s with a unit for every block, 70 with one for all (two CPU workers, 12
samples a step)."""
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".index.json")


def train(job: dict) -> dict:
    """Train, export to scratch/export and return {samples_stepped, seconds_stepping} of this attempt.

    job: paths `samples`, `checkpoint`, `metrics` and `scratch`; `settings` (evolve section); `seed` (list of ints).
    Every rank takes the same number of steps over the same global batches, whatever the number of workers.
    """
    settings, scratch, checkpoint = job["settings"], Path(job["scratch"]), Path(job["checkpoint"])
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world = context.get_world_rank(), context.get_world_size()
    if device.type == "cpu":
        torch.set_num_threads(1)  # one core a worker, and sums in one order: equal inputs give equal bits
    processor = load_processor(checkpoint)
    samples = read_table(Path(job["samples"])).to_pylist()
    encoded = encode_all(processor, samples)
    model = sharded(load_model(checkpoint), device)
    optimizer = new_optimizer(model, settings)
    steps_an_epoch = math.ceil(len(samples) / settings["batch_size"])
    start = restore(model, optimizer)
    step = start * steps_an_epoch
    log = open_metrics(Path(job["metrics"]), keep=step) if rank == 0 else None
    seconds, stepped = 0.0, 0
    for epoch in range(start, settings["epochs"]):
        began = time.perf_counter()
        torch.manual_seed(int(np.random.SeedSequence([*job["seed"], epoch, rank]).generate_state(1)[0]))  # dropout
        for batch in batches(len(samples), settings["batch_size"], job["seed"], epoch):
            mine = batch[rank::world]
            local = [encoded[i] for i in mine] or [without_loss(encoded[batch[0]])]
            inputs = {k: v.to(device) for k, v in collate(local, processor.tokenizer.pad_token_id).items()}
            step += 1
            lr = learning_rate(step, steps_an_epoch * settings["epochs"], settings)
            ids = [samples[i]["question_id"] for i in mine]
            numbers = take_step(model, optimizer, inputs, ids, step, len(batch), lr, settings)
            stepped += len(batch)
            if log:
                line = {"step": step, "epoch": epoch, **numbers, "lr": lr, "samples": len(batch)}
                log.write(json.dumps(line) + "\n")
                log.flush()
        seconds += time.perf_counter() - began
        save(model, optimizer, epoch, rank)
    export(model, checkpoint, scratch / "export", rank)
    return {"samples_stepped": stepped, "seconds_stepping": seconds}


def load_model(checkpoint: Path) -> nn.Module:
    """The checkpoint in float32, ready to train."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).train()


def sharded(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard the model over all ranks in place: each block of at least UNIT parameters, then the rest.

    Stacks are found as what they are in every transformer (`nn.ModuleList`), not by the names of one architecture.
    Weights and optimizer are float32; a GPU computes in bfloat16, a CPU in float32, which is faster at small sizes.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if device.type == "cuda":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model.to(device)
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for stack in reversed(stacks):  # inner before outer
        for block in stack:
            if sum(p.numel() for p in block.parameters()) >= UNIT:
                fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def new_optimizer(model: nn.Module, settings: dict) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"], foreach=True
    )


def batches(count: int, size: int, seed: list[int], epoch: int) -> Iterator[list[int]]:
    """Global batches of one epoch: each of `count` samples once, the last batch possibly shorter."""
    order = np.random.default_rng(np.random.SeedSequence([*seed, epoch])).permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size].tolist()


def learning_rate(step: int, steps: int, settings: dict) -> float:
    """Of step 1..steps: a linear rise over the warm-up share, then half a cosine down to 0."""
    peak, rise = settings["learning_rate"], math.ceil(settings["warmup"] * steps)
    if step <= rise:
        return peak * step / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise + 1)))


def without_loss(encoded: Encoded) -> Encoded:
    """The sample with all labels ignored: what a rank computes on when a short batch has nothing left for it."""
    tokens, others = encoded
    return {**tokens, "labels": torch.full_like(tokens["labels"], IGNORED)}, others


def sample_losses(model: nn.Module, inputs: dict[str, Tensor], joined: str = "sum") -> Tensor:
    """float32 (N,): the inner sum of eq. 4, negative log-likelihood of each sample's answer tokens in nats; with
    `joined` 'mean', that per answer token."""
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits[:, :-1]
    targets = inputs["labels"][:, 1:]
    answer = targets != IGNORED
    losses = nn.functional.cross_entropy(logits[answer].float(), targets[answer], reduction="none")
    sums = torch.zeros(len(targets), device=losses.device).index_add(0, answer.nonzero()[:, 0], losses)
    return sums if joined == "sum" else sums / answer.sum(1).clamp(min=1)


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: dict[str, Tensor],
    ids: list[str],
    step: int,
    batch_size: int,
    lr: float,
    settings: dict,
) -> dict[str, float]:
    """One optimizer step on this rank's `inputs` of a global batch: {loss, answer_tokens, grad_norm} of the batch.

    The loss is eq. 4: summed over an answer's tokens (or averaged, by `settings["answer_loss"]`), then averaged over
    the samples of the global batch. Raises ValueError on every rank, before weights change, when loss or gradient is
    not finite.
    """
    losses = sample_losses(model, inputs, settings["answer_loss"])
    world = dist.get_world_size()
    (losses.sum() * world / batch_size).backward()  # FSDP2 averages gradients over ranks
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
    totals = torch.stack([losses.detach().sum().double(), (inputs["labels"] != IGNORED).sum().double()])
    dist.all_reduce(totals)
    numbers = {"loss": totals[0].item() / batch_size, "answer_tokens": int(totals[1].item())}
    numbers["grad_norm"] = grad_norm.full_tensor().item()
    if not math.isfinite(numbers["loss"] + numbers["grad_norm"]):
        bad: list[list[str]] = [[] for _ in range(world)]
        dist.all_gather_object(bad, [name for name, loss in zip(ids, losses.tolist()) if not math.isfinite(loss)])
        names = sorted(name for rank in bad for name in rank)
        raise ValueError(
            f"step {step}: loss {numbers['loss']}, gradient norm {numbers['grad_norm']}; {len(names)} samples without "
            f"a finite loss: {', '.join(names[:5])}; check them and the checkpoint or lower evolve.learning_rate"
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return numbers


def open_metrics(path: Path, keep: int) -> IO[str]:
    """The metrics file to append to, cut to its first `keep` lines: what a killed run did after its last checkpoint
    is done again."""
    lines = path.read_text().splitlines(True)[:keep] if path.exists() else []
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(lines))
    os.replace(temporary, path)
    return open(path, "a")


def save(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, rank: int) -> None:
    """Report the finished epoch to Ray Train with every rank's shard of weights and optimizer."""
    weights, moments = get_state_dict(model, optimizer)
    with tempfile.TemporaryDirectory() as folder:
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
        if rank == 0:
            Path(folder, "epoch.json").write_text(json.dumps(epoch))
        ray.train.report({"epoch": epoch}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def restore(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load Ray Train's last checkpoint into model and optimizer; the first epoch that is still to do."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return json.loads(Path(folder, "epoch.json").read_text()) + 1


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
