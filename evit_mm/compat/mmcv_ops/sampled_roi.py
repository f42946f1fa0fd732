"""Averages over regions whose bins are displaced by offsets, or rotated."""

from collections.abc import Callable

import torch
from torch import Tensor

from .bilinear import interpolate, pixels
from .derivative import gradients
from .precision import widen, working_dtype
from .roi import sampling_groups

__all__ = ['OPERATORS']

# Turns places in unrotated RoIs, (y, x), into places on the feature map, for a group of RoIs.
_Placement = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Average bilinear samples of a feature map in each bin of each RoI, bins being displaced.

    Args:
        input: Feature maps, shape (N, C, H, W).
        rois: ``(image index, x1, y1, x2, y2)``, shape (K, 5); may differ in dtype.
        offset: Displacements of bins along x and y as shares of the RoI's size over ``gamma``,
            shape (K, 2, pooled_height, pooled_width), or empty for none.
        output: Written in place, shape (K, C, pooled_height, pooled_width).
        pooled_height: Bins per RoI along y.
        pooled_width: Bins per RoI along x.
        spatial_scale: Pixels of the feature map per unit of the RoIs' coordinates.
        sampling_ratio: Samples per bin and axis; 0 for one per pixel of the feature map.
        gamma: Factor of ``offset``.
    """
    if output.numel() == 0:
        return
    dtype = working_dtype(input.dtype)
    output.copy_(_deform_roi_pool(widen(input), rois.to(dtype), offset.to(dtype),
                                  (pooled_height, pooled_width), spatial_scale, sampling_ratio,
                                  gamma))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Add the gradients of `deform_roi_pool_forward` by its input and offset.

    Args:
        grad_output: Shape (K, C, pooled_height, pooled_width).
        input: As in the forward pass.
        rois: As in the forward pass.
        offset: As in the forward pass.
        grad_input: Added to in place, shape (N, C, H, W).
        grad_offset: Added to in place, shape of ``offset``.
        pooled_height: As in the forward pass, like all that follow.
        pooled_width: See ``pooled_height``.
        spatial_scale: See ``pooled_height``.
        sampling_ratio: See ``pooled_height``.
        gamma: See ``pooled_height``.
    """
    if grad_output.numel() == 0:
        return
    dtype = working_dtype(input.dtype)
    boxes = rois.to(dtype)

    def pool(maps: Tensor, offset: Tensor) -> Tensor:
        return _deform_roi_pool(maps, boxes, offset, (pooled_height, pooled_width), spatial_scale,
                                sampling_ratio, gamma)

    if offset.numel() == 0:
        grad_input.add_(gradients(lambda maps: pool(maps, offset), [widen(input)], grad_output)[0])
        return
    grads = gradients(pool, [widen(input), offset.to(dtype)], grad_output)
    grad_input.add_(grads[0])
    grad_offset.add_(grads[1])


