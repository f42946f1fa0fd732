"""EfficientViT in place of the backbone of any detector's or segmentor's config."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS

from evit_mm.models import EfficientViT
from evit_mm.ops.nested import tensors_in

STEM_STRIDES = (4, 8)
STAGE_STRIDES = (16, 32, 64)
STRIDES = STEM_STRIDES + STAGE_STRIDES
# Necks that make a pyramid of a plain ViT's maps, which all have one stride.
PYRAMIDS_OF_ONE_STRIDE = ('Feature2Pyramid', 'MultiLevelNeck')


def replace_backbone(model: dict, key: str = 'backbone', *, channels: Sequence[int] | None = None,
                     strides: Sequence[int] | None = None, adapted: Sequence[dict] = (),
                     arch: str = 'm0') -> None:
    """Put EfficientViT into the config of a model, and adapt what receives its maps.

    It returns as many maps as the backbone that it replaces, at the same strides, so that only the
    numbers of channels behind it change. In place of a plain FPN comes the neck of the published
    detectors, with the same outputs from all stages.

    Args:
        model: The config of a detector or segmentor; changed in place.
        key: The name of the backbone in ``model``.
        channels: Channels of the maps of the present backbone, where it can't be built.
        strides: Strides of the new maps, if they can't be those of the present ones.
        adapted: Configs of parts behind the neck that get maps of the backbone as well.
        arch: The variant.
    """
    if channels is None or strides is None:
        present_channels, present_strides = maps_of(model[key])
        channels, strides = channels or present_channels, strides or present_strides
    strides = possible_strides(strides)
    necks = model.get('neck')
    neck = necks[0] if isinstance(necks, list) else necks
    if neck and neck['type'].rpartition('.')[2] in PYRAMIDS_OF_ONE_STRIDE:
        del model['neck']
        neck = None
    if neck and neck['type'].rpartition('.')[2] == 'FPN':
        strides, published = published_neck(neck, strides)
        if published is not None:
            neck.clear()
            neck.update(published)
    model[key] = dict(
        type='EfficientViT', arch=arch, stem_strides=[s for s in strides if s in STEM_STRIDES],
        out_indices=[STAGE_STRIDES.index(s) for s in strides if s in STAGE_STRIDES])
    backbone = EfficientViT(**{k: v for k, v in model[key].items() if k != 'type'})
    assert list(backbone.out_strides) == list(strides)
    new_channels = list(backbone.out_channels)
    if neck and neck['type'] == 'EfficientViTFPN':
        neck['in_channels'] = new_channels
        return
    for part in [neck, *adapted] if neck else heads_of(model):
        adapt_channels(part, list(channels), new_channels)


def maps_of(backbone: dict) -> tuple[list[int], list[int]]:
    """Return the channels and the strides of the maps that a backbone returns."""
    config = {key: value for key, value in backbone.items()
              # They change no shape, and some need operators.
              if key not in ('dcn', 'stage_with_dcn', 'sac', 'stage_with_sac', 'plugins')}
    network = MODELS.build(config)
    network.eval()  # returns nothing in some classes
    size = 256
    with torch.no_grad():
        maps = [x for x in tensors_in(network(torch.zeros(1, 3, size, size))) if x.ndim == 4]
    return [x.shape[1] for x in maps], [round(size / x.shape[3]) for x in maps]


def possible_strides(strides: Sequence[int]) -> list[int]:
    """Return strides that EfficientViT has: the same ones if it can, or else as many others.

    It has one map for each stride, where dilated networks and plain ViTs have several, and it
    returns the map of a stage at least.
    """
    if set(strides) <= set(STRIDES) and list(strides) == sorted(set(strides)) and \
            strides[-1] >= STAGE_STRIDES[0]:
        return list(strides)
    first = max(0, len(STEM_STRIDES) + 1 - len(strides))
    return list(STRIDES[first:first + len(strides)])


def published_neck(fpn: dict, strides: Sequence[int]) -> tuple[list[int], dict | None]:
    """Return the published neck with the outputs of an FPN, and the strides that it takes.

    Args:
        fpn: The config of the FPN.
        strides: Strides of its inputs.

    Returns:
        tuple: Strides of the maps for the neck, and its config; None if it can't replace the FPN.
    """
    finest = strides[fpn.get('start_level', 0)]
    finer_levels = sum(finest <= stride for stride in STEM_STRIDES)
    stages = min(len(STAGE_STRIDES), fpn['num_outs'] - finer_levels)
    if finest > STAGE_STRIDES[0] or stages < 1:
        return list(strides), None
    return list(STAGE_STRIDES[:stages]), dict(
        type='EfficientViTFPN', out_channels=fpn['out_channels'], norm_cfg=fpn.get('norm_cfg'),
        num_extra_trans_convs=finer_levels, num_outs=fpn['num_outs'])


def heads_of(model: dict) -> Iterator[dict]:
    """Yield the parts of a model's config that receive the backbone's maps without a neck."""
    for name, part in model.items():
        if name.endswith('head'):
            yield from part if isinstance(part, list) else [part]


def adapt_channels(part: Any, old: list[int], new: list[int], *, is_outermost: bool = True
                   ) -> None:
    """Replace the numbers of input channels in the config of a part; changed in place."""
    if isinstance(part, list | tuple):
        for inner in part:
            adapt_channels(inner, old, new, is_outermost=False)
    if not isinstance(part, dict):
        return
    index = part.get('in_index')
    for name in ('in_channels', 'c1_in_channels'):
        value = part.get(name)
        if isinstance(value, list | tuple):
            part[name] = type(value)(adapted_list(list(value), old, new, index))
        elif value in old and name == 'in_channels' and isinstance(index, int):
            part[name] = new[index]
        # Other parts inside have widths of their own.
        elif value in old and is_outermost:
            # DeepLabV3+ takes its other input from the finest map, all else from the coarsest.
            part[name] = new[old.index(value)] if name == 'c1_in_channels' else \
                new[len(old) - 1 - old[::-1].index(value)]
    for inner in part.values():
        adapt_channels(inner, old, new, is_outermost=False)


def adapted_list(value: list[int], old: list[int], new: list[int], index: Any) -> list[int]:
    """Return the channels of the maps that a part takes."""
    if isinstance(index, list | tuple) and len(index) == len(value):
        return [new[i] for i in index]
    if value == old:
        return list(new)
    if value == old[::-1]:
        return new[::-1]
    if set(value) <= set(old):
        return [new[old.index(channels)] for channels in value]
    return value

