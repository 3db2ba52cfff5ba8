"""What both trainings share: two single-threaded processes that average gradients, bfloat16 products, one schedule.

Threads wait for each other in every operator, processes once a step: on busy cores that decides. Products in bfloat16
with attention in float32 take an encoder's 48 images from 0.31 to 0.18 s a step (one thread, AVX-512 with bfloat16).
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from torch.nn import functional as F

WORLD = 2


_attention = F.scaled_dot_product_attention


def float32_attention(query, key, value, *arguments, **named):
    """Attention in float32 under autocast: the CPU's bfloat16 kernel takes four times as long here."""
    with torch.autocast("cpu", enabled=False):
        return _attention(query.float(), key.float(), value.float(), *arguments, **named).to(query.dtype)


def _enter(rank: int, work: Callable, store: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    F.scaled_dot_product_attention = float32_attention
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    work(*arguments)
    distributed.destroy_process_group()


def in_processes(work: Callable, *arguments) -> None:
    """Run `work(*arguments)` in WORLD processes that can average gradients."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_enter, (work, str(Path(folder) / "store"), arguments), nprocs=WORLD)


def share_of() -> slice:
    """This process's rows of a batch; `start` is its rank."""
    return slice(distributed.get_rank(), None, distributed.get_world_size())


def batches(count: int, size: int, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`steps` arrays of `size` row numbers; every row once before any row again."""
    queue = np.empty(0, np.int64)
    for _ in range(steps):
        if len(queue) < size:
            queue = np.concatenate([queue, rng.permutation(count)])
        yield queue[:size]
        queue = queue[size:]


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Mean over processes, in one message."""
    used = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in used])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for grad, part in zip(used, flat.split([g.numel() for g in used]), strict=True):
        grad.copy_(part.view_as(grad))


def optimise(
    parameters: list[torch.nn.Parameter], loss_of: Callable[[int], torch.Tensor], steps: int, peak: float, label: str
) -> None:
    """AdamW with a linear warm-up over 3 % of the steps and a cosine decay to 1 % of the peak."""
    optimiser = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    warm = max(1, steps // 33)
    started, running = time.time(), 0.0
    for step in range(steps):
        done = max(0.0, (step - warm) / max(1, steps - warm))
        rate = peak * min(1.0, (step + 1) / warm) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if distributed.get_rank() == 0 and (step % 100 == 99 or step == steps - 1):
            print(f"{label} {step + 1}/{steps} loss {running:.3f} {time.time() - started:.0f} s", flush=True)
