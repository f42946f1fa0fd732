"""Memory of a training or inference step: its peak, and what it saves for the backward pass."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

__all__ = ['peak_bytes', 'saved_bytes']


def peak_bytes(action: Callable[[], Any], device: torch.device) -> int:
    """Return the most memory that ``action`` holds at once, in bytes.

    Memory that was allocated before, such as weights and input, does not count; outputs and
    gradients do. On a CPU this is the memory of torch's allocator, as its profiler records it,
    including the buffers of compiled code but not the scratch memory of libraries. On CUDA it is
    `torch.cuda.max_memory_allocated` minus what was allocated before.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _outputs = action()  # kept until the peak is read, as on a CPU
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Without it, a torch built for CUDA prints an error on a machine without a GPU.
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True,
                 acc_events=True) as profiler:
        _outputs = action()
    del _outputs
    return _peak(_allocations(profiler))


def saved_bytes(action: Callable[[], Any], modules: Iterable[nn.Module]) -> int:
    """Return the bytes that a forward pass saves for the backward pass.

    Each storage counts once and in full, however many views of it are saved. Parameters and
    buffers do not count; the input, and weights that are computed from parameters, do.

    Args:
        action: The forward pass.
        modules: The modules whose parameters and buffers do not count.
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
        # The outputs hold the graph: freed any earlier, an address could be used twice.
        _outputs = action()
    del _outputs
    return sum(saved.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _allocations(profiler: profile) -> list[tuple[int, int]]:
    """Return address and size of each allocation (positive) and release (negative), in order."""
    # The exported trace is the only public place with single allocations: the profiler's events
    # have the net sum of each operator, which hides what an operator frees before it returns.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding='utf-8', errors='replace'))
    events = [event for event in trace['traceEvents'] if event.get('name') == '[memory]']
    events.sort(key=lambda event: event['ts'])
    return [(event['args']['Addr'], event['args']['Bytes']) for event in events]


def _peak(allocations: Iterable[tuple[int, int]]) -> int:
    """Return the most bytes that were held at once, of those allocated in the list."""
    live: dict[int, int] = {}
    held = peak = 0
    for address, size in allocations:
        if size > 0:
            live[address] = size
            held += size
            peak = max(peak, held)
        else:
            # Memory from before has no entry, and its release makes no room in this account.
            held -= live.pop(address, 0)
    return peak
