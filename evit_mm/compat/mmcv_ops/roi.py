"""Pooling of regions of interest (RoIs): RoIAlign and RoIPool."""

from collections.abc import Iterator

import torch
import torchvision  # noqa: F401  (registers the operators in torch.ops.torchvision)
from torch import Tensor

from .precision import widen, working_dtype

__all__ = ['OPERATORS', 'sampling_groups']

_MAX_GATHERED = 2 ** 24  # values that RoIPool copies at once


def sampling_groups(extents: Tensor, bins: tuple[int, int],
                    sampling_ratio: int) -> Iterator[tuple[Tensor, int, int]]:
    """Yield the RoIs that have the same number of samples per bin.

    Args:
        extents: Height and width of each RoI in pixels of the feature map, shape (K, 2).
        bins: Bins per RoI along y and x.
        sampling_ratio: Samples per bin and axis; 0 for as many as a bin has pixels, rounded up.

    Yields:
        Indices of RoIs, int64, and their samples per bin along y and x. RoIs without samples,
        because they have no extent, are left out.
    """
    if sampling_ratio > 0:
        yield torch.arange(len(extents), device=extents.device), sampling_ratio, sampling_ratio
        return
    samples = (extents / extents.new_tensor(bins)).ceil().long()
    for rows, columns in samples.unique(dim=0).tolist():
        if rows > 0 and columns > 0:
            yield (samples == samples.new_tensor((rows, columns))).all(1).nonzero()[:, 0], \
                rows, columns


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool bilinear samples of a feature map in each bin of each RoI.

    Args:
        input: Feature maps, shape (N, C, H, W).
        rois: ``(image index, x1, y1, x2, y2)``, shape (K, 5); may differ in dtype.
        output: Written in place, shape (K, C, aligned_height, aligned_width). An RoI without
            extent, and so without samples, gives zeros.
        argmax_y: With max pooling, the row of the largest sample in its bin, counted in samples,
            is written here, shape of ``output``.
        argmax_x: The column, like ``argmax_y``.
        aligned_height: Bins per RoI along y.
        aligned_width: Bins per RoI along x.
        spatial_scale: Pixels of the feature map per unit of the RoIs' coordinates.
        sampling_ratio: Samples per bin and axis; 0 for one per pixel of the feature map.
        pool_mode: 0 for the largest of the samples, 1 for their average.
        aligned: Whether the center of the first pixel is at 0.5 rather than 0.
    """
    if output.numel() == 0:
        return
    maps, boxes = widen(input), rois.to(working_dtype(input.dtype))
    if pool_mode == 1:
        output.copy_(torch.ops.torchvision.roi_align(
            maps, boxes, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned))
        return
    output.zero_()
    bins = (aligned_height, aligned_width)
    for group, rows, columns in sampling_groups(
            _extents(boxes, spatial_scale, aligned), bins, sampling_ratio):
        # The samples of a bin are the averages of bins of one sample each.
        samples = torch.ops.torchvision.roi_align(
            maps, boxes[group], spatial_scale, aligned_height * rows, aligned_width * columns, 1,
            aligned)
        samples = samples.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).transpose(3, 4)
        largest, index = samples.flatten(4).max(4)
        output[group] = largest.to(output.dtype)
        argmax_y[group] = (index // columns).to(argmax_y.dtype)
        argmax_x[group] = (index % columns).to(argmax_x.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of `roi_align_forward` by its input.

    Args:
        grad_output: Shape (K, C, aligned_height, aligned_width).
        rois: As in the forward pass.
        argmax_y: As written in the forward pass.
        argmax_x: As written in the forward pass.
        grad_input: Added to in place, shape (N, C, H, W).
        aligned_height: As in the forward pass, like all that follow.
        aligned_width: See ``aligned_height``.
        spatial_scale: See ``aligned_height``.
        sampling_ratio: See ``aligned_height``.
        pool_mode: See ``aligned_height``.
        aligned: See ``aligned_height``.
    """
    if grad_output.numel() == 0:
        return
    dtype = working_dtype(grad_input.dtype)
    grad, boxes = grad_output.to(dtype), rois.to(dtype)
    if pool_mode == 1:
        # torchvision has a public function for the forward pass alone, which would run again.
        grad_input.add_(torch.ops.torchvision._roi_align_backward(
            grad, boxes, spatial_scale, aligned_height, aligned_width, *grad_input.shape,
            sampling_ratio, aligned))
        return
    bins = (aligned_height, aligned_width)
    for group, rows, columns in sampling_groups(
            _extents(boxes, spatial_scale, aligned), bins, sampling_ratio):
        index = argmax_y[group].long() * columns + argmax_x[group].long()
        samples = grad.new_zeros(*index.shape, rows * columns)
        samples.scatter_(4, index[..., None], grad[group][..., None])
        samples = samples.unflatten(4, (rows, columns)).transpose(3, 4)
        grad_input.add_(torch.ops.torchvision._roi_align_backward(
            samples.flatten(4).flatten(2, 3).contiguous(), boxes[group], spatial_scale,
            aligned_height * rows, aligned_width * columns, *grad_input.shape, 1, aligned))


