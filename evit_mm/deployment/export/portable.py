"""Layers of other packages in a form that every exporter takes, for images of any size."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['make_portable']


class AdaptiveAveragePool(nn.Module):
    """`torch.nn.AdaptiveAvgPool2d` as two products with matrices of averages.

    ONNX has it only for sizes that the number of bins divides.

    Args:
        bins: Number of bins along y and x.
    """

    def __init__(self, bins: tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, *bins)."""
        rows, columns = (_bin_weights(count, size, x)
                         for count, size in zip(self.bins, x.shape[2:], strict=True))
        return rows @ x @ columns.T


def _bin_weights(bins: int, size: Any, like: Tensor) -> Tensor:
    """Return the weight of each of ``size`` pixels in the average of each bin, (bins, size)."""
    number = torch.arange(bins, device=like.device)
    start, end = number * size // bins, ((number + 1) * size + bins - 1) // bins
    place = torch.arange(size, device=like.device)
    is_inside = (place >= start[:, None]) & (place < end[:, None])
    return is_inside.to(like.dtype) / (end - start).to(like.dtype)[:, None]


class Upsample(nn.Module):
    """A resizing by a whole factor.

    Args:
        factor: Rows and columns of the output for each one of the input.
        mode: As in `torch.nn.functional.interpolate`.
        align_corners: As there.
    """

    def __init__(self, factor: int, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor = factor
        self.mode = mode
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, factor * H, factor * W)."""
        size = (x.shape[2] * self.factor, x.shape[3] * self.factor)
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def make_portable(module: nn.Module) -> nn.Module:
    """Replace layers inside a module, in place, that exporters take only for some sizes."""
    for name, child in module.named_children():
        setattr(module, name, make_portable(child))
    if type(module) is nn.AdaptiveAvgPool2d:
        size = module.output_size
        bins = tuple(size) if isinstance(size, tuple) else (size, size)
        if None not in bins and bins != (1, 1):
            return AdaptiveAveragePool(bins)  # type: ignore[arg-type]
    if type(module).__name__ == 'Upsample' and type(module).__module__.startswith('mmseg.'):
        layer: Any = module
        factor = layer.scale_factor
        if not layer.size and isinstance(factor, float) and factor == int(factor):
            return Upsample(int(factor), layer.mode, layer.align_corners)
    return module
