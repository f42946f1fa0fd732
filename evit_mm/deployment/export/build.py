"""From a built detector, segmentor or backbone to the module that is exported."""

from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from ...models.efficientvit import EfficientViT
from .backbone import FeatureMaps, suit_runtimes
from .dense import DenseDetector, DetectorNetwork, build_dense_boxes, build_dense_head
from .inputs import ImageInput
from .portable import make_portable
from .segmentor import build_segmentor, check_segmentor
from .two_stage import build_two_stage

__all__ = ['build_module', 'network_parts', 'size_divisor']


def build_module(model: Any, *, any_size: bool) -> nn.Module:
    """Build the module that is exported in place of a model; it takes over the model's layers.

    Args:
        model: A detector, a segmentor or an `EfficientViT`, in eval mode, with its weights; it can
            predict as before.
        any_size: Whether images of any size must work.

    Returns:
        nn.Module: Its attribute ``outputs`` has the names of its outputs.

    Raises:
        ConfigError: If a part of the model computes in a way that is not known.
    """
    suit_runtimes(model, any_size=any_size)
    if isinstance(model, EfficientViT):
        return FeatureMaps(ImageInput(), model, len(model.out_channels)).eval()
    if not hasattr(model, 'data_preprocessor'):
        raise ConfigError(f'a {type(model).__name__} can\'t be exported: only detectors, '
                          'segmentors and the backbone can')
    if hasattr(model, 'decode_head'):
        check_segmentor(model)
        return make_portable(build_segmentor(model, _build_inputs(model.data_preprocessor))).eval()
    inputs = _build_inputs(model.data_preprocessor)
    return make_portable(_build_detector(model, inputs, any_size=any_size)).eval()


def size_divisor(model: Any) -> int:
    """Return the number that height and width of a batch are padded to multiples of."""
    if isinstance(model, EfficientViT) or hasattr(model, 'decode_head'):
        return 1
    return int(model.data_preprocessor.pad_size_divisor)


def network_parts(module: nn.Module) -> list[nn.Module]:
    """Return the parts of an exported module that hold its weights, which may be in float16."""
    if not hasattr(module, 'propose'):
        return [module.network]  # type: ignore[list-item]
    parts: Any = module
    masks = [] if parts.masks is None else [parts.masks.heads]
    return [parts.network, parts.propose.head, parts.detect.heads, *masks]


def _build_inputs(preprocessor: Any) -> ImageInput:
    """Build the normalisation of a data preprocessor.

    Raises:
        ConfigError: If it is of another kind than MMDetection's and MMSegmentation's usual ones.
    """
    kind = type(preprocessor).__name__
    if kind not in ('DetDataPreprocessor', 'SegDataPreProcessor'):
        raise ConfigError(f'the data preprocessor {kind} of this config can\'t be exported yet')
    if kind == 'SegDataPreProcessor':
        if preprocessor.test_cfg:
            raise ConfigError('the test_cfg of this config\'s data preprocessor, which pads images '
                              'for the test, can\'t be exported yet')
        swap = getattr(preprocessor, 'channel_conversion', None)
        if swap is None:  # OneDL's name
            swap = preprocessor._channel_conversion
        pad_value = preprocessor.pad_val
    else:
        swap, pad_value = preprocessor._channel_conversion, preprocessor.pad_value
    if preprocessor._enable_normalize and torch.numel(preprocessor.mean) != 3:
        raise ConfigError('a model of grey images can\'t be exported yet')
    if not preprocessor._enable_normalize:
        return ImageInput(None, None, swap_channels=swap, pad_value=pad_value)
    return ImageInput(preprocessor.mean.cpu(), preprocessor.std.cpu(), swap_channels=swap,
                      pad_value=pad_value)


def _build_detector(model: Any, inputs: ImageInput, *, any_size: bool) -> nn.Module:
    from mmdet.models.detectors import SingleStageDetector, TwoStageDetector

    methods = type(model)
    if getattr(methods, 'predict', None) is SingleStageDetector.predict and \
            methods.extract_feat is SingleStageDetector.extract_feat:
        decode = build_dense_boxes(model.bbox_head, any_size=any_size)
        network = DetectorNetwork(model.backbone, getattr(model, 'neck', None),
                                  build_dense_head(model.bbox_head))
        return DenseDetector(inputs, network, decode)
    if getattr(methods, 'predict', None) is TwoStageDetector.predict and \
            methods.extract_feat is TwoStageDetector.extract_feat:
        return build_two_stage(model, inputs, any_size=any_size)
    raise ConfigError(f'the detector {methods.__name__} of this config can\'t be exported yet')
