"""Autograd through a convolution and the frozen BN behind it.

With fixed statistics a BN multiplies each channel with ``scale = gamma / sqrt(var + eps)`` and adds
``shift = beta - mean * scale``. Convolving with the scaled kernel gives the same result without the
map between the two, which plain autograd would keep for the gradient of ``gamma``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['conv_frozen_bn']


def conv_frozen_bn(x: Tensor, conv: nn.Conv2d, norm: _BatchNorm) -> Tensor:
    """Compute ``norm(conv(x))`` for a BN in eval mode, as a single convolution.

    The scaled kernel is computed again in the backward pass instead of being kept: the kernels of a
    whole network are as large as its activations on small images.

    Args:
        x: (B, C_in, H, W).
        conv: A convolution without bias.
        norm: A BN with running statistics, in eval mode.

    Returns:
        Tensor: (B, C_out, H', W'). Gradients reach ``x``, the kernel, and the BN's scale and shift,
        and can be differentiated again.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    deviation = (norm.running_var + norm.eps).sqrt()
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    return _ConvFrozenBN.apply(x, conv.weight, norm.weight, norm.bias, norm.running_mean, deviation,
                               geometry)


def _scale(gamma: Tensor | None, deviation: Tensor) -> Tensor:
    return deviation.reciprocal() if gamma is None else gamma / deviation


class _ConvFrozenBN(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gamma: Tensor | None, beta: Tensor | None,
                mean: Tensor, deviation: Tensor, geometry: tuple[Any, Any, Any, int]) -> Tensor:
        ctx.save_for_backward(x, weight, gamma, mean, deviation)
        ctx.geometry = geometry
        scale = _scale(gamma, deviation)
        shift = -mean * scale if beta is None else beta - mean * scale
        return F.conv2d(x, weight * scale.view(-1, 1, 1, 1), shift, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gamma, mean, deviation = ctx.saved_tensors
        needs_x, needs_weight, needs_gamma, needs_beta = ctx.needs_input_grad[:4]
        scale = _scale(gamma, deviation)
        scaled = weight * scale.view(-1, 1, 1, 1)
        stride, padding, dilation, groups = ctx.geometry
        # In grad's dtype, which is a lower one than the weight's under autocast.
        grad_x, grad_scaled, grad_shift = torch.ops.aten.convolution_backward(
            grad, x.to(grad.dtype), scaled.to(grad.dtype), [len(scale)], stride, padding, dilation,
            False, [0, 0], groups,
            [needs_x, needs_weight or needs_gamma, needs_gamma or needs_beta])
        grad_weight = grad_gamma = None
        if needs_gamma:  # both the scaled kernel and the shift contain it
            grad_scale = (grad_scaled * weight).sum((1, 2, 3)) - grad_shift * mean
            grad_gamma = grad_scale / deviation
        if needs_weight:
            grad_weight = _with_strides_of(weight, grad_scaled * scale.view(-1, 1, 1, 1))
        return (grad_x if grad_x is None else grad_x.to(x.dtype), grad_weight, grad_gamma,
                grad_shift.to(mean.dtype) if needs_beta else None, None, None, None)


def _with_strides_of(weight: Tensor, grad: Tensor) -> Tensor:
    """Return the same numbers with the weight's strides, which DDP compares.

    A kernel with one row and column has several equivalent strides; DDP warns when they differ.
    """
    if grad.stride() != weight.stride() and grad.is_contiguous() and weight.is_contiguous():
        return grad.as_strided(weight.shape, weight.stride())
    return grad
