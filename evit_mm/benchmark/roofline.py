"""The least time that a network's arithmetic can take on this machine.

It is what the network's multiply-adds would take if all of them ran at the best rate that the
machine reaches on the network's own dense convolutions: the heaviest ones, 1x1 and larger, alone,
channels-last, in the same number format, taking turns with what is measured. Depthwise
convolutions, attention, activations and copies run slower or do no arithmetic at all; what they
cost is the distance to the floor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .timing import Work

__all__ = ['Convolution', 'convolution_work', 'heaviest_convolutions']

_CONVOLUTION = torch.ops.aten.convolution.default
_GRAPH_REPEATS = 20


@dataclass(frozen=True)
class Convolution:
    """A dense convolution and what it is given.

    Attributes:
        image: Shape of the input (B, C, H, W).
        weight: Shape of the weight (C_out, C, h, w).
        stride: Vertical and horizontal stride.
        padding: Vertical and horizontal padding.
        macs: Multiply-adds.
    """

    image: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    macs: int

    def __str__(self) -> str:
        kernel = 'x'.join(map(str, self.weight[2:]))
        size = 'x'.join(map(str, self.image))
        return f'{kernel} to {self.weight[0]} channels, stride {self.stride[0]}, of {size}'


class _Recorder(TorchDispatchMode):
    """Notes every dense convolution that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[Convolution] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        if func is not _CONVOLUTION and not torch.is_grad_enabled():
            # Without a gradient torch shows us conv2d whole.
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = func(*args, **(kwargs or {}))
        if func is _CONVOLUTION:
            image, weight, _, stride, padding, dilation, transposed, _, groups = args
            if groups == 1 and not transposed and set(dilation) == {1}:
                macs = result.numel() * weight[0].numel()
                self.found.add(Convolution(tuple(image.shape), tuple(weight.shape), tuple(stride),
                                           tuple(padding), macs))
        return result


def heaviest_convolutions(work: Work, given: Any, *, each: int = 3) -> list[Convolution]:
    """The dense convolutions of the most arithmetic.

    Args:
        work: The network, not compiled.
        given: What its first step is given.
        each: How many pointwise ones to return, and how many larger ones.
    """
    with _Recorder() as recorder:
        for step in work.values():
            given = step(given)
    ranked = sorted(recorder.found, key=lambda conv: (-conv.macs, str(conv)))
    pointwise = [conv for conv in ranked if set(conv.weight[2:]) == {1}]
    larger = [conv for conv in ranked if set(conv.weight[2:]) != {1}]
    return pointwise[:each] + larger[:each]


def convolution_work(conv: Convolution, dtype: torch.dtype, device: torch.device
                     ) -> tuple[Work, Callable[[float], float]]:
    """A convolution to take turns with.

    On CUDA twenty of them run from one CUDA graph, as a single one would measure its launch.

    Returns:
        tuple: The work, which is given None, and what turns its milliseconds into a rate, in
        multiply-adds per second.
    """
    def tensor(shape: tuple[int, ...]) -> Tensor:
        made = torch.randn(shape, device=device, dtype=dtype)
        return made.contiguous(memory_format=torch.channels_last)

    image, weight = tensor(conv.image), tensor(conv.weight)

    @torch.inference_mode()
    def once(_: Any = None) -> Tensor:
        return F.conv2d(image, weight, None, conv.stride, conv.padding)  # type: ignore[arg-type]

    if device.type != 'cuda':
        return {'convolution': once}, lambda ms: conv.macs / ms * 1e3
    graph = _captured(once, device)
    return ({'convolution': lambda _: graph.replay()},
            lambda ms: _GRAPH_REPEATS * conv.macs / ms * 1e3)


def _captured(once: Callable[[], Any], device: torch.device) -> torch.cuda.CUDAGraph:
    # cuDNN chooses its kernel at the first call, which must not be captured.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            once()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_GRAPH_REPEATS):
            once()
    return graph