def _extents(boxes: Tensor, spatial_scale: float, aligned: bool) -> Tensor:
    """Return height and width of each RoI in pixels of the feature map, shape (K, 2)."""
    corners = boxes[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    extents = (corners[:, 2:] - corners[:, :2]).flip(1)
    return extents if aligned else extents.clamp(min=1)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Take the largest pixel of a feature map in each bin of each RoI.

    An RoI includes the pixels of its far corners. Bins are rounded outwards to whole pixels, so
    they may overlap. torchvision's operator of this name rounds the corners of RoIs instead.

    Args:
        input: Feature maps, shape (N, C, H, W).
        rois: ``(image index, x1, y1, x2, y2)``, shape (K, 5); may differ in dtype.
        output: Written in place, shape (K, C, pooled_height, pooled_width); 0 for empty bins.
        argmax: The index of the largest pixel, ``y * W + x``, or -1 for empty bins, is written
            here, int32, shape of ``output``.
        pooled_height: Bins per RoI along y.
        pooled_width: Bins per RoI along x.
        spatial_scale: Pixels of the feature map per unit of the RoIs' coordinates.
    """
    output.zero_()
    argmax.fill_(-1)
    if output.numel() == 0 or input.numel() == 0:
        return
    height, width = input.shape[2:]
    boxes = rois.to(working_dtype(input.dtype))
    start, end = boxes[:, 1:3] * spatial_scale, (boxes[:, 3:] + 1) * spatial_scale
    has_extent = ((end - start) > 0).all(1)[:, None]
    x1, x2 = _bin_borders(start[:, 0], end[:, 0], pooled_width, width)
    y1, y2 = _bin_borders(start[:, 1], end[:, 1], pooled_height, height)
    # RoIs of similar size are gathered together, so that they need little padding.
    sizes = torch.stack(((y2 - y1).amax(1), (x2 - x1).amax(1)), dim=1).clamp(min=1)
    order = sizes.prod(1).argsort(descending=True)
    per_roi = output[0].numel()
    while len(order):
        count = max(1, _MAX_GATHERED // (per_roi * int(sizes[order[0]].prod())))
        chunk, order = order[:count], order[count:]
        rows = _places(y1[chunk], y2[chunk], height)
        columns = _places(x1[chunk], x2[chunk], width)
        index = rows[:, :, None, :, None] * width + columns[:, None, :, None, :]
        index = index.flatten(3)  # (k, pooled_height, pooled_width, places)
        image = boxes[chunk, 0].long()[:, None, None, None]
        largest, place = input.flatten(2)[image, :, index].max(3)
        filled = ((y2 > y1)[chunk][:, :, None] & (x2 > x1)[chunk][:, None, :]
                  & has_extent[chunk][:, :, None])[..., None]
        output[chunk] = torch.where(filled, largest, 0.0).permute(0, 3, 1, 2)
        argmax[chunk] = torch.where(filled, index.gather(3, place), -1).permute(
            0, 3, 1, 2).to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of `roi_pool_forward` by its input.

    Args:
        grad_output: Shape (K, C, pooled_height, pooled_width).
        rois: As in the forward pass.
        argmax: As written in the forward pass.
        grad_input: Added to in place, shape (N, C, H, W).
        pooled_height: Not used; ``grad_output`` has it.
        pooled_width: Not used.
        spatial_scale: Not used; ``argmax`` is in pixels.
    """
    if grad_output.numel() == 0 or grad_input.numel() == 0:
        return
    channels = torch.arange(grad_input.shape[1], device=grad_input.device)
    planes = rois[:, 0].long()[:, None] * len(channels) + channels
    pixels = planes[:, :, None, None] * grad_input[0, 0].numel() + argmax.clamp(min=0)
    grad = grad_input.new_zeros(grad_input.numel(), dtype=working_dtype(grad_input.dtype))
    grad.index_add_(0, pixels.flatten(),
                    torch.where(argmax < 0, 0.0, grad_output.to(grad.dtype)).flatten())
    grad_input.add_(grad.view_as(grad_input))


def _bin_borders(start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """Return first pixels of bins and those after their last, int64, each of shape (K, bins)."""
    extent = ((end - start) / bins)[:, None]
    index = torch.arange(bins, device=start.device)
    first = (index * extent + start[:, None]).floor()
    last = ((index + 1) * extent + start[:, None]).ceil()
    return first.clamp(0, size).long(), last.clamp(0, size).long()


def _places(first: Tensor, last: Tensor, size: int) -> Tensor:
    """Return the pixels of each bin, shape (K, bins, places); its last one fills up the rest."""
    count = max(1, int((last - first).max()))
    places = first[..., None] + torch.arange(count, device=first.device)
    return places.minimum(last[..., None] - 1).clamp(0, size - 1)


OPERATORS = (roi_align_forward, roi_align_backward, roi_pool_forward, roi_pool_backward)
