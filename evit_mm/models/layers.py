"""The layers that blocks are made of."""

import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops.folded_conv import conv_frozen_bn

__all__ = ['ConvNorm', 'DepthwiseConvNorm', 'FeedForward', 'SqueezeExcite']


class ConvNorm(nn.Module):
    """Convolution without bias, followed by a normalisation.

    While a layer trains with a BN whose statistics are frozen (``norm_eval=True`` of the backbone),
    that BN is a constant scale and shift per channel. The layer then convolves with the scaled
    kernel instead, which gives the same outputs and gradients and keeps one activation less.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel; odd, padded to keep the size at stride 1.
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        norm_cfg: The normalisation, in mmcv's form.
        zero_init: Whether the scale of the normalisation starts at 0, so that a residual branch
            starts as zero.

    Attributes:
        fold_norm (bool): Whether to train through the scaled kernel while the BN is frozen.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, *,
                 stride: int = 1, groups: int = 1, norm_cfg: dict, zero_init: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2,
                              groups=groups, bias=False)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1]
        self.fold_norm = True
        if zero_init and getattr(self.norm, 'weight', None) is not None:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, ceil(H / stride), ceil(W / stride))."""
        if self.training and self.fold_norm and _is_frozen(self.norm):
            return conv_frozen_bn(x, self.conv, self.norm)
        return self.norm(self.conv(x))


def _is_frozen(norm: nn.Module) -> bool:
    """Return whether a BN normalises with its running statistics."""
    return (isinstance(norm, _BatchNorm) and not norm.training
            and norm.running_mean is not None)


class DepthwiseConvNorm(ConvNorm):
    """A `ConvNorm` in which every channel has its own kernel."""

    def __init__(self, channels: int, kernel_size: int = 3, *, stride: int = 1, norm_cfg: dict,
                 zero_init: bool = False) -> None:
        super().__init__(channels, channels, kernel_size, stride=stride, groups=channels,
                         norm_cfg=norm_cfg, zero_init=zero_init)


class FeedForward(nn.Module):
    """Two pointwise `ConvNorm` with a ReLU between them."""

    def __init__(self, channels: int, hidden_channels: int, *, norm_cfg: dict) -> None:
        super().__init__()
        self.expand = ConvNorm(channels, hidden_channels, norm_cfg=norm_cfg)
        self.project = ConvNorm(hidden_channels, channels, norm_cfg=norm_cfg, zero_init=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return self.project(F.relu(self.expand(x)))


class SqueezeExcite(nn.Module):
    """A gate per channel, computed from the spatial mean of all channels."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden_channels, 1)
        self.expand = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        gate = F.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * self.expand(gate).sigmoid()
