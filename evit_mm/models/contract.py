"""Check that backbone, neck and head fit, at the moment a model is put together.

A backbone can't see its neck, nor a neck its head: MMDetection and MMSegmentation build them one
after the other from separate parts of a config, and a mistake shows as a shape error in the first
training step. torch tells when a module becomes part of another, so a mistake can end the
construction instead, in stock and in own detectors and segmentors alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..errors import ConfigError
from .efficientvit import EfficientViT
from .efficientvit_fpn import EfficientViTFPN, channel_mismatch

__all__ = ['install']

_DETECTION_HEADS = ('bbox_head', 'rpn_head', 'roi_head')
_SEGMENTATION_HEADS = ('decode_head', 'auxiliary_head')
_installed: list[Any] = []


@dataclass(frozen=True)
class _Maps:
    """What a head is given: by whom, and each map's channels and stride, finest first."""

    giver: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]


# A segmentor with several heads registers an empty list first and fills it afterwards.
_lists_of_heads: WeakKeyDictionary[nn.Module, _Maps] = WeakKeyDictionary()


def install() -> None:
    """Check every model that is put together from now on; idempotent."""
    if not _installed:
        _installed.append(register_module_module_registration_hook(_check_part))


def _check_part(parent: nn.Module, name: str, part: nn.Module | None) -> None:
    if part is None:
        return
    backbone, neck = parent._modules.get('backbone'), parent._modules.get('neck')
    if name == 'neck' and isinstance(backbone, EfficientViT):
        _check_neck(backbone, part)
    elif name in _DETECTION_HEADS and isinstance(neck, EfficientViTFPN):
        _check_detection_head(neck, part)
    elif name in _SEGMENTATION_HEADS:
        maps = _maps_for_heads(backbone, neck)
        if maps is not None and isinstance(part, nn.ModuleList):
            _lists_of_heads[part] = maps
        elif maps is not None:
            _check_segmentation_head(maps, name, part)
    elif parent in _lists_of_heads:
        _check_segmentation_head(_lists_of_heads[parent], f'head {name}', part)


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


def _check_detection_head(neck: EfficientViTFPN, head: nn.Module) -> None:
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


def _maps_for_heads(backbone: nn.Module | None, neck: nn.Module | None) -> _Maps | None:
    if isinstance(neck, EfficientViTFPN):
        return _Maps('EfficientViTFPN', (neck.out_channels,) * neck.num_outs, neck.out_strides)
    if neck is None and isinstance(backbone, EfficientViT):
        return _Maps(f'EfficientViT arch={backbone.arch_name!r}', backbone.out_channels,
                     backbone.out_strides)
    return None


def _check_segmentation_head(maps: _Maps, name: str, head: nn.Module) -> None:
    index: Any = getattr(head, 'in_index', None)
    if index is None:
        return
    indices = list(index) if isinstance(index, list | tuple) else [index]
    count = len(maps.channels)
    title = f'{name} ({type(head).__name__})'
    gives = f'{maps.giver} gives {count} maps of strides {list(maps.strides)}'
    if any(i not in range(-count, count) for i in indices):
        raise ConfigError(f'{title} takes the maps in_index={index}, but {gives}: choose from 0 '
                          f'to {count - 1}')
    given = [maps.channels[i] for i in indices]
    expected: Any = getattr(head, 'in_channels', given)
    if getattr(head, 'input_transform', None) == 'resize_concat':
        fits = expected == sum(given)
    else:
        fits = (list(expected) if isinstance(expected, Sequence) else [expected]) == given
    if not fits:
        raise ConfigError(f'{title} is built for in_channels={expected}, but {gives}, of which '
                          f'in_index={index} have channels {given}: set its in_channels to '
                          f'{given if isinstance(index, list | tuple) else given[0]}')
    strides: Any = getattr(head, 'feature_strides', None)
    taken = [maps.strides[i] for i in indices]
    # Only how strides relate to each other matters to a head.
    if strides and [s * taken[0] for s in strides] != [s * strides[0] for s in taken]:
        raise ConfigError(f'{title} is built for feature_strides={list(strides)}, but {gives}: '
                          f'set its feature_strides to {taken}')
