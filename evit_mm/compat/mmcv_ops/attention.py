"""Multi-scale deformable attention, on mmcv's own implementation in torch.

mmcv calls that one on a CPU, and the compiled operator wherever CUDA is available.
"""

import torch
from torch import Tensor

from .derivative import gradients
from .precision import widen, working_dtype

__all__ = ['OPERATORS']


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return weighted sums of samples of the feature maps of several levels.

    Args:
        value: Feature maps of all levels, one after the other, shape (B, sum of H * W, heads, D).
        value_spatial_shapes: Height and width of each level, shape (levels, 2).
        value_level_start_index: Where the levels start in ``value``, shape (levels,).
        sampling_locations: (x, y) in the unit square, shape (B, queries, heads, levels, points, 2).
        attention_weights: Shape (B, queries, heads, levels, points).
        im2col_step: Not used.

    Returns:
        Shape (B, queries, heads * D), dtype of ``value``.
    """
    shapes = value_spatial_shapes.tolist()
    output = _attention(_levels(value, shapes, value_level_start_index), shapes,
                        sampling_locations.to(working_dtype(value.dtype)),
                        attention_weights.to(working_dtype(value.dtype)))
    return output.to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Add the gradients of `ms_deform_attn_forward`.

    Args:
        value: As in the forward pass.
        value_spatial_shapes: As in the forward pass.
        value_level_start_index: As in the forward pass.
        sampling_locations: As in the forward pass.
        attention_weights: As in the forward pass.
        grad_output: Shape (B, queries, heads * D).
        grad_value: Added to in place, shape of ``value``.
        grad_sampling_loc: Added to in place, shape of ``sampling_locations``.
        grad_attn_weight: Added to in place, shape of ``attention_weights``.
        im2col_step: Not used.
    """
    if grad_output.numel() == 0:
        return
    shapes = value_spatial_shapes.tolist()
    dtype = working_dtype(value.dtype)

    def attention(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return _attention(_levels(value, shapes, value_level_start_index), shapes, locations,
                          weights)

    grads = gradients(attention, [widen(value), sampling_locations.to(dtype),
                                  attention_weights.to(dtype)], grad_output)
    for result, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        result.add_(grad)


def _levels(value: Tensor, shapes: list[list[int]], starts: Tensor) -> Tensor:
    """Return the levels without gaps, in the order of ``shapes`` and in the working dtype."""
    levels = [widen(value)[:, start:start + height * width]
              for start, (height, width) in zip(starts.tolist(), shapes, strict=True)]
    return torch.cat(levels, dim=1)


def _attention(value: Tensor, shapes: list[list[int]], locations: Tensor,
               weights: Tensor) -> Tensor:
    # Not at the top: this module is imported before mmcv.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    batch, queries = locations.shape[:2]
    if locations.numel() == 0 or value.numel() == 0:
        return value.new_zeros(batch, queries, value.shape[2] * value.shape[3])
    output: Tensor = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    return output


OPERATORS = (ms_deform_attn_forward, ms_deform_attn_backward)
