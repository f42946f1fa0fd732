"""The largest of samples along each border of a box."""

import torch
from torch import Tensor

from .bilinear import interpolate, pixels
from .derivative import gradients
from .precision import widen

__all__ = ['OPERATORS']


def border_align_forward(
    input: Tensor,
    boxes: Tensor,
    output: Tensor,
    argmax_idx: Tensor,
    pool_size: int,
) -> None:
    """Take the largest of ``pool_size + 1`` bilinear samples on each border of each box.

    Args:
        input: Feature maps, shape (B, 4 * C, H, W): C channels each for the top, left, bottom and
            right border.
        boxes: ``(x1, y1, x2, y2)`` in pixels of the feature maps, shape (B, K, 4).
        output: Written in place, shape (B, C, K, 4), for the borders in the same order.
        argmax_idx: Which sample was largest is written here, int32, shape of ``output``; counted
            from (x1, y1) for top and left, and from (x2, y2) for bottom and right.
        pool_size: Samples per border, less one.
    """
    if output.numel() == 0:
        return
    maps, corners = _maps(widen(input)), widen(boxes)
    flat = pixels(maps)
    images = torch.arange(len(maps), device=maps.device)
    largest = index = None
    for sample in range(pool_size + 1):
        y, x = _places(corners, pool_size, torch.tensor(sample, device=maps.device))
        values = interpolate(flat, (maps.shape[2], maps.shape[3]), images, y, x)
        if largest is None or index is None:
            largest, index = values, torch.zeros_like(values, dtype=argmax_idx.dtype)
            continue
        exceeds = values > largest
        largest = torch.where(exceeds, values, largest)
        index = index.masked_fill(exceeds, sample)
    assert largest is not None and index is not None
    output.copy_(_by_border(largest, len(boxes)))
    argmax_idx.copy_(_by_border(index, len(boxes)))


def border_align_backward(
    grad_output: Tensor,
    boxes: Tensor,
    argmax_idx: Tensor,
    grad_input: Tensor,
    pool_size: int,
) -> None:
    """Add the gradient of `border_align_forward` by its input.

    Args:
        grad_output: Shape (B, C, K, 4).
        boxes: As in the forward pass.
        argmax_idx: As written in the forward pass.
        grad_input: Added to in place, shape (B, 4 * C, H, W).
        pool_size: As in the forward pass.
    """
    if grad_output.numel() == 0:
        return
    corners = widen(boxes)
    batch, channels, number, _ = grad_output.shape
    # Each channel has a place of its own: as if it were another map of one channel.
    index = argmax_idx.permute(0, 3, 1, 2)  # (B, 4, C, K)
    y, x = _places(corners, pool_size, index.reshape(batch * 4, channels, number))

    def sample(maps: Tensor) -> Tensor:
        single = maps.reshape(-1, 1, *maps.shape[2:])
        images = torch.arange(len(single), device=maps.device)
        return interpolate(pixels(single), (maps.shape[2], maps.shape[3]), images, y.flatten(0, 1),
                           x.flatten(0, 1))[..., 0]

    grad = grad_output.permute(0, 3, 1, 2).reshape(-1, number)
    maps = widen(torch.zeros_like(grad_input))  # the gradient does not depend on it
    grad_input.add_(gradients(sample, [maps], grad)[0])


def _maps(input: Tensor) -> Tensor:
    """Return a feature map for each image and border, shape (B * 4, C, H, W)."""
    return input.reshape(len(input) * 4, input.shape[1] // 4, *input.shape[2:])


def _places(boxes: Tensor, pool_size: int, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Return y and x of samples on the borders of boxes.

    Args:
        boxes: Shape (B, K, 4).
        pool_size: Samples per border, less one.
        sample: Which ones: a scalar, or of shape (B * 4, C, K).

    Returns:
        Each of shape (B * 4, K), or (B * 4, C, K).
    """
    x1, y1, x2, y2 = boxes.unbind(2)
    zero = torch.zeros_like(x1)
    width, height = (x2 - x1) / pool_size, (y2 - y1) / pool_size
    start = torch.stack((y1, x1, y1, x1, y2, x2, y2, x2), dim=1).unflatten(1, (4, 2))
    step = torch.stack((zero, width, height, zero, zero, -width, -height, zero), dim=1)
    start, step = start.flatten(0, 1), step.unflatten(1, (4, 2)).flatten(0, 1)  # (B * 4, 2, K)
    if sample.dim():
        start, step = start[:, :, None], step[:, :, None]
        sample = sample[:, None]
    return tuple((start + step * sample).unbind(1))  # type: ignore[return-value]


def _by_border(values: Tensor, batch: int) -> Tensor:
    """Turn shape (B * 4, K, C) into (B, C, K, 4)."""
    return values.unflatten(0, (batch, 4)).permute(0, 3, 2, 1)


OPERATORS = (border_align_forward, border_align_backward)
