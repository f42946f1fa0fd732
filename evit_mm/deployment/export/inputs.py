"""Images as a network takes them, from pixels as OpenCV reads them."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['ImageInput', 'IMAGENET_MEAN', 'IMAGENET_STD']

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Mean of ImageNet's pixels, in the order RGB."""
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Standard deviation of ImageNet's pixels, in the order RGB."""


class ImageInput(nn.Module):
    """The normalisation, the order of the channels and the padding of a data preprocessor.

    Args:
        mean: Mean of each channel, in the order in which the network takes them; None to leave
            pixels as they are.
        std: Standard deviation of each channel.
        swap_channels: Whether the network takes RGB.
        pad_value: What the network sees outside an image.
    """

    def __init__(self, mean: Any = IMAGENET_MEAN, std: Any = IMAGENET_STD, *,
                 swap_channels: bool = True, pad_value: float = 0.0) -> None:
        super().__init__()
        self.is_normalized = mean is not None
        if self.is_normalized:
            self.register_buffer('mean', torch.as_tensor(mean).float().view(3, 1, 1))
            self.register_buffer('std', torch.as_tensor(std).float().view(3, 1, 1))
        self.swap_channels = swap_channels
        self.pad_value = float(pad_value)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Normalise images.

        Args:
            images: Pixels in the order BGR, uint8, shape (B, H, W, 3).
            sizes: Height and width of the part of each that is image, the upper left one, int64,
                shape (B, 2); by default everything is.

        Returns:
            Tensor: float32, shape (B, 3, H, W).
        """
        x = images.permute(0, 3, 1, 2)
        if self.swap_channels:
            x = x.flip(1)
        x = x.float()
        if self.is_normalized:
            mean: Any = self.mean
            x = (x - mean) / self.std
        if sizes is None:
            return x
        rows = torch.arange(x.shape[2], device=x.device)[None, :, None] < sizes[:, :1, None]
        columns = torch.arange(x.shape[3], device=x.device)[None, None] < sizes[:, 1:, None]
        return torch.where((rows & columns)[:, None], x, self.pad_value)