def _deform_roi_pool(maps: Tensor, boxes: Tensor, offset: Tensor, bins: tuple[int, int],
                     spatial_scale: float, sampling_ratio: int, gamma: float) -> Tensor:
    corners = boxes[:, 1:] * spatial_scale - 0.5
    start = corners[:, :2].flip(1)
    extents = corners[:, 2:].flip(1) - start

    def place(group: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if offset.numel() == 0:
            return y, x
        shift = gamma * offset[group].flip(1) * extents[group][:, :, None, None]
        return y + shift[:, 0, :, :, None], x + shift[:, 1, :, :, None]

    return _average(maps, boxes[:, 0].long(), start, extents, bins, sampling_ratio, place)


def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Average bilinear samples of a feature map in each bin of each rotated RoI.

    Args:
        input: Feature maps, shape (N, C, H, W).
        rois: ``(image index, center x, center y, width, height, angle in radians)``, shape (K, 6);
            may differ in dtype.
        output: Written in place, shape (K, C, pooled_height, pooled_width).
        pooled_height: Bins per RoI along its height.
        pooled_width: Bins per RoI along its width.
        spatial_scale: Pixels of the feature map per unit of the RoIs' coordinates.
        sampling_ratio: Samples per bin and axis; 0 for one per pixel of the feature map.
        aligned: Whether the center of the first pixel is at 0.5 rather than 0.
        clockwise: Whether positive angles turn clockwise.
    """
    if output.numel() == 0:
        return
    output.copy_(_roi_align_rotated(
        widen(input), rois.to(working_dtype(input.dtype)), (pooled_height, pooled_width),
        spatial_scale, sampling_ratio, aligned, clockwise))


def roi_align_rotated_backward(
    grad_output: Tensor,
    rois: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Add the gradient of `roi_align_rotated_forward` by its input.

    Args:
        grad_output: Shape (K, C, pooled_height, pooled_width).
        rois: As in the forward pass.
        grad_input: Added to in place, shape (N, C, H, W).
        pooled_height: As in the forward pass, like all that follow.
        pooled_width: See ``pooled_height``.
        spatial_scale: See ``pooled_height``.
        sampling_ratio: See ``pooled_height``.
        aligned: See ``pooled_height``.
        clockwise: See ``pooled_height``.
    """
    if grad_output.numel() == 0:
        return
    boxes = rois.to(working_dtype(grad_input.dtype))
    maps = widen(torch.zeros_like(grad_input))  # the gradient does not depend on it
    grad_input.add_(gradients(
        lambda maps: _roi_align_rotated(maps, boxes, (pooled_height, pooled_width), spatial_scale,
                                        sampling_ratio, aligned, clockwise),
        [maps], grad_output)[0])


def _roi_align_rotated(maps: Tensor, boxes: Tensor, bins: tuple[int, int], spatial_scale: float,
                       sampling_ratio: int, aligned: bool, clockwise: bool) -> Tensor:
    center = (boxes[:, 1:3] * spatial_scale - (0.5 if aligned else 0.0)).flip(1)
    extents = (boxes[:, 3:5] * spatial_scale).flip(1)
    extents = extents if aligned else extents.clamp(min=1)
    angle = -boxes[:, 5] if clockwise else boxes[:, 5]

    def place(group: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = (values[group].view(-1, 1, 1, 1) for values in (angle.cos(), angle.sin()))
        middle_y, middle_x = center[group].view(-1, 2, 1, 1, 1).unbind(1)
        return y * cos - x * sin + middle_y, y * sin + x * cos + middle_x

    return _average(maps, boxes[:, 0].long(), extents / -2, extents, bins, sampling_ratio, place)


def _average(maps: Tensor, images: Tensor, start: Tensor, extents: Tensor, bins: tuple[int, int],
             sampling_ratio: int, place: _Placement) -> Tensor:
    """Average samples in the bins of RoIs; differentiable by ``maps`` and what ``place`` uses.

    Args:
        maps: Shape (N, C, H, W).
        images: Which map each RoI is on, int64, shape (K,).
        start: First corner of each RoI, (y, x), shape (K, 2).
        extents: Height and width of each RoI, shape (K, 2).
        bins: Bins per RoI along y and x.
        sampling_ratio: Samples per bin and axis, or 0, see `sampling_groups`.
        place: Gets the indices of k RoIs, and y and x of samples, which can be broadcast to shape
            (k, *bins, samples).

    Returns:
        Shape (K, C, *bins).
    """
    size = (maps.shape[2], maps.shape[3])
    flat = pixels(maps)
    output = maps.new_zeros(len(start), *bins, maps.shape[1])
    for group, rows, columns in sampling_groups(extents, bins, sampling_ratio):
        y = _positions(start[group, 0], extents[group, 0], bins[0], rows)
        x = _positions(start[group, 1], extents[group, 1], bins[1], columns)
        total: Tensor | None = None
        for row in range(rows):  # not all at once, which takes memory
            at = place(group, y[:, :, None, row, None], x[:, None])
            y_, x_ = torch.broadcast_tensors(*at)
            values = interpolate(flat, size, images[group], y_, x_).sum(3)
            total = values if total is None else total + values
        if total is not None:
            output = output.index_copy(0, group, total / (rows * columns))
    return output.permute(0, 3, 1, 2)


def _positions(start: Tensor, extent: Tensor, bins: int, samples: int) -> Tensor:
    """Return the coordinates of samples along an axis, shape (K, bins, samples)."""
    size = (extent / bins)[:, None, None]
    bin_index = torch.arange(bins, device=start.device)[:, None]
    sample = torch.arange(samples, device=start.device) + 0.5
    return start[:, None, None] + bin_index * size + sample * size / samples


OPERATORS = (
    deform_roi_pool_forward,
    deform_roi_pool_backward,
    roi_align_rotated_forward,
    roi_align_rotated_backward,
)
