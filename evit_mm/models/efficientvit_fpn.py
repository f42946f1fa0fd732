"""The neck of the published detectors: an FPN with finer levels than its inputs."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError

__all__ = ['EfficientViTFPN']


@MODELS.register_module()
class EfficientViTFPN(BaseModule):
    """Feature pyramid over maps that start at stride 16.

    Laterals to one width and a nearest-neighbour top-down sum, as in an FPN. Each extra finer
    level is a transposed convolution of the finest merged lateral; each extra coarser level takes
    every second row and column of the coarsest output. No normalisation, no activation, as
    published.

    Args:
        in_channels: Channels of the input maps, finest first.
        out_channels: Channels of every output.
        num_outs: Number of outputs; levels beyond the inputs and the finer ones are added at the
            coarse end.
        num_extra_trans_convs: Number of extra finer levels, each doubling the resolution.
        in_strides: Strides of the input maps, finest first; by default 16, 32, ...
        norm_cfg: Normalisation of all convolutions; none as published.
        act_cfg: Activation of all convolutions; none as published.
        init_cfg: As in mmengine. By default the weights of convolutions start Xavier-uniform, those
            of transposed convolutions from MSRA's normal distribution, and biases at 0.

    Attributes:
        out_strides (tuple[int]): Stride of each output, finest first.

    Raises:
        ConfigError: If the arguments contradict each other.
    """

    def __init__(self,
                 in_channels: Sequence[int],
                 out_channels: int = 256,
                 num_outs: int | None = None,
                 num_extra_trans_convs: int = 0,
                 in_strides: Sequence[int] | None = None,
                 norm_cfg: dict | None = None,
                 act_cfg: dict | None = None,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg=init_cfg or [
            dict(type='Xavier', layer='Conv2d', distribution='uniform'),
            # As the reference leaves them: MSRA, normal, by fan-out.
            dict(type='Kaiming', layer='ConvTranspose2d')])
        if not isinstance(in_channels, list | tuple):
            raise ConfigError(f'EfficientViTFPN: in_channels={in_channels!r} must be a list, one '
                              'number per input map')
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.num_extra_trans_convs = num_extra_trans_convs
        self.in_strides = tuple(in_strides) if in_strides is not None else tuple(
            16 * 2 ** i for i in range(len(self.in_channels)))
        self._check_arguments(num_outs)
        provided = len(self.in_channels) + num_extra_trans_convs
        self.num_outs = provided if num_outs is None else num_outs
        self.out_strides = tuple(
            self.in_strides[0] * 2 ** i // 2 ** num_extra_trans_convs for i in range(self.num_outs))

        def conv(channels: int, kernel_size: int) -> ConvModule:
            return ConvModule(channels, out_channels, kernel_size, padding=kernel_size // 2,
                              norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)

        self.lateral_convs = nn.ModuleList(conv(channels, 1) for channels in self.in_channels)
        self.fpn_convs = nn.ModuleList(conv(out_channels, 3) for _ in self.in_channels)
        self.extra_trans_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 2, stride=2, conv_cfg=dict(type='deconv'),
                       norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
            for _ in range(num_extra_trans_convs))
        self.extra_fpn_convs = nn.ModuleList(
            conv(out_channels, 3) for _ in range(num_extra_trans_convs))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Build the pyramid.

        Args:
            inputs: Maps (B, C_i, H_i, W_i) with the channels of ``in_channels``, finest first.

        Returns:
            tuple[Tensor]: ``num_outs`` maps (B, out_channels, h, w), finest first. A finer level
            has exactly twice the rows and columns of the next; a coarser one half, rounded up.
        """
        channels = tuple(x.shape[1] for x in inputs)
        if channels != self.in_channels:
            raise ConfigError(channel_mismatch(self, 'input maps', channels))
        merged = [conv(x) for conv, x in zip(self.lateral_convs, inputs, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[2:])
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=True)]
        finest = merged[0]
        # The published weights number the transposed convolutions from coarse to fine, the
        # convolutions after them from fine to coarse.
        for upsample, conv in zip(self.extra_trans_convs, reversed(self.extra_fpn_convs),
                                  strict=True):
            finest = upsample(finest)
            outputs.insert(0, conv(finest))
        while len(outputs) < self.num_outs:
            outputs.append(F.max_pool2d(outputs[-1], 1, stride=2))
        return tuple(outputs)

    def _check_arguments(self, num_outs: int | None) -> None:
        if not self.in_channels:
            raise ConfigError('EfficientViTFPN: in_channels is empty')
        if self.out_channels < 1:
            raise ConfigError(f'EfficientViTFPN: out_channels={self.out_channels} must be positive')
        if self.num_extra_trans_convs < 0:
            raise ConfigError(f'EfficientViTFPN: num_extra_trans_convs='
                              f'{self.num_extra_trans_convs} must not be negative')
        finest = self.in_strides[0] if self.in_strides else 16
        if self.in_strides != tuple(finest * 2 ** i for i in range(len(self.in_channels))):
            raise ConfigError(f'EfficientViTFPN: in_strides={self.in_strides} must double from '
                              f'each of the {len(self.in_channels)} input maps to the next')
        if self.in_strides[0] % 2 ** self.num_extra_trans_convs:
            raise ConfigError(f'EfficientViTFPN: num_extra_trans_convs='
                              f'{self.num_extra_trans_convs} would go below stride 1 from '
                              f'{self.in_strides[0]}')
        provided = len(self.in_channels) + self.num_extra_trans_convs
        if num_outs is not None and num_outs < provided:
            raise ConfigError(f'EfficientViTFPN: num_outs={num_outs} is less than the '
                              f'{len(self.in_channels)} input maps and '
                              f'{self.num_extra_trans_convs} extra finer levels')


def channel_mismatch(neck: Any, source: str, channels: Sequence[int]) -> str:
    """Format the error of a neck whose inputs have other channels than it was built for."""
    return (f'{type(neck).__name__} is built for in_channels={list(neck.in_channels)}, but '
            f'the {source} have channels {list(channels)}: set the neck\'s in_channels to '
            f'{list(channels)}, or change the backbone')
