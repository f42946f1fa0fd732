"""Precise RoI pooling: the integral of a bilinearly interpolated feature map over each bin."""

import torch
from torch import Tensor

from .derivative import gradients
from .precision import widen, working_dtype

__all__ = ['OPERATORS']

_MAX_VALUES = 2 ** 24  # between the sums along y and along x, at once


def prroi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Average an interpolated feature map over each bin of each RoI.

    Args:
        input: Feature maps, shape (N, C, H, W); zero from one pixel beyond the border on.
        rois: ``(image index, x1, y1, x2, y2)``, shape (K, 5).
        output: Written in place, shape (K, C, pooled_height, pooled_width); 0 for RoIs without
            extent.
        pooled_height: Bins per RoI along y.
        pooled_width: Bins per RoI along x.
        spatial_scale: Pixels of the feature map per unit of the RoIs' coordinates.
    """
    if output.numel() == 0:
        return
    output.copy_(_prroi_pool(widen(input), rois.to(working_dtype(input.dtype)),
                             (pooled_height, pooled_width), spatial_scale))


def prroi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of `prroi_pool_forward` by its input.

    Args:
        grad_output: Shape (K, C, pooled_height, pooled_width).
        rois: As in the forward pass.
        grad_input: Added to in place, shape (N, C, H, W).
        pooled_height: As in the forward pass, like all that follow.
        pooled_width: See ``pooled_height``.
        spatial_scale: See ``pooled_height``.
    """
    if grad_output.numel() == 0:
        return
    boxes = rois.to(working_dtype(grad_input.dtype))
    maps = widen(torch.zeros_like(grad_input))  # the gradient does not depend on it
    grad_input.add_(gradients(
        lambda maps: _prroi_pool(maps, boxes, (pooled_height, pooled_width), spatial_scale), [maps],
        grad_output)[0])


def prroi_pool_coor_backward(
    output: Tensor,
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    grad_rois: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of `prroi_pool_forward` by the coordinates of the RoIs.

    Args:
        output: Not used.
        grad_output: Shape (K, C, pooled_height, pooled_width).
        input: As in the forward pass.
        rois: As in the forward pass.
        grad_rois: Added to in place, shape (K, 5); nothing to the image indices.
        pooled_height: As in the forward pass, like all that follow.
        pooled_width: See ``pooled_height``.
        spatial_scale: See ``pooled_height``.
    """
    if grad_output.numel() == 0:
        return
    maps = widen(input)
    grad_rois.add_(gradients(
        lambda boxes: _prroi_pool(maps, boxes, (pooled_height, pooled_width), spatial_scale),
        [rois.to(maps.dtype)], grad_output)[0])


def _prroi_pool(maps: Tensor, boxes: Tensor, bins: tuple[int, int], spatial_scale: float) -> Tensor:
    """Return the averages, shape (K, C, *bins); differentiable by ``maps`` and ``boxes``."""
    corners = boxes[:, 1:] * spatial_scale
    # The integral over a bin is a sum over pixels, with a factor for each axis.
    along_x = _shares(corners[:, 0], corners[:, 2], bins[1], maps.shape[3])
    along_y = _shares(corners[:, 1], corners[:, 3], bins[0], maps.shape[2])
    output = maps.new_zeros(len(boxes), maps.shape[1], *bins)
    count = max(1, _MAX_VALUES // max(1, bins[0] * maps.shape[1] * maps.shape[3]))
    images = boxes[:, 0].detach().long()
    for image in images.unique().tolist():
        for chunk in (images == image).nonzero()[:, 0].split(count):
            rows = torch.einsum('kph,chw->kcpw', along_y[chunk], maps[image])
            output = output.index_copy(
                0, chunk, torch.einsum('kcpw,kqw->kcpq', rows, along_x[chunk]))
    return output


def _shares(start: Tensor, end: Tensor, bins: int, size: int) -> Tensor:
    """Return the share of each pixel in the average over each bin of an axis.

    Args:
        start: First border of the RoIs, in pixels, shape (K,).
        end: Last border, shape (K,).
        bins: Number of bins.
        size: Number of pixels.

    Returns:
        Shape (K, bins, size).
    """
    width = (end - start).clamp(min=0) / bins
    borders = start[:, None] + torch.arange(bins + 1, device=start.device) * width[:, None]
    # A pixel counts with a triangle of two pixels' width around it; this is its integral.
    t = borders[:, :, None] - torch.arange(size, device=start.device)
    t = t.clamp(-1, 1)
    integral = 0.5 + t - t * t.abs() / 2
    width = width[:, None, None]
    has_width = width > 0
    return torch.where(has_width, integral.diff(dim=1) / torch.where(has_width, width, 1.0), 0.0)


OPERATORS = (prroi_pool_forward, prroi_pool_backward, prroi_pool_coor_backward)
