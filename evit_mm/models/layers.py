"""The leaves that the backbone is made of."""

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

__all__ = ['ConvNorm', 'DepthwiseConvNorm', 'FeedForward', 'SqueezeExcite']


class ConvNorm(nn.Module):
    """Convolution without bias, then normalisation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel; odd, padded to keep the size at stride 1.
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        norm_cfg: The normalisation, in mmcv's form.
        zero_init: Start the normalisation's scale at 0, so that a residual branch starts as the
            identity.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, *,
                 stride: int = 1, groups: int = 1, norm_cfg: dict, zero_init: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2,
                              groups=groups, bias=False)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1]
        if zero_init and getattr(self.norm, 'weight', None) is not None:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, ceil(H / stride), ceil(W / stride))."""
        return self.norm(self.conv(x))


class DepthwiseConvNorm(ConvNorm):
    """A depthwise `ConvNorm`: every channel has its own kernel."""

    def __init__(self, channels: int, kernel_size: int = 3, *, stride: int = 1, norm_cfg: dict,
                 zero_init: bool = False) -> None:
        super().__init__(channels, channels, kernel_size, stride=stride, groups=channels,
                         norm_cfg=norm_cfg, zero_init=zero_init)


class FeedForward(nn.Module):
    """Two pointwise `ConvNorm` with a ReLU between them; the caller adds the residual."""

    def __init__(self, channels: int, hidden_channels: int, *, norm_cfg: dict) -> None:
        super().__init__()
        self.expand = ConvNorm(channels, hidden_channels, norm_cfg=norm_cfg)
        self.project = ConvNorm(hidden_channels, channels, norm_cfg=norm_cfg, zero_init=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return self.project(torch.relu(self.expand(x)))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean of all channels."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden_channels, 1)
        self.expand = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        gate = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * self.expand(gate).sigmoid()
