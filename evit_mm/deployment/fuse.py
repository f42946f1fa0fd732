"""Replace the modules of a trained model by their fast form for inference."""

from typing import Any, TypeVar

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import wrappers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import ConfigError
from ..models.attention import CascadedGroupAttention
from ..models.efficientvit import Block, Downsample, EfficientViT
from ..models.layers import ConvNorm, FeedForward
from .layers import (
    FoldedAttention,
    FoldedBlock,
    FoldedDownsample,
    FoldedFeedForward,
    is_folded,
)

__all__ = ['deploy']

Model = TypeVar('Model', bound=nn.Module)

_FOLDABLE = (nn.Conv2d, nn.ConvTranspose2d, wrappers.Conv2d, wrappers.ConvTranspose2d)
"""Convolutions whose output is linear in their weight; others derive what they compute from it."""


def deploy(model: Model) -> Model:
    """Replace the modules of a detector, segmentor or backbone by their fast form, in place.

    BN goes into the convolution before it, in our layers and in mmcv's `ConvModule`; the identity
    next to a depthwise convolution goes into its kernel, the scale of the softmax into the query,
    and biases are gathered once. Weights become channels-last, which makes feature maps so.
    Outputs stay the same up to rounding. Modules of other packages that have a
    ``switch_to_deploy`` method use it. It can't be undone, and the result can't be trained.

    Args:
        model: In eval mode, with its weights loaded.

    Returns:
        nn.Module: The same model; another module if ``model`` is itself a layer of ours.

    Raises:
        ConfigError: If the model is in training mode, or a BN has no running statistics.
    """
    if model.training:
        raise ConfigError(f'{type(model).__name__} is in training mode, in which BN normalises by '
                          'batch: call eval() before deploying it')
    _check_norms(model)
    return _deployed(model, {}).to(memory_format=torch.channels_last)


def _check_norms(model: nn.Module) -> None:
    """Check that every BN of our layers can be folded, before anything is changed.

    Raises:
        ConfigError: If one normalises by batch.
    """
    for name, layer in model.named_modules():
        norm = layer.norm if isinstance(layer, ConvNorm) else None
        if isinstance(norm, _BatchNorm) and norm.running_mean is None:
            raise ConfigError(f'{name}.norm has no running statistics to fold into a convolution: '
                              'build the backbone without track_running_stats=False')
        if isinstance(norm, _BatchNorm) and norm.training:
            raise ConfigError(f'{name}.norm is in training mode, in which BN normalises by batch: '
                              'call eval() on the whole model before deploying it')


def _deployed(module: Any, forms: dict[nn.Module, nn.Module]) -> Any:
    """Return the fast form of a module, and note it in ``forms``: a module may have two parents."""
    if module not in forms:
        forms[module] = _replaced(module, forms)
    return forms[module]


def _replaced(module: Any, forms: dict[nn.Module, nn.Module]) -> Any:
    """Return the fast form of a module; most are changed in place."""
    if isinstance(module, EfficientViT) and module.deploy:
        return module
    switch = getattr(module, 'switch_to_deploy', None)
    if callable(switch) and not isinstance(module, EfficientViT):
        switch()
        return module
    for name, child in list(module._modules.items()):  # named_children() leaves out repetitions
        if child is not None:
            setattr(module, name, _deployed(child, forms))
    if isinstance(module, ConvNorm):
        _fold_conv_norm(module)
    elif isinstance(module, ConvModule):
        _fold_conv_module(module)
    elif isinstance(module, FeedForward):
        if is_folded(module.expand) and is_folded(module.project):
            return FoldedFeedForward(module).eval()
    elif isinstance(module, CascadedGroupAttention):
        if all(map(is_folded, (*module.qkv, *module.query_conv))):
            return FoldedAttention(module).eval()
    elif isinstance(module, Block):
        return FoldedBlock(module).eval()
    elif isinstance(module, Downsample):
        return FoldedDownsample(module).eval()
    elif isinstance(module, EfficientViT):
        module.deploy = True
        module.requires_grad_(False)
    return module


def _fold_conv_norm(layer: ConvNorm) -> None:
    if not isinstance(layer.norm, _BatchNorm):
        return
    dtype = layer.conv.weight.dtype
    # In half precision, the scales alone would lose as much as the whole network may.
    layer.conv = fuse_conv_bn_eval(layer.conv.double(), layer.norm.double()).to(dtype)
    layer.norm = nn.Identity()


def _fold_conv_module(module: ConvModule) -> None:
    """Fold the BN of mmcv's block of convolution, normalisation and activation."""
    norm = module.norm if module.with_norm else None
    transposed = isinstance(module.conv, nn.ConvTranspose2d)
    if (not isinstance(norm, _BatchNorm) or norm.running_mean is None or not norm.affine
            or type(module.conv) not in _FOLDABLE
            or (transposed and module.conv.groups != 1)
            or module.order.index('norm') != module.order.index('conv') + 1):
        return
    # A copy: heads may share one convolution between several levels, each with its own BN.
    module.conv = fuse_conv_bn_eval(module.conv, norm, transpose=transposed)
    setattr(module, module.norm_name, nn.Identity())
    module.turn_on_efficient_conv_bn_eval(False)
