"""EfficientViT of Microsoft Research (CVPR 2023, arXiv 2305.07027), not MIT's of the same name.

Read from the leaves to the root: variants, stem, block, downsampling, stage, backbone.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..arch import NUM_STAGES, STAGE_STRIDES, STEM_STRIDES, Arch
from ..checkpoint import (
    NATIVE,
    describe_weights,
    load_backbone_weights,
    translate_backbone_state,
)
from ..deployment.fuse import deploy_layers
from ..errors import CheckpointError, ConfigError
from .attention import CascadedGroupAttention
from .layers import ConvNorm, DepthwiseConvNorm, FeedForward, SqueezeExcite, convolve_in_turn

__all__ = ['EfficientViT']

class Stem(nn.ModuleList):
    """Four 3x3 convolutions of stride 2: strides 2, 4, 8 and 16."""

    def __init__(self, embed_dims: int, *, norm_cfg: dict) -> None:
        self.out_channels = tuple(embed_dims // divisor for divisor in (8, 4, 2, 1))
        channels = (3, *self.out_channels)
        super().__init__(ConvNorm(channels[i], channels[i + 1], 3, stride=2, norm_cfg=norm_cfg)
                         for i in range(len(STEM_STRIDES)))

    def forward(self, image: Tensor, strides: Sequence[int] = ()) -> tuple[list[Tensor], Tensor]:
        """Map (B, 3, H, W) to features.

        Args:
            image: The image.
            strides: Those of 2, 4 and 8 whose features (after ReLU) to return too. Others are not
                kept, which would double the memory of inference.

        Returns:
            tuple: Their features, and those at stride 16 (before any ReLU).
        """
        features: list[Tensor] = []
        x = image
        layers: list[Any] = []
        for stride, layer in zip(STEM_STRIDES, self, strict=True):
            layers.append(layer)
            if stride in strides:
                x = convolve_in_turn(x, layers, relu=True)
                features.append(x)
                layers = []
        return features, convolve_in_turn(x, layers)


class Block(nn.Module):
    """The sandwich: depthwise conv and FFN, attention, depthwise conv and FFN, all residual.

    Args:
        num_ffns: Pairs of depthwise conv and FFN on each side of the attention.
        num_attentions: Attention layers between them.
    """

    def __init__(self, embed_dims: int, hidden_dims: int, num_heads: int, key_dim: int,
                 window_size: int, kernel_sizes: Sequence[int], *, num_ffns: int,
                 num_attentions: int, drop_path_rate: float, norm_cfg: dict) -> None:
        super().__init__()
        self.deployed = False
        self.names: list[str] = []  # of the layers, in the order of the data

        def add_pairs(first: int) -> None:
            for number in range(first, first + num_ffns):
                self._add(f'dw_conv{number}', DepthwiseConvNorm(
                    embed_dims, norm_cfg=norm_cfg, zero_init=True))
                self._add(f'ffn{number}', FeedForward(embed_dims, hidden_dims, norm_cfg=norm_cfg))

        add_pairs(1)
        for number in range(1, num_attentions + 1):
            self._add('attn' if number == 1 else f'attn{number}', CascadedGroupAttention(
                embed_dims, num_heads, key_dim, window_size, kernel_sizes, norm_cfg=norm_cfg))
        add_pairs(num_ffns + 1)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def _add(self, name: str, layer: nn.Module) -> None:
        self.add_module(name, layer)
        self.names.append(name)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        drops = isinstance(self.drop_path, DropPath) and self.training
        for name in self.names:
            layer = getattr(self, name)
            x = x + self.drop_path(layer(x)) if drops else layer.add_to(x)
        return x

    def switch_to_deploy(self) -> None:
        """Fold all layers, and the identity beside each depthwise convolution into its kernel."""
        deploy_layers(self)
        self.deployed = True  # plain modules leave their outputs to forward hooks
        for name in self.names:
            layer = getattr(self, name)
            if isinstance(layer, DepthwiseConvNorm):
                layer.fold_identity()


class PatchMerging(nn.Module):
    """Halve the resolution through an inverted bottleneck with squeeze-excitation."""

    def __init__(self, in_channels: int, out_channels: int, *, norm_cfg: dict) -> None:
        super().__init__()
        hidden = in_channels * 4
        self.expand = ConvNorm(in_channels, hidden, norm_cfg=norm_cfg)
        self.depthwise = DepthwiseConvNorm(hidden, stride=2, norm_cfg=norm_cfg)
        self.squeeze_excite = SqueezeExcite(hidden, hidden // 4)
        self.project = ConvNorm(hidden, out_channels, norm_cfg=norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, ceil(H / 2), ceil(W / 2))."""
        x = convolve_in_turn(x, (self.expand, self.depthwise), relu=True)
        return self.project(self.squeeze_excite(x))


