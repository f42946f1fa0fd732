"""NanoDet-Plus-m for comparisons of cost, rebuilt from its description; random weights alone.

ShuffleNetV2 (arXiv 1807.11164), a path aggregation network of ghost bottlenecks (arXiv 1911.11907),
and GFL's boxes (arXiv 2006.04388) from one tower for each level, which predicts classes and boxes.
"""

from collections.abc import Sequence
from typing import Any

import evit_mm  # noqa: F401  (before mmdet, which needs the operators that it provides)

# isort: split
import torch
from mmcv.cnn import DepthwiseSeparableConvModule
from mmdet.models.dense_heads import GFLHead
from mmdet.registry import MODELS
from torch import Tensor, nn
from torchvision.models import shufflenet_v2_x1_0

from evit_mm.models.layers import ConvNorm, DepthwiseConvNorm
from evit_mm.models.lcpan import LCPAN

_NORM = dict(type='BN')
_ACTIVATION = dict(type='LeakyReLU', negative_slope=0.1)


@MODELS.register_module()
class ShuffleNetFeatures(nn.Module):
    """ShuffleNetV2's maps at strides 8, 16 and 32: 116, 232 and 464 channels."""

    def __init__(self, init_cfg: None = None) -> None:
        super().__init__()
        network = shufflenet_v2_x1_0()
        self.stem = nn.Sequential(network.conv1, network.maxpool)
        self.stages = nn.ModuleList([network.stage2, network.stage3, network.stage4])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) to the maps, finest first."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


class GhostConv(nn.Module):
    """A pointwise convolution to half of the channels, and a depthwise one of these to the rest."""

    def __init__(self, in_channels: int, out_channels: int, *, activate: bool) -> None:
        super().__init__()
        half = out_channels // 2
        self.primary = ConvNorm(in_channels, half, norm_cfg=_NORM)
        self.cheap = DepthwiseConvNorm(half, norm_cfg=_NORM)
        self.activation = nn.LeakyReLU(0.1) if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        x = self.activation(self.primary(x))
        return torch.cat((x, self.activation(self.cheap(x))), dim=1)


class GhostBottleneck(nn.Module):
    """Two ghost convolutions, and a separable one of 5x5 as their shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.expand = GhostConv(in_channels, out_channels, activate=True)
        self.project = GhostConv(out_channels, out_channels, activate=False)
        self.shortcut = nn.Sequential(
            DepthwiseConvNorm(in_channels, 5, norm_cfg=_NORM),
            ConvNorm(in_channels, out_channels, norm_cfg=_NORM))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        return self.project(self.expand(x)) + self.shortcut(x)


@MODELS.register_module()
class GhostPAN(LCPAN):
    """`LCPAN` that merges two maps by a ghost bottleneck."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, **arguments: Any) -> None:
        super().__init__(in_channels, out_channels, **dict(act_cfg=_ACTIVATION) | arguments)
        assert self.merge == 'concat', 'ghost bottlenecks merge concatenated maps'
        for convs in (self.top_down_convs, self.bottom_up_convs):
            for level in range(len(convs)):
                convs[level] = GhostBottleneck(2 * out_channels, out_channels)


@MODELS.register_module()
class NanoDetPlusHead(GFLHead):
    """GFL's head with one separable tower of 5x5 for each level."""

    def _init_layers(self) -> None:
        levels = range(len(self.prior_generator.strides))
        self.towers = nn.ModuleList(nn.Sequential(*(
            DepthwiseSeparableConvModule(
                self.feat_channels if index else self.in_channels, self.feat_channels, 5,
                padding=2, norm_cfg=dict(_NORM), act_cfg=dict(_ACTIVATION))
            for index in range(self.stacked_convs))) for _ in levels)
        channels = self.cls_out_channels + 4 * (self.reg_max + 1)
        self.predictors = nn.ModuleList(
            nn.Conv2d(self.feat_channels, channels, 1) for _ in levels)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map features to the maps of classes and of distributions."""
        class_maps, box_maps = [], []
        for x, tower, predict in zip(features, self.towers, self.predictors, strict=True):
            classes = self.cls_out_channels
            x = predict(tower(x))
            class_maps.append(x[:, :classes])
            box_maps.append(x[:, classes:])
        return class_maps, box_maps
