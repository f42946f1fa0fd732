"""EfficientViT of Microsoft Research (CVPR 2023, arXiv 2305.07027), not MIT's of the same name.

Reads from the leaves to the root: stem, block, patch merging, downsampling, stage, backbone.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arch import NUM_STAGES, STAGE_STRIDES, STEM_STRIDES, Arch
from ..checkpoint import (
    NATIVE,
    LoadReport,
    describe_weights,
    load_backbone_weights,
    translate_backbone_state,
)
from ..errors import CheckpointError, ConfigError
from .attention import CascadedGroupAttention
from .layers import ConvNorm, DepthwiseConvNorm, FeedForward, SqueezeExcite
from .recompute import recompute_activations

__all__ = ['Block', 'Downsample', 'EfficientViT', 'PatchMerging', 'Stage', 'Stem']


class Stem(nn.ModuleList):
    """Four 3x3 convolutions of stride 2, with a ReLU between each two: strides 2, 4, 8 and 16."""

    def __init__(self, embed_dims: int, *, norm_cfg: dict) -> None:
        self.out_channels = tuple(embed_dims // divisor for divisor in (8, 4, 2, 1))
        channels = (3, *self.out_channels)
        super().__init__(ConvNorm(channels[i], channels[i + 1], 3, stride=2, norm_cfg=norm_cfg)
                         for i in range(len(STEM_STRIDES)))

    def forward(self, image: Tensor, strides: Sequence[int] = ()) -> tuple[list[Tensor], Tensor]:
        """Compute the features that the first stage starts from.

        Args:
            image: (B, 3, H, W).
            strides: Which of the strides 2, 4 and 8 to return as well.

        Returns:
            tuple: The maps of ``strides``, after their ReLU, and the map at stride 16, which has
            none.
        """
        features: list[Tensor] = []
        x = image
        for stride, layer in zip(STEM_STRIDES, self, strict=True):
            x = layer(x)
            if stride != STEM_STRIDES[-1]:
                x = F.relu(x)
            if stride in strides:
                features.append(x)
        return features, x


class Block(nn.Module):
    """The sandwich: depthwise conv and FFN, attention, depthwise conv and FFN, all residual.

    Args:
        embed_dims: Channels.
        hidden_dims: Hidden channels of the FFNs.
        num_heads: Heads of the attention.
        key_dim: Channels of each head's query and key.
        window_size: Side of the attention windows.
        kernel_sizes: Side of each head's query kernel.
        num_ffns: Pairs of depthwise conv and FFN on each side of the attention.
        num_attentions: Attention layers between them.
        drop_path_rate: Probability that a residual branch is left out in training.
        norm_cfg: The normalisation, in mmcv's form.
    """

    def __init__(self, embed_dims: int, hidden_dims: int, num_heads: int, key_dim: int,
                 window_size: int, kernel_sizes: Sequence[int], *, num_ffns: int,
                 num_attentions: int, drop_path_rate: float, norm_cfg: dict) -> None:
        super().__init__()

        def add_ffns(first: int) -> None:
            for number in range(first, first + num_ffns):
                self.add_module(f'dw_conv{number}', DepthwiseConvNorm(
                    embed_dims, norm_cfg=norm_cfg, zero_init=True))
                self.add_module(f'ffn{number}', FeedForward(
                    embed_dims, hidden_dims, norm_cfg=norm_cfg))

        add_ffns(1)
        for number in range(1, num_attentions + 1):
            self.add_module('attn' if number == 1 else f'attn{number}', CascadedGroupAttention(
                embed_dims, num_heads, key_dim, window_size, kernel_sizes, norm_cfg=norm_cfg))
        add_ffns(num_ffns + 1)
        self.residual_layers = tuple(self._modules)  # by name, in the order of the data
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        for name in self.residual_layers:
            x = x + self.drop_path(getattr(self, name)(x))
        return x


class PatchMerging(nn.Module):
    """An inverted bottleneck with squeeze-and-excitation that halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int, *, norm_cfg: dict) -> None:
        super().__init__()
        hidden = in_channels * 4
        self.expand = ConvNorm(in_channels, hidden, norm_cfg=norm_cfg)
        self.depthwise = DepthwiseConvNorm(hidden, stride=2, norm_cfg=norm_cfg)
        self.squeeze_excite = SqueezeExcite(hidden, hidden // 4)
        self.project = ConvNorm(hidden, out_channels, norm_cfg=norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, ceil(H / 2), ceil(W / 2))."""
        x = F.relu(self.depthwise(F.relu(self.expand(x))))
        return self.project(self.squeeze_excite(x))


class Downsample(nn.Module):
    """The step from one stage to the next: patch merging between two half sandwiches.

    Args:
        in_channels: Channels of the stage before.
        out_channels: Channels of the stage after.
        hidden_dims: Hidden channels of the FFN before and of the FFN after the merging; None leaves
            both half sandwiches out.
        norm_cfg: The normalisation, in mmcv's form.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_dims: tuple[int, int] | None, *,
                 norm_cfg: dict) -> None:
        super().__init__()
        self.has_ffns = hidden_dims is not None
        if hidden_dims:
            self.dw_conv1 = DepthwiseConvNorm(in_channels, norm_cfg=norm_cfg)
            self.ffn1 = FeedForward(in_channels, hidden_dims[0], norm_cfg=norm_cfg)
        self.merging = PatchMerging(in_channels, out_channels, norm_cfg=norm_cfg)
        if hidden_dims:
            self.dw_conv2 = DepthwiseConvNorm(out_channels, norm_cfg=norm_cfg)
            self.ffn2 = FeedForward(out_channels, hidden_dims[1], norm_cfg=norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, ceil(H / 2), ceil(W / 2))."""
        if not self.has_ffns:
            return self.merging(x)
        x = x + self.dw_conv1(x)
        x = x + self.ffn1(x)
        x = self.merging(x)
        x = x + self.dw_conv2(x)
        return x + self.ffn2(x)


class Stage(nn.Module):
    """A downsampling step, except in the first stage, and blocks.

    Args:
        downsample: The step from the stage before; None in the first stage.
        blocks: The blocks.
        with_cp: Whether to recompute activations in the backward pass.
    """

    def __init__(self, downsample: nn.Module | None, blocks: Sequence[Block], *,
                 with_cp: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Map the map of the stage before to this stage's."""
        steps = [*self.blocks] if self.downsample is None else [self.downsample, *self.blocks]
        for step in steps:
            x = recompute_activations(step, x) if self.with_cp and self.training else step(x)
        return x


