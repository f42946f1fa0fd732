"""Bilinear interpolation as RoIAlign does it.

Up to one pixel beyond the border, a feature map continues with the values of its border. Further
out it is zero.
"""

import torch
from torch import Tensor

__all__ = ['interpolate', 'pixels']


def pixels(maps: Tensor) -> Tensor:
    """Return the pixels of feature maps of shape (N, C, H, W), shape (N * H * W, C)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def interpolate(pixels: Tensor, size: tuple[int, int], images: Tensor, y: Tensor,
                x: Tensor) -> Tensor:
    """Return the values of feature maps at any places; differentiable by pixels and places.

    Args:
        pixels: From the function of this name, shape (N * H * W, C).
        size: (H, W).
        images: Which map each row of places is on, int64, shape (K,).
        y: Places in pixels, 0 being the center of the first, shape (K, ...).
        x: Shape of ``y``.

    Returns:
        Shape (K, ..., C).
    """
    height, width = size
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y = torch.where(inside, y, 0.0).clamp(0, height - 1)
    x = torch.where(inside, x, 0.0).clamp(0, width - 1)
    top, left = y.detach().floor(), x.detach().floor()
    rows = (top.long(), (top.long() + 1).clamp(max=height - 1))
    columns = (left.long(), (left.long() + 1).clamp(max=width - 1))
    image = images.view(-1, *[1] * (y.dim() - 1)) * height
    values = pixels.new_zeros(*y.shape, pixels.shape[1])
    for row, share_y in zip(rows, (1 - (y - top), y - top), strict=True):
        for column, share_x in zip(columns, (1 - (x - left), x - left), strict=True):
            corners = pixels.index_select(0, ((image + row) * width + column).flatten())
            share = torch.where(inside, share_y * share_x, 0.0)
            values = values + share[..., None] * corners.view_as(values)
    return values
