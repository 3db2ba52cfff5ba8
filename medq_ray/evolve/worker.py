"""Fine-tuning as one worker does it: FSDP2 over all workers, eq. 4 on the answer tokens of packed rows.

Imported only by Ray Train's workers: torch and transformers load with it.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from medq_ray.evolve import attention
from medq_ray.evolve.adapters import Adapter, adapter_of
from medq_ray.evolve.checkpoint import export, restore, save, steps_done
from medq_ray.evolve.dataset import read_dataset
from medq_ray.evolve.encoding import IGNORED, skeleton
from medq_ray.evolve.feed import stream
from medq_ray.evolve.metrics import Metrics
from medq_ray.evolve.packing import Row, schedule
from medq_ray.serving import one_line

UNIT = 5_000_000
"""Fewest parameters of a block that is gathered by itself. Below it (the embedded model's blocks have 0.2 million) its
messages cost more than its memory: 48 samples/s with a unit for every block, 70 with one for all (two CPU workers, 12
samples a step)."""


def train(job: dict) -> dict:
    """Train, export to scratch/export and return {samples_stepped, seconds_stepping} of this attempt.

    job: paths `dataset`, `checkpoint`, `metrics` (a folder) and `scratch`; `tokens` of each sample by id; `settings`
    (evolve section); `seed` (list of ints). The steps and their global batches are the same for any number of workers.
    """
    settings, checkpoint, scratch = job["settings"], Path(job["checkpoint"]), Path(job["scratch"])
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world = context.get_world_rank(), context.get_world_size()
    if device.type == "cpu":
        torch.set_num_threads(1)  # one core a worker, and sums in one order: equal inputs give equal bits
    samples = read_dataset(Path(job["dataset"]))[0].to_pylist()
    an_epoch, done = math.ceil(len(samples) / settings["batch_size"]), steps_done()
    total = an_epoch * settings["epochs"]
    rows = stream(
        schedule(
            [job["tokens"][sample["question_id"]] for sample in samples], size=settings["batch_size"],
            seed=job["seed"], epochs=settings["epochs"], rank=rank, world=world, most=settings["max_tokens"], done=done,
        ),
        samples, checkpoint, settings["loaders"],
    )  # fmt: skip
    model = load_model(checkpoint, settings, device)
    metrics = Metrics(Path(job["metrics"]), model, adapter_of(checkpoint), device, world, done) if rank == 0 else None
    optimizer = new_optimizer(model, settings)
    restore(model, optimizer)
    seconds, stepped, began, losses = 0.0, 0, time.perf_counter(), []
    for row, tensors in rows:
        torch.manual_seed(int(np.random.SeedSequence([*job["seed"], row.step, rank]).generate_state(1)[0]))  # dropout
        tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        losses.append((row, tensors, backward(model, tensors, row, settings["answer_loss"])))
        if not row.last:
            continue
        lr = learning_rate(row.step, total, settings)
        numbers = finish_step(model, optimizer, losses, samples, lr, settings)
        stepped += row.batch
        if metrics:
            line = {"step": row.step, "epoch": (row.step - 1) // an_epoch, **numbers, "lr": lr, "samples": row.batch}
            metrics.write(line, time.perf_counter() - began)
        seconds += time.perf_counter() - began
        if row.step % (settings["checkpoint_every"] or an_epoch) == 0 or row.step % an_epoch == 0:
            save(model, optimizer, row.step, rank, scratch)
        began, losses = time.perf_counter(), []
    export(model, checkpoint, scratch / "export", rank)
    return {"samples_stepped": stepped, "seconds_stepping": seconds}


def load_model(checkpoint: Path, settings: dict, device: torch.device) -> nn.Module:
    """The checkpoint in float32, sharded over all ranks and ready to train.

    Rank 0 alone reads the weights and sends one tensor after another: eight ranks that each read 8B in float32 would
    need 255 GB of host memory. Raises ValueError as `read_weights`.
    """
    model = sharded(prepared(skeleton(checkpoint), adapter_of(checkpoint), settings), device)
    model.to_empty(device=device)
    model.tie_weights()  # what shares its weights has been given memory of its own
    weights: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    if dist.get_rank() == 0:
        whole = read_weights(checkpoint)
        weights, buffers = whole.state_dict(), dict(whole.named_buffers())
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    for name, buffer in model.named_buffers():  # such as rotary frequencies, which no checkpoint holds
        if dist.get_rank() == 0:
            buffer.copy_(buffers[name])
        dist.broadcast(buffer, src=0)
    return model


def read_weights(checkpoint: Path) -> nn.Module:
    """The checkpoint's model in float32. Raises ValueError when its weights cannot be read or are not all there:
    transformers would draw at random what is missing."""
    from transformers import AutoModelForImageTextToText

    try:
        model, found = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True
        )
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"checkpoint {checkpoint}: its weights cannot be read; copy or export it again "
                         f"({one_line(error, 120)})") from error  # fmt: skip
    if absent := sorted(found["missing_keys"]):
        raise ValueError(f"checkpoint {checkpoint}: {len(absent)} of its tensors are missing, {absent[0]} first; copy "
                         "or export it again")  # fmt: skip
    return model


def prepared(model: nn.Module, adapter: Adapter, settings: dict) -> nn.Module:
    """Set a model up for training, in place: our attention, frozen parts frozen, activations kept or not."""
    model.train()
    model.set_attn_implementation({part: attention.NAME for part in model.config.sub_configs})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(settings[f"train_{adapter.part(name)}"])
    if settings["activation_checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def sharded(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard a model over all ranks in place, before it has weights: each block of at least UNIT parameters, then
    the rest.

    Stacks are found as what they are in every transformer (`nn.ModuleList`), not by the names of one architecture.
    Weights and optimizer are float32; a GPU computes in bfloat16, a CPU in float32, which is faster at small sizes.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if device.type == "cuda":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for stack in reversed(stacks):  # inner before outer
        for block in stack:
            if sum(p.numel() for p in block.parameters()) >= UNIT:
                fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def new_optimizer(model: nn.Module, settings: dict) -> torch.optim.Optimizer:
    """AdamW in one pass over weights, gradient and moments, without another copy of all gradients, which `foreach`
    makes (32 GB of an 8B model's on one GPU)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=settings["learning_rate"], weight_decay=settings["weight_decay"], fused=True)


def learning_rate(step: int, steps: int, settings: dict) -> float:
    """Of step 1..steps: a linear rise over the warm-up share, then half a cosine down to 0."""
    peak, rise = settings["learning_rate"], math.ceil(settings["warmup"] * steps)
    if step <= rise:
        return peak * step / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise + 1)))


