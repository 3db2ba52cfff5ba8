"""What torch allocates during a step, and what it held before: the measure that estimates are held against.

The resident set of a process has Python, libraries and what malloc keeps in it, and on a CPU changes from run to run.
Torch's own account does not: every tensor's allocation and release, as `torch.cuda.max_memory_allocated` has it on a
GPU. On a CPU the profiler writes it down.
"""

from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes that torch held of those that it allocated during `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def held(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages of these tensors, each once; of a sharded one the own part."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in local)}.values())
