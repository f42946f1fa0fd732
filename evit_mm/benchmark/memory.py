"""How much memory a step takes at its peak, and how much it keeps for the backward pass."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._profiler import _EventType
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

__all__ = ['peak_bytes', 'saved_bytes']


def peak_bytes(action: Callable[[], Any], device: torch.device) -> int:
    """The most memory that ``action`` holds at once, beyond what was held before it.

    Weights and input are there before and do not count; outputs and gradients that it makes do.
    On the CPU these are the bytes that torch's allocator hands out, as its profiler records them,
    the buffers of compiled code among them; a library's own scratch memory is not seen. On CUDA it
    is `torch.cuda.max_memory_allocated` above what was allocated before.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _keep = action()  # until the peak is read, as the CPU's branch does
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Or a torch that could use CUDA prints an error where there is none.
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True,
                 acc_events=True) as recorded:
        _keep = action()
    del _keep
    return _peak(_allocations(recorded))


def saved_bytes(action: Callable[[], Any], modules: Iterable[nn.Module]) -> int:
    """Bytes that a forward pass saves for the backward pass.

    Every storage counts once and in full, however many views of it are saved. Parameters and
    buffers are there anyway and do not count; weights computed from them, and the input, do.

    Args:
        action: The forward pass.
        modules: Whose parameters and buffers not to count.
    """
    own = {_storage(tensor) for module in modules
           for tensor in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in own:
            saved[key] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        # What it returns leads to what it saved: let go of it only when all is counted, so that no
        # address is used twice.
        _keep = action()
    del _keep
    return sum(saved.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _allocations(recorded: profile) -> list[tuple[int, int]]:
    """Address and size of what was taken (positive) and given back (negative), in that order."""
    profiler = recorded.profiler
    if profiler is None or profiler.kineto_results is None:
        raise RuntimeError('this torch has no profiler')
    waiting: list[Any] = list(profiler.kineto_results.experimental_event_tree())
    found = []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields))
    found.sort(key=lambda pair: pair[0])
    return [(fields.ptr, fields.alloc_size) for _, fields in found]


def _peak(allocations: Iterable[tuple[int, int]]) -> int:
    """The most that was held at once of what was taken here."""
    live: dict[int, int] = {}
    held = peak = 0
    for address, size in allocations:
        if size > 0:
            live[address] = size
            held += size
            peak = max(peak, held)
        else:
            # What was there before has no entry: giving it back makes no room in this account.
            held -= live.pop(address, 0)
    return peak