@MODELS.register_module()
class EfficientViT(BaseModule):
    """The multi-stage backbone: feature maps at strides 16, 32 and 64, for any image size.

    Args:
        arch: ``'m0'`` to ``'m5'``, or a dict with the fields of `Arch`.
        out_indices: Which stages' maps to return; stages 0, 1 and 2 have strides 16, 32 and 64.
            Stages after the last one are not built.
        stem_strides: Which of the stem's strides 4 and 8 to return as well, before the stages'
            maps, for a plain FPN. They have a quarter and half of the first stage's channels.
        frozen_stages: Freeze the stem (0), the stem and the first stage (1), and so on up to 3;
            -1 freezes nothing. A stage's downsampling belongs to it.
        norm_eval: Freeze the statistics of BN while training, as the published detectors do. Its
            scale and shift still learn. Leave it off when training from random weights.
        norm_cfg: The normalisation, in mmcv's form.
        window_sizes: Side of the attention windows, one for all stages or one per stage. Bias
            tables are resized when weights are loaded.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        with_cp: Recompute activations in the backward pass to save memory.
        fold_norm: While the statistics of BN are frozen, train through convolutions that it is
            folded into in each step: the same losses and gradients with fewer saved activations.
            No effect on inference, or where BN learns its statistics.
        deploy: Build the form that `switch_to_deploy` makes. It loads weights of any layout, folded
            or not.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights of any known layout
            from a file, an address or a name of `evit_mm.checkpoint.zoo`, and fails if a tensor has
            no place; ``prefix`` names the backbone in a checkpoint of several. Otherwise as in
            mmengine.

    Attributes:
        out_channels (tuple[int]): Channels of each returned map.
        out_strides (tuple[int]): Stride of each returned map.

    Raises:
        ConfigError: If an argument is invalid; the message names the value and the choices.
    """

    def __init__(self,
                 arch: str | Mapping[str, Any] | Arch = 'm4',
                 out_indices: Sequence[int] = (0, 1, 2),
                 stem_strides: Sequence[int] = (),
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 norm_cfg: dict | None = None,
                 window_sizes: int | Sequence[int] = 7,
                 drop_path_rate: float = 0.0,
                 with_cp: bool = False,
                 fold_norm: bool = True,
                 deploy: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.arch = Arch.of(arch)
        self.arch_name = arch if isinstance(arch, str) else 'custom'
        self.out_indices = _checked_indices('out_indices', out_indices, range(NUM_STAGES))
        self.stem_strides = _checked_indices('stem_strides', stem_strides, (4, 8))
        if not self.out_indices:
            raise ConfigError('out_indices is empty: name at least one of the stages 0, 1 and 2')
        if frozen_stages not in range(-1, NUM_STAGES + 1):
            raise ConfigError(f'frozen_stages={frozen_stages!r} must be -1 (nothing), 0 (the stem) '
                              f'or 1 to {NUM_STAGES} (stem and stages)')
        if not isinstance(drop_path_rate, int | float) or not 0 <= drop_path_rate < 1:
            raise ConfigError(f'drop_path_rate={drop_path_rate!r} must be in [0, 1)')
        self.window_sizes = _checked_windows(window_sizes)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        norm_cfg = norm_cfg or dict(type='BN')
        if not isinstance(norm_cfg, Mapping) or 'type' not in norm_cfg:
            raise ConfigError(f"norm_cfg={norm_cfg!r} must be a dict such as dict(type='BN')")
        if isinstance(init_cfg, str):
            raise ConfigError(f'init_cfg={init_cfg!r} must be a dict: '
                              f"dict(type='Pretrained', checkpoint={init_cfg!r})")

        dims, heads, hidden = self.arch.embed_dims, self.arch.num_heads, self.arch.hidden_dims
        num_blocks = sum(self.arch.depths)
        drop_rates = [drop_path_rate * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
        self.stem = Stem(dims[0], norm_cfg=norm_cfg)
        self.stages = nn.ModuleList()
        for i in range(self.out_indices[-1] + 1):
            downsample = Downsample(
                dims[i - 1], dims[i], (hidden[i - 1], hidden[i]) if self.arch.num_ffns else None,
                norm_cfg=norm_cfg) if i else None
            blocks = [Block(dims[i], hidden[i], heads[i], self.arch.key_dims[i],
                            self.window_sizes[i], self.arch.kernel_sizes,
                            num_ffns=self.arch.num_ffns, num_attentions=self.arch.num_attentions,
                            drop_path_rate=drop_rates.pop(0), norm_cfg=norm_cfg)
                      for _ in range(self.arch.depths[i])]
            self.stages.append(Stage(downsample, blocks, with_cp=with_cp))

        stem = dict(zip(STEM_STRIDES, self.stem.out_channels, strict=True))
        self.out_channels = (tuple(stem[stride] for stride in self.stem_strides)
                             + tuple(dims[i] for i in self.out_indices))
        self.out_strides = self.stem_strides + tuple(STAGE_STRIDES[i] for i in self.out_indices)
        self.fold_norm = fold_norm
        self.deploy = False
        self._arguments: dict[str, Any] = dict(
            arch=self.arch, out_indices=self.out_indices, stem_strides=self.stem_strides,
            norm_cfg=norm_cfg, window_sizes=self.window_sizes)
        self.register_load_state_dict_pre_hook(_accept_published_layouts)
        self._freeze()
        if deploy:
            self.eval().switch_to_deploy()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            image: (B, 3, H, W) of any height and width.

        Returns:
            tuple[Tensor]: The stem's maps of ``stem_strides``, then the stages' maps of
            ``out_indices``; a map of stride s has ceil(H / s) rows and ceil(W / s) columns.
        """
        outputs, x = self.stem(image, self.stem_strides)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    @property
    def fold_norm(self) -> bool:
        """Train layers with a frozen BN through folded convolutions."""
        return self._fold_norm

    @fold_norm.setter
    def fold_norm(self, value: bool) -> None:
        self._fold_norm = value
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold_norm = value

    def switch_to_deploy(self) -> 'EfficientViT':
        """Replace the layers by their fast form for inference; see `evit_mm.deployment.deploy`.

        Raises:
            ConfigError: In training mode, or if a BN has no running statistics to fold.
        """
        from ..deployment import deploy

        return deploy(self)

    def train(self, mode: bool = True) -> 'EfficientViT':
        """Switch to training mode, except for frozen stages and, with ``norm_eval``, BN.

        Raises:
            ConfigError: If the backbone is in its deployed form.
        """
        if mode and self.deploy:
            raise ConfigError('the deployed form of EfficientViT can\'t be trained: build it '
                              'without deploy=True, and call switch_to_deploy() after training')
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Load the weights that ``init_cfg`` names, and log what happened to every tensor.

        Raises:
            CheckpointError: If they can't be read, or do not fit.
        """
        pretrained = self.init_cfg
        if isinstance(pretrained, list | tuple) and len(pretrained) == 1:
            pretrained = pretrained[0]
        if not (isinstance(pretrained, Mapping) and pretrained.get('type') == 'Pretrained'):
            super().init_weights()
            return
        source = pretrained['checkpoint']
        checkpoint = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
        report = load_backbone_weights(self, checkpoint, source=source,
                                       prefix=pretrained.get('prefix') or '')
        print_log(f'EfficientViT: {source}: {report}', logger='current', level=logging.INFO)
        self._is_init = True

    def translate_state(self, state: Mapping[str, Tensor], source: str = 'the checkpoint'
                        ) -> tuple[dict[str, Tensor], LoadReport]:
        """Translate a state dict of any known layout to the keys of this backbone.

        Bias tables are resized to its windows. A deployed backbone gets folded weights.

        Args:
            state: The state dict of a backbone, without a prefix.
            source: Its file or address, for the error.

        Returns:
            tuple: The translated tensors, and what happened to each.

        Raises:
            CheckpointError: If BN is folded into the weights, but not in this backbone.
        """
        is_deployed = 'stem.0.conv.bias' in state
        if is_deployed and not self.deploy:
            raise CheckpointError(f'{source} is of the deployed form, in which BN is folded into '
                                  'the convolutions for good: take the checkpoint it was made '
                                  'from, or build the backbone with deploy=True')
        if is_deployed or not self.deploy:
            return translate_backbone_state(state, self.state_dict(), source)
        plain = EfficientViT(**self._arguments)
        translated, report = translate_backbone_state(state, plain.state_dict(), source)
        if report.complete:
            plain.load_state_dict(translated, strict=False)  # the counters may be missing
            translated = dict(plain.eval().switch_to_deploy().state_dict())
        return translated, report

    def _freeze(self) -> None:
        frozen = [self.stem, *self.stages][:self.frozen_stages + 1]
        for module in frozen:
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad = False


def _accept_published_layouts(module: EfficientViT, state_dict: dict, prefix: str,
                              *_: Any) -> None:
    """Translate a state dict of any known layout, whichever model contains the backbone.

    Raises:
        CheckpointError: If it holds weights for the backbone that do not fit in full, whatever
            ``strict`` says: mmengine would log that and go on with random ones.
    """
    own = {key: state_dict[key] for key in list(state_dict) if key.startswith(prefix)}
    if not own:
        return
    state = {key.removeprefix(prefix): value for key, value in own.items()}
    name = f'EfficientViT{f" at {prefix[:-1]}" if prefix else ""}'
    translated, report = module.translate_state(state, f'the state dict for {name}')
    if not report.complete:
        raise CheckpointError(f'{name} can\'t load these weights, which look like '
                              f'{describe_weights(state)}: {report}')
    for key in own:
        del state_dict[key]
    state_dict.update({prefix + key: value for key, value in translated.items()})
    if report.layout != NATIVE.name or report.resized:
        print_log(f'{name}: {report}', logger='current', level=logging.INFO)


def _checked_indices(name: str, values: Sequence[int], choices: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(values, int | list | tuple):
        raise ConfigError(f'{name}={values!r} must be a list out of {list(choices)}')
    checked = (values,) if isinstance(values, int) else tuple(values)
    if any(value not in choices for value in checked):
        raise ConfigError(f'{name}={checked} is out of range: choose from {list(choices)}')
    if list(checked) != sorted(set(checked)):
        raise ConfigError(f'{name}={checked} must be strictly increasing')
    return checked


def _checked_windows(window_sizes: int | Sequence[int]) -> tuple[int, ...]:
    windows: tuple[Any, ...] = (tuple(window_sizes) if isinstance(window_sizes, list | tuple)
                                else (window_sizes,) * NUM_STAGES)
    if len(windows) != NUM_STAGES or not all(isinstance(size, int) and size > 0
                                             for size in windows):
        raise ConfigError(f'window_sizes={window_sizes!r} must be one positive number, or '
                          f'{NUM_STAGES} of them, one per stage')
    return windows