def answer_logits(model: nn.Module, row: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(logits (A, V) that predict the A answer tokens of a packed row, their places (A,) in it). No others are
    computed: the head has a fifth of a small model's weights and most of its outputs."""
    places = (row["labels"] != IGNORED).nonzero()[:, 0]
    positions = row["positions"]
    others = {k: v for k, v in row.items() if k not in ("input_ids", "labels", "positions", "lengths")}
    logits = model(
        input_ids=row["input_ids"][None],
        position_ids=positions if len(positions) == 1 else positions[:, None],
        logits_to_keep=places - 1,
        segments=attention.Segments.of(row["lengths"]),
        use_cache=False,
        **others,
    ).logits[0]
    return logits, places


def sample_losses(model: nn.Module, row: dict[str, Tensor], joined: str = "sum") -> Tensor:
    """float32 (N,): the inner sum of eq. 4, negative log-likelihood of each sample's answer tokens in nats; with
    `joined` 'mean', that per answer token."""
    logits, places = answer_logits(model, row)
    losses = nn.functional.cross_entropy(logits.float(), row["labels"][places], reduction="none")
    owner = torch.searchsorted(row["lengths"].cumsum(0), places, right=True)
    zeros = torch.zeros(len(row["lengths"]), device=losses.device)
    sums = zeros.index_add(0, owner, losses)
    return sums if joined == "sum" else sums / zeros.index_add(0, owner, torch.ones_like(losses))


def backward(model: nn.Module, row: dict[str, Tensor], place: Row, joined: str) -> Tensor:
    """Add a row's share of its step's gradient to `grad`; its losses (N,), detached.

    The loss of a step is eq. 4: summed over an answer's tokens (or averaged, by `evolve.answer_loss`), then averaged
    over the samples of the global batch, whatever rows and workers they lie in.
    """
    losses = sample_losses(model, row, joined)
    share = dist.get_world_size() / place.batch if place.counted else 0.0  # FSDP2 averages gradients over ranks
    (losses.sum() * share).backward()
    return losses.detach()


def finish_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: list[tuple[Row, dict[str, Tensor], Tensor]],
    samples: list[dict],
    lr: float,
    settings: dict,
) -> dict[str, Any]:
    """Update the weights after a step's `rows`: {loss, grad_norm, answer_tokens, image_tokens} of its global batch, and
    its `lengths` (tokens of each sample) and `pixels` (values), by which operations are counted.

    Raises ValueError on every rank, before weights change, when loss or gradient is not finite.
    """
    grad_norm = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], settings["clip_norm"])
    counted = [(row, tensors, losses) for row, tensors, losses in rows if row.counted]
    own = {
        "loss": sum(losses.double().sum().item() for _, _, losses in counted),
        "answer_tokens": sum(int((tensors["labels"] != IGNORED).sum()) for _, tensors, _ in counted),
        "image_tokens": sum(int((t["input_ids"] == model.config.image_token_id).sum()) for _, t, _ in counted),
        "pixels": sum(tensors["pixel_values"].numel() for _, tensors, _ in counted),
        "lengths": [length for _, tensors, _ in counted for length in tensors["lengths"].tolist()],
    }
    bad = [
        samples[sample]["question_id"]
        for row, _, losses in counted
        for sample, loss in zip(row.samples, losses.tolist(), strict=True)
        if not math.isfinite(loss)
    ]
    everyone: list[tuple[dict, list]] = [(own, bad)] * dist.get_world_size()
    dist.all_gather_object(everyone, (own, bad))
    numbers = {name: sum((found[name] for found, _ in everyone), type(own[name])()) for name in own}
    numbers |= {"loss": numbers["loss"] / rows[0][0].batch, "grad_norm": grad_norm.full_tensor().item()}
    if not math.isfinite(numbers["loss"] + numbers["grad_norm"]):
        names = sorted(name for _, found in everyone for name in found)
        raise ValueError(
            f"step {rows[0][0].step}: loss {numbers['loss']}, gradient norm {numbers['grad_norm']}; {len(names)} "
            f"samples without a finite loss: {', '.join(names[:5])}; check them and the checkpoint or lower "
            "evolve.learning_rate"
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return numbers
