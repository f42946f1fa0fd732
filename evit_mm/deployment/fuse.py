"""Turn models into their fast form for inference."""

from typing import cast

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import wrappers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import ConfigError
from ..models import winograd

__all__ = ['deploy', 'deploy_layers']

_FOLDABLE = (nn.Conv2d, nn.ConvTranspose2d, wrappers.Conv2d, wrappers.ConvTranspose2d)
"""Convolutions whose output is linear in their weight; others derive what they compute from it."""


def deploy(model: nn.Module) -> nn.Module:
    """Fold everything in a detector, segmentor or backbone that can be folded, in place.

    Modules that have a ``switch_to_deploy`` use it; elsewhere, the BN of a `ConvModule` goes into
    its convolution, and wide 3x3 convolutions become a `WinogradConv2d`. Weights get their
    channels last, the layout in which maps then leave our backbone, so that no convolution of a
    neck or head has to rearrange them.

    Args:
        model: In inference mode, with its weights loaded.

    Returns:
        nn.Module: The same model.

    Raises:
        ConfigError: If the model is in training mode.
    """
    if model.training:
        raise ConfigError(f'{type(model).__name__} is in training mode, in which its BN is not '
                          'what inference uses: call eval() before deploying it')
    _deploy_one(model)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def deploy_layers(module: nn.Module) -> None:
    """Do to all modules inside ``module`` what `deploy` does to a model."""
    for name, child in list(module.named_children()):
        if winograd.fits(child):
            setattr(module, name, winograd.WinogradConv2d(cast(nn.Conv2d, child)))
        else:
            _deploy_one(child)


def _deploy_one(module: nn.Module) -> None:
    switch = getattr(module, 'switch_to_deploy', None)
    if callable(switch):
        switch()
        return
    if isinstance(module, ConvModule):
        _fold_norm(module)
        _fold_relu(module)
    deploy_layers(module)


def _fold_norm(module: ConvModule) -> None:
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


def _fold_relu(module: ConvModule) -> None:
    """Make a ReLU part of a convolution that can compute it with its results at hand."""
    conv, act = module.order.index('conv'), module.order.index('act')
    changed_before = (module.with_norm and type(module.norm) is not nn.Identity
                      and conv < module.order.index('norm') < act)
    if (winograd.fits(module.conv) and module.with_activation and conv < act
            and type(module.activate) is nn.ReLU and not module.activate._forward_hooks
            and not module.activate._forward_pre_hooks and not changed_before
            and type(module) is ConvModule):  # others may do something in between
        module.conv = winograd.WinogradConv2d(module.conv, relu=True)
        module.activate = nn.Identity()
