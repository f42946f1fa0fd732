"""LCPAN, the light neck of PP-PicoDet (arXiv 2111.00902): a path aggregation network of one width.

Reads from the leaves to the root: separable convolution, neck.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .efficientvit_fpn import channel_mismatch
from .layers import ConvNorm, DepthwiseConvNorm

__all__ = ['LCPAN', 'SeparableConv']


class SeparableConv(nn.Module):
    """A depthwise and a pointwise `ConvNorm`, each with an activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the depthwise kernel; odd.
        stride: Stride of the depthwise convolution.
        norm_cfg: The normalisation, in mmcv's form.
        act_cfg: The activation, in mmcv's form.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1,
                 norm_cfg: dict, act_cfg: dict) -> None:
        super().__init__()
        self.depthwise = DepthwiseConvNorm(in_channels, kernel_size, stride=stride,
                                           norm_cfg=norm_cfg)
        self.pointwise = ConvNorm(in_channels, out_channels, norm_cfg=norm_cfg)
        self.activation = build_activation_layer(act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, ceil(H / stride), ceil(W / stride))."""
        return self.activation(self.pointwise(self.activation(self.depthwise(x))))


@MODELS.register_module()
class LCPAN(BaseModule):
    """Path aggregation from coarse to fine and back, by separable convolutions of one width.

    Pointwise convolutions bring all maps to one width. From coarse to fine, each map is merged with
    the coarser one, enlarged to its size. From fine to coarse, each is merged with the finer one,
    halved by a separable convolution of stride 2. Each level beyond the inputs is the sum of two
    halved maps: the coarsest one before both passes, and the coarsest output.

    Args:
        in_channels: Channels of the input maps, finest first.
        out_channels: Channels of every output.
        num_outs: Number of outputs; levels beyond the inputs are added at the coarse end. By
            default there are none.
        in_strides: Strides of the input maps, finest first; by default 8, 16, ...
        kernel_size: Side of the depthwise kernels; odd.
        merge: How two maps become one: ``'concat'``, as in the paper, by a separable convolution of
            both; ``'sum'``, for fewer operations, by their sum plus a separable convolution of it.
        norm_cfg: The normalisation, in mmcv's form.
        act_cfg: The activation, in mmcv's form.
        init_cfg: As in mmengine. By default convolutions start as PyTorch's do.

    Attributes:
        out_strides (tuple[int]): Stride of each output, finest first.

    Raises:
        ConfigError: If an argument is invalid; the message names the value.
    """

    def __init__(self,
                 in_channels: Sequence[int],
                 out_channels: int = 96,
                 num_outs: int | None = None,
                 in_strides: Sequence[int] | None = None,
                 kernel_size: int = 5,
                 merge: str = 'concat',
                 norm_cfg: dict | None = None,
                 act_cfg: dict | None = None,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        if not isinstance(in_channels, list | tuple) or not in_channels:
            raise ConfigError(f'LCPAN: in_channels={in_channels!r} must be a list, one number per '
                              'input map')
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        num_inputs = len(self.in_channels)
        self.num_outs = num_inputs if num_outs is None else num_outs
        self.in_strides = tuple(in_strides) if in_strides is not None else tuple(
            8 * 2 ** level for level in range(num_inputs))
        self.merge = merge
        self._check_arguments(kernel_size)
        self.out_strides = tuple(
            self.in_strides[0] * 2 ** level for level in range(self.num_outs))

        norm_cfg = norm_cfg or dict(type='BN')
        act_cfg = dict(act_cfg or dict(type='HSwish'))

        def separable_convs(count: int, channels: int, stride: int = 1) -> nn.ModuleList:
            return nn.ModuleList(
                SeparableConv(channels, out_channels, kernel_size, stride=stride,
                              norm_cfg=norm_cfg, act_cfg=act_cfg) for _ in range(count))

        self.lateral_convs = nn.ModuleList(
            ConvNorm(channels, out_channels, norm_cfg=norm_cfg) for channels in self.in_channels)
        self.activation = build_activation_layer(act_cfg)
        # All are numbered from fine to coarse.
        merged_channels = 2 * out_channels if merge == 'concat' else out_channels
        self.top_down_convs = separable_convs(num_inputs - 1, merged_channels)
        self.halving_convs = separable_convs(num_inputs - 1, out_channels, stride=2)
        self.bottom_up_convs = separable_convs(num_inputs - 1, merged_channels)
        num_extra = self.num_outs - num_inputs
        self.extra_lateral_convs = separable_convs(num_extra, out_channels, stride=2)
        self.extra_convs = separable_convs(num_extra, out_channels, stride=2)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Build the pyramid.

        Args:
            inputs: Maps (B, C_i, H_i, W_i) with the channels of ``in_channels``, finest first; each
                has half the rows and columns of the one before, rounded up.

        Returns:
            tuple[Tensor]: ``num_outs`` maps (B, out_channels, h, w), finest first, of the sizes of
            the inputs; each level beyond them has half the rows and columns of the one before,
            rounded up.
        """
        channels = tuple(x.shape[1] for x in inputs)
        if channels != self.in_channels:
            raise ConfigError(channel_mismatch(self, 'input maps', channels))
        maps = [self.activation(conv(x))
                for conv, x in zip(self.lateral_convs, inputs, strict=True)]
        coarsest = maps[-1]
        for level in reversed(range(len(maps) - 1)):
            enlarged = F.interpolate(maps[level + 1], size=maps[level].shape[2:])
            maps[level] = self._merge(maps[level], enlarged, self.top_down_convs[level])
        for level in range(len(maps) - 1):
            halved = self.halving_convs[level](maps[level])
            maps[level + 1] = self._merge(maps[level + 1], halved, self.bottom_up_convs[level])
        for lateral_conv, conv in zip(self.extra_lateral_convs, self.extra_convs, strict=True):
            coarsest = lateral_conv(coarsest)
            maps.append(coarsest + conv(maps[-1]))
        return tuple(maps)

    def _merge(self, x: Tensor, other: Tensor, conv: nn.Module) -> Tensor:
        """Merge two maps of one size by a convolution."""
        if x.shape != other.shape:
            raise ConfigError(f'LCPAN: an input map of {tuple(x.shape[2:])} rows and columns must '
                              f'be half of the finer one, rounded up: {tuple(other.shape[2:])}')
        if self.merge == 'concat':
            return conv(torch.cat((x, other), dim=1))
        x = x + other
        return x + conv(x)

    def _check_arguments(self, kernel_size: int) -> None:
        if self.out_channels < 1:
            raise ConfigError(f'LCPAN: out_channels={self.out_channels} must be positive')
        if self.num_outs < len(self.in_channels):
            raise ConfigError(f'LCPAN: num_outs={self.num_outs} is less than the '
                              f'{len(self.in_channels)} input maps')
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f'LCPAN: kernel_size={kernel_size} must be odd and positive')
        if self.merge not in ('concat', 'sum'):
            raise ConfigError(f"LCPAN: merge={self.merge!r} must be 'concat' or 'sum'")
        if len(self.in_strides) != len(self.in_channels) or any(
                coarse != 2 * fine for fine, coarse in pairwise(self.in_strides)):
            raise ConfigError(f'LCPAN: in_strides={self.in_strides} must double from each of the '
                              f'{len(self.in_channels)} input maps to the next')
