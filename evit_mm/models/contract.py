"""Check that backbone, neck and head fit, at the moment a model is put together.

A backbone can't see its neck, nor a neck its head: MMDetection and MMSegmentation build them one
after the other from separate parts of a config, and a mistake shows as a shape error in the first
training step. torch tells when a module becomes part of another, so a mistake can end the
construction instead, in stock and in own detectors and segmentors alike.
"""

from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..errors import ConfigError
from .efficientvit import EfficientViT
from .efficientvit_fpn import EfficientViTFPN, channel_mismatch

__all__ = ['install']

_HEADS = ('bbox_head', 'rpn_head', 'roi_head')
_installed: list[Any] = []


def install() -> None:
    """Check every model that is put together from now on; idempotent."""
    if not _installed:
        _installed.append(register_module_module_registration_hook(_check_part))


def _check_part(parent: nn.Module, name: str, part: nn.Module | None) -> None:
    if name == 'neck' and part is not None:
        backbone = parent._modules.get('backbone')
        if isinstance(backbone, EfficientViT):
            _check_neck(backbone, part)
    elif name in _HEADS and part is not None:
        neck = parent._modules.get('neck')
        if isinstance(neck, EfficientViTFPN):
            _check_head(neck, part)


def _check_neck(backbone: EfficientViT, neck: nn.Module) -> None:
    expected = getattr(neck, 'in_channels', None)
    if isinstance(expected, list | tuple) and tuple(expected) != backbone.out_channels:
        raise ConfigError(channel_mismatch(
            neck, f'maps of EfficientViT arch={backbone.arch_name!r}, '
            f'strides {list(backbone.out_strides)}', backbone.out_channels))
    if isinstance(neck, EfficientViTFPN) and neck.in_strides != backbone.out_strides:
        raise ConfigError(
            f'EfficientViTFPN is built for maps of strides {list(neck.in_strides)}, but the '
            f'backbone gives strides {list(backbone.out_strides)}: set the neck\'s '
            f'in_strides={list(backbone.out_strides)}')


def _check_head(neck: EfficientViTFPN, head: nn.Module) -> None:
    generator = getattr(head, 'prior_generator', None)
    strides = [tuple(stride) for stride in getattr(generator, 'strides', [])]
    if strides and strides != [(stride, stride) for stride in neck.out_strides]:
        raise ConfigError(
            f'{type(head).__name__} has priors at strides {[stride[0] for stride in strides]}, but '
            f'EfficientViTFPN gives strides {list(neck.out_strides)}: set '
            'num_extra_trans_convs and num_outs of the neck, or the strides of the head\'s '
            'prior generator')
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        levels = list(getattr(getattr(head, name, None), 'featmap_strides', []))
        if levels != list(neck.out_strides[:len(levels)]):
            raise ConfigError(
                f'the {name} of {type(head).__name__} pools from strides {levels}, but '
                f'EfficientViTFPN gives strides {list(neck.out_strides)}: set the extractor\'s '
                'featmap_strides, or num_extra_trans_convs of the neck')
    width = getattr(head, 'in_channels', neck.out_channels)
    if isinstance(width, int) and width != neck.out_channels:
        raise ConfigError(f'{type(head).__name__} is built for in_channels={width}, but '
                          f'EfficientViTFPN gives {neck.out_channels} channels')
