"""What models cost before any clock runs: parameters and multiply-adds."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .timing import Work

__all__ = ['count_macs', 'count_parameters']


def count_macs(work: Work, given: Any) -> dict[str, int]:
    """Multiply-adds of convolutions and matrix products, by step.

    Papers on light models often call them FLOPs; they are half of the floating-point operations.
    A step that goes backward counts too.

    Args:
        work: Steps in a form whose operators torch knows: not compiled.
        given: What the first step is given.
    """
    macs: dict[str, int] = {}
    corrected = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=corrected) as counter:
        for name, step in work.items():
            before = counter.get_total_flops()
            given = step(given)
            macs[name] = (counter.get_total_flops() - before) // 2
    return macs


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Number of the parameters of several modules; what they share counts once."""
    found = {id(parameter): parameter.numel()
             for module in modules for parameter in module.parameters()}
    return sum(found.values())


def _convolution_backward_flops(grad_shape: Sequence[int], image_shape: Sequence[int],
                                weight_shape: Sequence[int], bias: Any, stride: Any, padding: Any,
                                dilation: Any, transposed: bool, output_padding: Any, groups: int,
                                wanted: Sequence[bool], **_: Any) -> int:
    """Each of the two gradients costs what the forward pass does.

    torch's own rule takes the gradient of a depthwise weight for that of a dense one, and counts
    it as many times too often as there are channels.
    """
    pixels = image_shape if transposed else grad_shape
    forward = 2 * prod(pixels) * prod(weight_shape[1:])
    return forward * sum(map(bool, wanted[:2]))
