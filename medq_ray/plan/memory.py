"""Memory of a fine-tuning worker and of an engine, in bytes, from sizes alone.

A training step is followed as it happens: weights and moments lie there, the forward pass keeps what the backward pass
will need, block after block, and the backward pass gives it back from the last block to the first while gradients
appear. Its peak is the largest moment of that, or the update after it. What each operation keeps was read off torch's
saved tensors on both tiny models; `tests/plan` compares the sum with what torch allocates.
"""

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


def kept(stack: Stack, positions: int, device: Device, padded: int) -> int:
    """Bytes that one block's backward pass needs of its forward pass. padded: positions after padding, 0 where nothing
    is."""
    norm = 3 if stack.rms else 2
    heads = stack.query + 2 * stack.key
    values = 2 * norm * stack.width  # input, normalised, output of both norms
    values += stack.query + stack.key + (3 * stack.width if stack.fused else stack.key)
    values += stack.query  # what attention found
    values += 2 * stack.width if stack.scaled else 0
    values += (4 if stack.gated else 2) * stack.inner
    total = positions * values * device.compute
    if padded:
        total += padded * (stack.query + (heads if padded > positions else 0)) * device.compute
    if stack.rms and device.compute < MASTER:
        total += positions * 2 * stack.width * (MASTER - device.compute)  # RMSNorm computes in float32
    return total


def returned(stack: Stack, positions: int, device: Device) -> int:
    """Bytes of gradients of activations at once within a block."""
    return positions * (3 if stack.gated else 2) * stack.inner * device.compute


def training(model: Model, row: Row, *, device: Device, world: int, checkpointing: bool, frozen: set[str]) -> dict:
    """Bytes of one worker at its peak, and of what it is made.

    frozen: parts that are not trained. Keys: parameters, moments (lie there all the time), gathered, gradients,
    activations (of the moment of the peak), start (weights as they are loaded, before they are sharded), peak.
    """
    trained = sum(count for part, count in model.parameters.items() if part not in frozen)
    weights, moments = MASTER * model.total // world, 2 * MASTER * trained // world
    state = weights + moments
    moments_of_step = [*backward_pass(model, row, device, world, checkpointing, frozen)]
    update = {"gathered": 0, "gradients": MASTER * trained // world, "activations": MASTER * trained // world}
    worst = max([*moments_of_step, update], key=lambda moment: sum(moment.values()))
    inputs = row.image_tokens * model.merged * model.patch_values * 4
    start = MASTER * model.total + weights
    peak = max(state + inputs + sum(worst.values()), start if world > 1 else 0)
    return {"parameters": weights, "moments": moments, "inputs": inputs, **worst, "start": start, "peak": peak}


def backward_pass(
    model: Model, row: Row, device: Device, world: int, checkpointing: bool, frozen: set[str]
) -> "list[dict[str, int]]":
    """{gathered, gradients, activations} after each unit of the backward pass."""
    patches = row.image_tokens * model.merged + row.images * model.classes
    stacks = [
        ("language", model.language, row.tokens, row.samples * row.longest if device.spread else 0),
        ("vision", model.vision, patches, patches if device.spread and model.vision.fused else 0),
    ]
    kept_by, blocks = [], []
    for part, stack, positions, padded in stacks:
        full = kept(stack, positions, device, padded)
        one = positions * stack.width * device.compute if checkpointing else full
        kept_by.append(one * stack.blocks)
        again = full if checkpointing else 0
        blocks += [(part, stack, one, again + returned(stack, positions, device))] * stack.blocks
    between = row.image_tokens * 3 * model.merged * model.vision.width * device.compute
    between += 2 * row.tokens * model.language.width * device.compute
    scores = row.answers * model.vocabulary * (MASTER if device.compute == MASTER else device.compute + MASTER)

    units = {id(stack): stack.parameters for stack in (model.vision, model.language) if stack.parameters >= UNIT}
    root = model.total - sum(s.blocks * s.parameters for s in (model.vision, model.language) if id(s) in units)
    largest = max(units.values(), default=0)
    gathered = device.compute * (root + (2 * largest if units else 0))
    gradients = 0 if "language" in frozen else device.compute * model.head
    head = {"gathered": gathered, "gradients": gradients,
            "activations": sum(kept_by) + between + 2 * scores}  # fmt: skip
    found, left, in_root = [head], sum(kept_by), gradients
    sharded = 0
    for part, stack, one, working in blocks:
        own = 0 if part in frozen else stack.parameters
        inside = 0
        if id(stack) in units:
            inside = own * (device.compute + MASTER)  # its gradient, and the copy that is reduced
            sharded += MASTER * own // world
        else:
            in_root += device.compute * own
        found.append({"gathered": gathered, "gradients": in_root + inside + sharded, "activations": left + between + working})
        left -= one
    rest = device.compute * root if not frozen else in_root
    reduced = rest * MASTER // device.compute if world > 1 else 0
    found.append({"gathered": gathered, "gradients": rest + reduced + sharded, "activations": 0})
    return found


def serving(model: Model, *, sequence: int, sequences: int) -> dict[str, int]:
    """Bytes of one engine: weights in bfloat16, and keys and values of a token, of one sequence of `sequence` tokens and
    of `sequences` of them."""
    token = 2 * model.language.blocks * model.language.key * 2
    return {"weights": 2 * model.total, "token": token, "sequence": token * sequence,
            "cache": token * sequence * sequences}  # fmt: skip
