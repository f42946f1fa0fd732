"""Deformable convolution, with masks (DCNv2) and without (DCN), on torchvision's operator.

Both libraries order the channels of an offset alike: (y, x) for each place of the kernel, for each
group of channels that shares offsets. Both take the input as zero from one pixel beyond its border
on.
"""

import torch
import torchvision  # noqa: F401  (registers the operators in torch.ops.torchvision)
from torch import Tensor

from .precision import working_dtype

__all__ = ['OPERATORS']


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Convolve an input, sampled at the places of the kernel plus offsets.

    Args:
        input: Shape (B, C, H, W).
        weight: Shape (O, C / group, kH, kW).
        offset: In pixels, shape (B, deformable_group * kH * kW * 2, H_out, W_out).
        output: Written in place, shape (B, O, H_out, W_out).
        columns: Not used here.
        ones: Not used.
        kW: Width of the kernel; ``weight`` has it.
        kH: Height of the kernel; ``weight`` has it.
        dW: Stride along x.
        dH: Stride along y.
        padW: Padding at the left and right.
        padH: Padding at the top and bottom.
        dilationW: Dilation along x.
        dilationH: Dilation along y.
        group: Number of groups of channels.
        deformable_group: Number of groups of channels with offsets of their own.
        im2col_step: Not used; torchvision chooses how many images it computes at once.
    """
    if output.numel() == 0:
        return
    output.copy_(_forward(input, weight, offset, None, None, (dH, dW), (padH, padW),
                          (dilationH, dilationW), group, deformable_group))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Add the gradients of `deform_conv_forward` by its input and offset.

    Args:
        input: As in the forward pass.
        offset: As in the forward pass.
        gradOutput: Shape (B, O, H_out, W_out).
        gradInput: Added to in place, shape of ``input``.
        gradOffset: Added to in place, shape of ``offset``.
        weight: As in the forward pass.
        columns: Buffer of any shape; receives the gradient by the weight, which
            `deform_conv_backward_parameters` needs next, and torchvision computes along.
        kW: As in the forward pass, like all that follow.
        kH: See ``kW``.
        dW: See ``kW``.
        dH: See ``kW``.
        padW: See ``kW``.
        padH: See ``kW``.
        dilationW: See ``kW``.
        dilationH: See ``kW``.
        group: See ``kW``.
        deformable_group: See ``kW``.
        im2col_step: Not used.
    """
    if gradOutput.numel() == 0:
        return
    grads = _backward(gradOutput, input, weight, offset, None, None, (dH, dW), (padH, padW),
                      (dilationH, dilationW), group, deformable_group)
    gradInput.add_(grads[0])
    gradOffset.add_(grads[2])
    columns.resize_(weight.shape).copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add the gradient of `deform_conv_forward` by its weight.

    Args:
        input: As in the forward pass.
        offset: As in the forward pass.
        gradOutput: Shape (B, O, H_out, W_out).
        gradWeight: Added to in place, shape (O, C / group, kH, kW).
        columns: What `deform_conv_backward_input` left of the same backward pass, or empty;
            emptied.
        ones: Not used.
        kW: As in the forward pass, like all that follow.
        kH: See ``kW``.
        dW: See ``kW``.
        dH: See ``kW``.
        padW: See ``kW``.
        padH: See ``kW``.
        dilationW: See ``kW``.
        dilationH: See ``kW``.
        group: See ``kW``.
        deformable_group: See ``kW``.
        scale: Factor of the gradient.
        im2col_step: Not used.
    """
    if gradOutput.numel() == 0:
        return
    if columns.shape == gradWeight.shape:
        gradWeight.add_(columns, alpha=scale)
        columns.resize_(0)
        return
    # torchvision takes the weight for its shape and for the other gradients.
    grads = _backward(gradOutput, input, torch.zeros_like(gradWeight), offset, None, None, (dH, dW),
                      (padH, padW), (dilationH, dilationW), group, deformable_group)
    gradWeight.add_(grads[1], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Convolve an input, sampled at the places of the kernel plus offsets and scaled by a mask.

    Args:
        input: Shape (B, C, H, W).
        weight: Shape (O, C / group, kernel_h, kernel_w).
        bias: Shape (O,), or anything without ``with_bias``.
        ones: Not used.
        offset: In pixels, shape (B, deformable_group * kernel_h * kernel_w * 2, H_out, W_out). Its
            last two sizes may be larger, see `_resized`.
        mask: Factors, shape (B, deformable_group * kernel_h * kernel_w, H_out, W_out), like
            ``offset``.
        output: Written in place, shape (B, O, H_out, W_out).
        columns: Not used.
        kernel_h: Height of the kernel; ``weight`` has it.
        kernel_w: Width of the kernel; ``weight`` has it.
        stride_h: Stride along y.
        stride_w: Stride along x.
        pad_h: Padding at the top and bottom.
        pad_w: Padding at the left and right.
        dilation_h: Dilation along y.
        dilation_w: Dilation along x.
        group: Number of groups of channels.
        deformable_group: Number of groups of channels with offsets and masks of their own.
        with_bias: Whether ``bias`` is added.
    """
    if output.numel() == 0:
        return
    size = output.shape[2:]
    output.copy_(_forward(input, weight, _resized(offset, size), _resized(mask, size),
                          bias if with_bias else None,
                          (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group,
                          deformable_group))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Add the gradients of `modulated_deform_conv_forward` by each of its tensors.

    Args:
        input: As in the forward pass.
        weight: As in the forward pass.
        bias: As in the forward pass.
        ones: Not used.
        offset: As in the forward pass.
        mask: As in the forward pass.
        columns: Not used.
        grad_input: Added to in place, shape of ``input``.
        grad_weight: Added to in place, shape of ``weight``.
        grad_bias: Added to in place, shape (O,), if ``with_bias``.
        grad_offset: Added to in place, shape of ``offset``.
        grad_mask: Added to in place, shape of ``mask``.
        grad_output: Shape (B, O, H_out, W_out).
        kernel_h: As in the forward pass, like all that follow.
        kernel_w: See ``kernel_h``.
        stride_h: See ``kernel_h``.
        stride_w: See ``kernel_h``.
        pad_h: See ``kernel_h``.
        pad_w: See ``kernel_h``.
        dilation_h: See ``kernel_h``.
        dilation_w: See ``kernel_h``.
        group: See ``kernel_h``.
        deformable_group: See ``kernel_h``.
        with_bias: See ``kernel_h``.
    """
    if grad_output.numel() == 0:
        return
    size = grad_output.shape[2:]
    grads = _backward(grad_output, input, weight, _resized(offset, size), _resized(mask, size),
                      bias if with_bias else None, (stride_h, stride_w), (pad_h, pad_w),
                      (dilation_h, dilation_w), group, deformable_group)
    grad_input.add_(grads[0])
    grad_weight.add_(grads[1])
    grad_offset.add_(_restored(grads[2], offset.shape))
    grad_mask.add_(_restored(grads[3], mask.shape))
    if with_bias:
        grad_bias.add_(grads[4])


_Pair = tuple[int, int]


def _resized(values: Tensor, size: torch.Size) -> Tensor:
    """Return offsets or a mask with the size of the output.

    The compiled operator never looks at the size of these tensors: it reads as many values of each
    image as it needs, one after the other. MMDetection's DyHead needs that, as it applies the
    offsets of a level to the next, smaller one.

    Args:
        values: Shape (B, P, H, W).
        size: Height and width of the output.

    Returns:
        Shape (B, P, *size).

    Raises:
        ValueError: If ``values`` has fewer than that.
    """
    if values.shape[2:] == size:
        return values
    count = values.shape[1] * size.numel()
    if values[0].numel() < count:
        raise ValueError(
            f'offsets and masks of a deformable convolution need the size of its output, '
            f'{tuple(size)}, but one has {tuple(values.shape[2:])}')
    return values.flatten(1)[:, :count].unflatten(1, (values.shape[1], *size))


def _restored(grad: Tensor, shape: torch.Size) -> Tensor:
    """Return the gradient by what was given to `_resized`, from that by what it returned."""
    if grad.shape == shape:
        return grad
    values = grad.flatten(1)
    restored = values.new_zeros(shape).flatten(1)
    restored[:, :values.shape[1]] = values
    return restored.view(shape)


def _forward(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None,
             bias: Tensor | None, stride: _Pair, padding: _Pair, dilation: _Pair, groups: int,
             offset_groups: int) -> Tensor:
    """Return the convolution, in the working dtype of ``input``."""
    output: Tensor = torch.ops.torchvision.deform_conv2d(
        *_tensors(input, weight, offset, mask, bias), *stride, *padding, *dilation, groups,
        offset_groups, mask is not None)
    return output


def _backward(grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor,
              mask: Tensor | None, bias: Tensor | None, stride: _Pair, padding: _Pair,
              dilation: _Pair, groups: int, offset_groups: int) -> tuple[Tensor, ...]:
    """Return the gradients by input, weight, offset, mask and bias, in the working dtype."""
    # torchvision calls this one in its own backward pass. The public way there would compute the
    # forward pass again.
    grads: tuple[Tensor, ...] = torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(working_dtype(input.dtype)), *_tensors(input, weight, offset, mask, bias),
        *stride, *padding, *dilation, groups, offset_groups, mask is not None)
    return grads


def _tensors(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None,
             bias: Tensor | None) -> list[Tensor]:
    """Return the tensors that torchvision expects; it ignores an empty mask."""
    dtype = working_dtype(input.dtype)
    mask = input.new_zeros(len(input), 0) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    return [tensor.to(dtype) for tensor in (input, weight, offset, mask, bias)]


OPERATORS = (
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
)
