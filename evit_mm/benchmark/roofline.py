"""A lower bound of a network's time on this machine: its floor.

The floor is the time of the network's multiply-adds at the best rate that the machine reaches on
the network's own dense convolutions: the heaviest ones, pointwise and larger, each alone,
channels-last, in the same dtype, taking turns with the networks. Depthwise convolutions, attention,
activations and copies are slower or do no arithmetic; they are the distance from the floor.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .timing import Steps, capture_cuda_graph

__all__ = ['Convolution', 'convolution_steps', 'heaviest_convolutions']

_GRAPH_REPEATS = 20


@dataclass(frozen=True)
class Convolution:
    """A dense convolution and the shape of its input.

    Attributes:
        image: Shape of the input (B, C, H, W).
        weight: Shape of the weight (C_out, C, h, w).
        stride: Vertical and horizontal stride.
        padding: Vertical and horizontal padding, or ``'same'`` or ``'valid'``.
        macs: Multiply-adds.
    """

    image: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    macs: int

    def __str__(self) -> str:
        kernel = 'x'.join(map(str, self.weight[2:]))
        size = 'x'.join(map(str, self.image))
        return f'{kernel} to {self.weight[0]} channels, stride {self.stride[0]}, of {size}'


def heaviest_convolutions(modules: Iterable[nn.Module], forward: Callable[[], Any], *,
                          each: int = 3) -> list[Convolution]:
    """Return the dense convolutions with the most multiply-adds.

    Args:
        modules: The network; its convolutions are `nn.Conv2d` modules.
        forward: Runs the network once.
        each: Number of pointwise convolutions to return, and of larger ones.
    """
    seen: set[Convolution] = set()

    def record(conv: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs = output.numel() * conv.weight[0].numel()
        seen.add(Convolution(tuple(inputs[0].shape), tuple(conv.weight.shape), conv.stride,
                             conv.padding, macs))

    hooks = [conv.register_forward_hook(record)
             for module in modules for conv in module.modules()
             if isinstance(conv, nn.Conv2d) and conv.groups == 1 and set(conv.dilation) == {1}]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    ranked = sorted(seen, key=lambda conv: (-conv.macs, str(conv)))
    pointwise = [conv for conv in ranked if set(conv.weight[2:]) == {1}]
    larger = [conv for conv in ranked if set(conv.weight[2:]) != {1}]
    return pointwise[:each] + larger[:each]


def convolution_steps(conv: Convolution, dtype: torch.dtype, device: torch.device
                      ) -> tuple[Steps, Callable[[float], float]]:
    """Make a convolution that can be timed.

    On CUDA, one step is twenty runs in a CUDA graph: a single run would measure its launch.

    Returns:
        tuple: The steps, whose input is None, and a function from milliseconds to multiply-adds
        per second.
    """
    def tensor(shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, device=device, dtype=dtype)
        return values.contiguous(memory_format=torch.channels_last)

    image, weight = tensor(conv.image), tensor(conv.weight)

    @torch.inference_mode()
    def once(_: Any = None) -> Tensor:
        return F.conv2d(image, weight, None, conv.stride, conv.padding)  # type: ignore[arg-type]

    if device.type != 'cuda':
        return {'convolution': once}, lambda ms: conv.macs / ms * 1e3

    def repeat() -> None:
        for _ in range(_GRAPH_REPEATS):
            once()

    replay, _ = capture_cuda_graph(repeat, device)
    return ({'convolution': lambda _: replay()},
            lambda ms: _GRAPH_REPEATS * conv.macs / ms * 1e3)
