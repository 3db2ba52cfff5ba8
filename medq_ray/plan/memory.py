"""Memory of a fine-tuning worker and of an engine, in bytes, from sizes alone.

A training step is followed as it happens: weights and moments lie there, the forward pass keeps what the backward pass
will need, block after block, and the backward pass gives it back from the last block to the first while gradients
appear. Its peak is the largest moment of that; the update after it needs nothing new. What each operation keeps was
read off torch's saved tensors on both tiny models; `tests/plan` compares the sum with what torch allocates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from medq_ray.plan.sizes import Model, Stack

UNIT = 5_000_000
"""Fewest parameters of a block that is gathered by itself: `evolve.worker.UNIT`, whose module imports torch."""
MASTER = 4
"""Bytes of a weight, a gradient and of each of AdamW's two moments while training."""


@dataclass(frozen=True)
class Row:
    """What a worker computes on at once."""

    tokens: int
    images: int
    image_tokens: int
    """Of all images."""
    answers: int
    """Tokens with loss."""
    longest: int = 0
    """Tokens of the longest sample, and `samples` their number; only where there is no variable-length kernel."""
    samples: int = 0


@dataclass(frozen=True)
class Device:
    """Where it is computed."""

    compute: int
    """Bytes of a number: 2 on a GPU (bfloat16), 4 on a CPU."""
    spread: bool
    """Whether attention within packed samples pads queries, keys and values to the longest (`evolve.attention`)."""


GPU, CPU = Device(compute=2, spread=False), Device(compute=4, spread=True)


def kept(stack: Stack, positions: int, device: Device, padded: int, trained: bool) -> int:
    """Bytes that one block's backward pass needs of its forward pass. padded: positions after padding, 0 where nothing
    is. trained: whether its weights are; what only their gradients need is not kept for frozen ones."""
    values = 2 * (1 if not trained else 3 if stack.rms else 2) * stack.width  # input, normalised, output of two norms
    values += stack.query + stack.key + (3 * stack.width if stack.fused else stack.key)
    values += stack.query if trained or not padded else 0  # what attention found
    values += 2 * stack.width if stack.scaled else 0
    values += ((4 if stack.gated else 2) - (not trained)) * stack.inner
    total = positions * values * device.compute
    if padded:
        copies = stack.query + 2 * stack.key if padded > positions else 0
        total += padded * (stack.query + copies) * device.compute
    if stack.rms and device.compute < MASTER:
        total += positions * 2 * stack.width * (MASTER - device.compute)  # RMSNorm computes in float32
    return total


def returned(stack: Stack, positions: int, device: Device) -> int:
    """Bytes of gradients of activations at once within a block."""
    return positions * (3 if stack.gated else 2) * stack.inner * device.compute


def training(model: Model, row: Row, *, device: Device, world: int, checkpointing: bool, frozen: set[str]) -> dict:
    """Bytes of one of `world` workers at the peak of a step, and of what it is made.

    frozen: parts that are not trained. Keys: weights, moments (as they lie there all the time), inputs; gathered
    weights, gradients and activations of the worst moment; peak, their sum. Loading takes less:
    a shard, and one tensor after another.
    """
    trained = sum(count for part, count in model.parameters.items() if part not in frozen)
    always = {
        "weights": MASTER * model.total // world,
        "moments": 2 * MASTER * trained // world,
        "inputs": row.image_tokens * model.merged * model.patch_values * 4,
    }
    worst = max(moments(model, row, device, world, checkpointing, frozen), key=lambda one: sum(one.values()))
    peak = sum(always.values()) + sum(worst.values())
    return always | worst | {"peak": peak}


def moments(
    model: Model, row: Row, device: Device, world: int, checkpointing: bool, frozen: set[str]
) -> Iterator[dict[str, int]]:
    """{gathered, gradients, activations} after the forward pass, in each block of the backward pass, and at its end,
    where the gradients of all that is no unit of its own are reduced."""
    patches = row.image_tokens * model.merged + row.images * model.classes
    parts = [
        ("language", model.language, row.tokens, row.samples * row.longest if device.spread else 0),
        ("vision", model.vision, patches, patches if device.spread and model.vision.fused else 0),
    ]
    units = {part: stack.parameters for part, stack, *_ in parts if stack.parameters >= UNIT}
    blocks = []
    for part, stack, positions, padded in parts:
        if part == "vision" and part in frozen:
            continue  # nothing before what is trained is differentiated
        full = kept(stack, positions, device, padded, part not in frozen)
        one = positions * stack.width * device.compute if checkpointing else full
        working = (full if checkpointing else 0) + returned(stack, positions, device)
        blocks += [(part, stack, one, working)] * stack.blocks
    between = 3 * row.image_tokens * model.merged * model.vision.width + 2 * row.tokens * model.language.width
    scores = 2 * row.answers * model.vocabulary * (MASTER if device.compute == MASTER else device.compute + MASTER)
    left = sum(one for _, _, one, _ in blocks)

    root = model.total - sum(stack.blocks * stack.parameters for part, stack, *_ in parts if part in units)
    largest = max(units.values(), default=0)
    gathered = device.compute * (root + 2 * largest)  # one is computed on, the next one is on its way
    buffer = device.compute * (largest or root) if world > 1 else 0  # of the last gathering, until the backward pass
    whole = 0 if "language" in frozen else device.compute * model.head  # gradients before they are reduced
    shards = 0
    yield {"gathered": gathered + buffer, "gradients": whole,
           "activations": left + between * device.compute + scores}  # fmt: skip
    for part, stack, one, working in blocks:
        trained = 0 if part in frozen else stack.parameters
        inside = trained * (device.compute + MASTER) if part in units else 0  # and the copy that is reduced
        shards += MASTER * trained // world if part in units else 0
        whole += device.compute * trained if part not in units else 0
        yield {"gathered": gathered, "gradients": whole + inside + shards,
               "activations": left + between * device.compute + working}  # fmt: skip
        left -= one
    rest = sum(count for part, count in model.parameters.items() if part not in frozen)
    rest -= sum(stack.blocks * stack.parameters for part, stack, *_ in parts if part in units and part not in frozen)
    reduced = (MASTER + MASTER // world) * rest if world > 1 else 0
    yield {"gathered": 0, "gradients": device.compute * rest + reduced + shards, "activations": 0}


def serving(model: Model, *, sequence: int, sequences: int) -> dict[str, int]:
    """Bytes of one engine: weights in bfloat16; keys and values of a token, of a sequence of `sequence` tokens and of
    `sequences` of them."""
    token = 2 * 2 * model.language.blocks * model.language.key
    return {"weights": 2 * model.total, "token": token, "sequence": token * sequence,
            "cache": token * sequence * sequences}  # fmt: skip