class Downsample(nn.Module):
    """What leads from one stage to the next: patch merging between two half sandwiches.

    Args:
        hidden_dims: Hidden channels of the FFN before the merging and of the one behind it; None
            leaves both half sandwiches out.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_dims: tuple[int, int] | None, *,
                 norm_cfg: dict) -> None:
        super().__init__()
        self.deployed = False
        self.has_ffns = hidden_dims is not None
        if hidden_dims:
            self.dw_conv1 = DepthwiseConvNorm(in_channels, norm_cfg=norm_cfg, zero_init=True)
            self.ffn1 = FeedForward(in_channels, hidden_dims[0], norm_cfg=norm_cfg)
        self.merging = PatchMerging(in_channels, out_channels, norm_cfg=norm_cfg)
        if hidden_dims:
            self.dw_conv2 = DepthwiseConvNorm(out_channels, norm_cfg=norm_cfg, zero_init=True)
            self.ffn2 = FeedForward(out_channels, hidden_dims[1], norm_cfg=norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, ceil(H / 2), ceil(W / 2))."""
        if not self.has_ffns:
            return self.merging(x)
        x = self.dw_conv1.add_to(x)
        x = self.merging(self.ffn1.add_to(x))
        x = self.dw_conv2.add_to(x)
        return self.ffn2.add_to(x)

    def switch_to_deploy(self) -> None:
        """Fold all layers, and the identity beside each depthwise convolution into its kernel."""
        deploy_layers(self)
        self.deployed = True
        if self.has_ffns:
            self.dw_conv1.fold_identity()
            self.dw_conv2.fold_identity()


