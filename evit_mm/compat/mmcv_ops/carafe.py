"""CARAFE: upsampling with a kernel for each pixel of the output."""

import torch
from torch import Tensor
from torch.nn import functional

from .derivative import gradients
from .precision import working_dtype

__all__ = ['OPERATORS']


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Upsample feature maps: each pixel of the output is a weighted sum around its source.

    Args:
        features: Shape (B, C, H, W).
        masks: Weights, shape (B, group_size * kernel_size ** 2, H * scale_factor,
            W * scale_factor).
        output: Written in place, shape (B, C, H * scale_factor, W * scale_factor).
        kernel_size: Width and height of the kernels, odd.
        group_size: Number of groups of channels with kernels of their own.
        scale_factor: Factor of the size.
    """
    if output.numel() == 0:
        return
    dtype = working_dtype(features.dtype)
    output.copy_(_carafe(features.to(dtype), masks.to(dtype), kernel_size, group_size,
                         scale_factor))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Add the gradients of `carafe_naive_forward` by its features and masks.

    Args:
        top_grad: Shape (B, C, H * scale_factor, W * scale_factor).
        features: As in the forward pass.
        masks: As in the forward pass.
        bottom_grad: Added to in place, shape of ``features``.
        mask_grad: Added to in place, shape of ``masks``.
        kernel_size: As in the forward pass, like all that follow.
        group_size: See ``kernel_size``.
        scale_factor: See ``kernel_size``.
    """
    if top_grad.numel() == 0:
        return
    dtype = working_dtype(features.dtype)
    grads = gradients(
        lambda features, masks: _carafe(features, masks, kernel_size, group_size, scale_factor),
        [features.to(dtype), masks.to(dtype)], top_grad)
    bottom_grad.add_(grads[0])
    mask_grad.add_(grads[1])


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Do the same as `carafe_naive_forward`, and keep the features.

    Args:
        features: See `carafe_naive_forward`.
        masks: See `carafe_naive_forward`.
        rfeatures: Receives ``features``: all that mmcv hands to the backward pass.
        routput: Not used.
        rmasks: Not used.
        output: See `carafe_naive_forward`, like all that follow.
        kernel_size: See ``output``.
        group_size: See ``output``.
        scale_factor: See ``output``.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Do the same as `carafe_naive_backward`.

    Args:
        top_grad: See `carafe_naive_backward`.
        rfeatures: As written by `carafe_forward`.
        masks: As in the forward pass.
        rtop_grad: Not used.
        rbottom_grad_hs: Not used.
        rbottom_grad: Not used.
        rmask_grad: Not used.
        bottom_grad: See `carafe_naive_backward`, like all that follow.
        mask_grad: See ``bottom_grad``.
        kernel_size: See ``bottom_grad``.
        group_size: See ``bottom_grad``.
        scale_factor: See ``bottom_grad``.
    """
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size,
                          group_size, scale_factor)


def _carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int,
            scale_factor: int) -> Tensor:
    """Return the upsampled maps; differentiable by both."""
    batch, channels, height, width = features.shape
    padded = functional.pad(features, [kernel_size // 2] * 4).unflatten(1, (group_size, -1))
    # (B, groups, places of the kernel, H, scale_factor, W, scale_factor)
    weights = masks.reshape(batch, group_size, kernel_size ** 2, height, scale_factor, width,
                            scale_factor)
    output = features.new_zeros(batch, group_size, channels // group_size, height, scale_factor,
                                width, scale_factor)
    for place in range(kernel_size ** 2):  # one at a time, which saves memory
        y, x = divmod(place, kernel_size)
        pixels = padded[..., y:y + height, x:x + width]
        output = torch.addcmul(output, pixels[..., :, None, :, None], weights[:, :, None, place])
    return output.reshape(batch, channels, height * scale_factor, width * scale_factor)


OPERATORS = (carafe_naive_forward, carafe_naive_backward, carafe_forward, carafe_backward)
