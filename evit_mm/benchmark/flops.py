"""Parameters and multiply-adds of models."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .timing import Steps

__all__ = ['count_macs', 'count_parameters']


def count_macs(steps: Steps, inputs: Any) -> dict[str, int]:
    """Count the multiply-adds of convolutions and matrix products, by step.

    Papers on light models often call them FLOPs; they are half of the floating-point operations.
    A step may be a backward pass.

    Args:
        steps: The steps of a model, not compiled.
        inputs: The input of the first step.
    """
    macs: dict[str, int] = {}
    corrected = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=corrected) as counter:
        for name, step in steps.items():
            before = counter.get_total_flops()
            inputs = step(inputs)
            macs[name] = (counter.get_total_flops() - before) // 2
    return macs


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Count the parameters of several modules; shared ones count once."""
    sizes = {id(parameter): parameter.numel()
             for module in modules for parameter in module.parameters()}
    return sum(sizes.values())


def _convolution_backward_flops(grad_shape: Sequence[int], image_shape: Sequence[int],
                                weight_shape: Sequence[int], bias: Any, stride: Any, padding: Any,
                                dilation: Any, transposed: bool, output_padding: Any, groups: int,
                                output_mask: Sequence[bool], **_: Any) -> int:
    """Count the floating-point operations of the backward pass of a convolution.

    The gradients of input and weight cost as much as the forward pass each. torch's own rule takes
    the weight of a depthwise convolution for a dense one, and overcounts by the number of channels.
    """
    pixels = image_shape if transposed else grad_shape
    forward = 2 * prod(pixels) * prod(weight_shape[1:])
    return forward * sum(map(bool, output_mask[:2]))