class Stage(nn.Module):
    """Downsampling, except in the first stage, and blocks."""

    def __init__(self, downsample: nn.Module | None, blocks: Sequence[Block], *,
                 with_cp: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Map the previous stage's features to this one's."""
        steps = [*self.blocks] if self.downsample is None else [self.downsample, *self.blocks]
        for step in steps:
            if self.with_cp and self.training and torch.is_grad_enabled():
                x = _checkpointed(step, x)
            else:
                x = step(x)
        return x


def _checkpointed(step: nn.Module, x: Tensor) -> Tensor:
    """Run ``step`` without keeping its activations; the backward pass runs it again.

    Non-reentrant, because the other kind breaks under DistributedDataParallel. The second run
    must not count in the running statistics of BN. torch.compile takes no such context, so there
    a step with learning BN keeps its activations.
    """
    if torch.compiler.is_compiling():
        learning = any(isinstance(m, _BatchNorm) and m.training for m in step.modules())
        return step(x) if learning else checkpoint(step, x, use_reentrant=False)
    return checkpoint(step, x, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), _frozen_statistics(step)))


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counters = [norm.num_batches_tracked for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, momentum, counter in zip(norms, momenta, counters, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = counter


@MODELS.register_module()
class EfficientViT(BaseModule):
    """The multi-stage backbone: feature maps at strides 16, 32 and 64, for any image size.

    Args:
        arch: ``'m0'`` to ``'m5'``, or a dict with the fields of `Arch`.
        out_indices: Which stages' maps to return; stages 0, 1 and 2 have strides 16, 32 and 64.
            Stages behind the last one are not built.
        stem_strides: Which of the stem's strides 4 and 8 to return too, before the stages' maps;
            a plain FPN can start there. They have a quarter and a half of the first stage's
            channels.
        frozen_stages: Freeze the stem (0), the stem and the first stage (1), and so on up to 3;
            -1 freezes nothing. A stage's downsampling belongs to it.
        norm_eval: Keep the statistics of BN as they are while training, as fine-tuning of the
            published detectors does. Its scale and shift still learn. Leave it off when training
            from random weights.
        norm_cfg: The normalisation, in mmcv's form.
        window_sizes: Side of the attention windows, one for all stages or one per stage. Bias
            tables of other windows are resized when weights are loaded.
        drop_path_rate: Stochastic depth of the last block; earlier blocks get less, linearly.
        with_cp: Recompute activations in the backward pass to save memory.
        fold_norm: While BN's statistics are fixed, train through convolutions that it is folded
            into at every step: the same losses and gradients, faster and with fewer saved
            activations. It has no effect where BN learns its statistics, or on inference.
        deploy: Build the form of `switch_to_deploy`; weights that are loaded into it may have any
            layout, folded or not.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights of any known layout
            from a file, an address or a name of `evit_mm.checkpoint.zoo`, and fails on what it
            can't explain; ``prefix`` says where the backbone is in a checkpoint of several.
            Otherwise as in mmengine.

    Attributes:
        out_channels (tuple[int]): Channels of each returned map.
        out_strides (tuple[int]): Stride of each returned map.

    Raises:
        ConfigError: If an argument can't work; the message names the value and the choices.
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
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold_norm = fold_norm
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
            tuple[Tensor]: The stem's maps that ``stem_strides`` asks for, then the stages' maps
            of ``out_indices``; a map of stride s has ceil(H / s) rows and ceil(W / s) columns.
        """
        if self.deploy:
            image = _with_channels_last(image)
        outputs, x = self.stem(image, self.stem_strides)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def switch_to_deploy(self) -> 'EfficientViT':
        """Turn into the fast form for inference, in place; outputs stay the same.

        BN and the identity beside each depthwise convolution are folded into the convolutions,
        the scale of the attention into the query's; biases are gathered once, weights and maps
        have their channels last. It can't be undone, and learns nothing.

        Raises:
            ConfigError: In training mode, or if a BN has no running statistics to fold.
        """
        if self.deploy:
            return self
        if self.training:
            raise ConfigError('switch_to_deploy() folds BN with the statistics that inference '
                              'uses, but this EfficientViT is in training mode: call eval() first')
        deploy_layers(self)
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)
        # Before a forward that is compiled: inductor's loop for three channels takes twice as long
        # as torch's own copy (seen in torch 2.11).
        self.register_forward_pre_hook(_give_channels_last)
        self.deploy = True
        return self

    def unfolded_twin(self) -> 'EfficientViT':
        """A backbone like this one that is not deployed, with weights of its own."""
        return EfficientViT(**self._arguments)

    def train(self, mode: bool = True) -> 'EfficientViT':
        """Switch to training, but for what is frozen.

        Raises:
            ConfigError: If this is the deployed form.
        """
        if mode and self.deploy:
            raise ConfigError('the deployed form of EfficientViT can\'t be trained: build it '
                              'without deploy=True, and switch after training')
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Load the weights that ``init_cfg`` names, and log what became of every tensor.

        Raises:
            CheckpointError: If they can't be had, or do not fit.
        """
        pretrained = self.init_cfg
        if isinstance(pretrained, list | tuple) and len(pretrained) == 1:
            pretrained = pretrained[0]
        if not (isinstance(pretrained, Mapping) and pretrained.get('type') == 'Pretrained'):
            super().init_weights()
            return
        source = pretrained['checkpoint']
        loaded = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
        receiver = self.unfolded_twin() if self.deploy else self
        report = load_backbone_weights(receiver, loaded, source=source,
                                       prefix=pretrained.get('prefix') or '',
                                       describe=describe_weights)
        if receiver is not self:
            self.load_state_dict(receiver.eval().switch_to_deploy().state_dict())
        print_log(f'EfficientViT: {source}: {report}', logger='current', level=logging.INFO)
        self._is_init = True

    def _freeze(self) -> None:
        frozen = [self.stem, *self.stages][:self.frozen_stages + 1]
        for module in frozen:
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad = False


def _with_channels_last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


def _give_channels_last(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(_with_channels_last, arguments))


def _accept_published_layouts(module: EfficientViT, state_dict: dict, prefix: str,
                              local_metadata: dict, strict: bool, *_: Any) -> None:
    """Let every `load_state_dict` take every published layout, whatever contains the backbone.

    Raises:
        CheckpointError: If there are weights for the backbone that it can't take in full. mmengine
            would log that and go on with random ones.
    """
    own = {key: state_dict[key] for key in list(state_dict) if key.startswith(prefix)}
    if not own:
        return
    state = {key.removeprefix(prefix): value for key, value in own.items()}
    place = f'EfficientViT{f" at {prefix[:-1]}" if prefix else ""}'
    deployed = module.deploy and not _is_deployed(state)
    receiver = module.unfolded_twin() if deployed else module
    translated, report = translate_backbone_state(state, receiver.state_dict(),
                                                  f'what {place} is given')
    if strict and not report.complete:
        raise CheckpointError(f'{place} can\'t take these weights, which look like '
                              f'{describe_weights(state)}: {report}')
    if deployed and report.complete:
        receiver.load_state_dict(translated, strict=False)  # the counters may be missing
        translated = receiver.eval().switch_to_deploy().state_dict()
    for key in own:
        del state_dict[key]
    state_dict.update({prefix + key: value for key, value in translated.items()})
    if report.layout != NATIVE.name or report.resized:
        print_log(f'{place}: {report}', logger='current', level=logging.INFO)


def _is_deployed(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of our deployed form, in which convolutions have a bias."""
    return 'stem.0.conv.bias' in state


def _checked_indices(name: str, values: Sequence[int], choices: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(values, int | list | tuple):
        raise ConfigError(f'{name}={values!r} must be a list out of {list(choices)}')
    checked = (values,) if isinstance(values, int) else tuple(values)
    if any(value not in choices for value in checked):
        raise ConfigError(f'{name}={checked} is out of range: choose from {list(choices)}')
    if list(checked) != sorted(set(checked)):
        raise ConfigError(f'{name}={checked} must rise, without repeats')
    return checked


def _checked_windows(window_sizes: int | Sequence[int]) -> tuple[int, ...]:
    windows: tuple[Any, ...] = (tuple(window_sizes) if isinstance(window_sizes, list | tuple)
                                else (window_sizes,) * NUM_STAGES)
    if len(windows) != NUM_STAGES or not all(isinstance(size, int) and size > 0
                                             for size in windows):
        raise ConfigError(f'window_sizes={window_sizes!r} must be one positive number, or '
                          f'{NUM_STAGES} of them, one per stage')
    return windows
