"""A sample of the label maps; `evit_mm.segmentation.labels` checks each one when it is loaded."""

import time
from random import Random
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.logging import print_log
from torch import nn

from ...errors import UserError
from .datasets import leaves, steps
from .files import is_local, segmentation_base

__all__ = ['check_label_maps', 'ignored_label']

_IGNORED = 255  # MMSegmentation's default


def check_label_maps(dataset: Any, name: str, limit: int = 100, seconds: float = 10.0, *,
                     ignore_index: int = _IGNORED) -> None:
    """Check that label maps can be read, are as large as their images and hold known classes.

    Datasets whose pipeline loads no label maps, or loads them with a custom transform, are skipped.

    Args:
        dataset: A built dataset.
        name: ``'train'``, ``'val'`` or ``'test'``, for the log.
        limit: Number of label maps to check, spread over the dataset.
        seconds: Time after which the check stops early.
        ignore_index: Label of the pixels that do not count.

    Raises:
        UserError: If a label map does not fit; the message names the file.
        ConfigError: If the config contradicts itself about how to load them.
    """
    segmentation = [leaf for leaf in leaves(dataset) if segmentation_base(type(leaf))]
    sources = []
    for leaf in segmentation:
        load = _checked_loader(leaf, ignore_index)
        if load is not None and is_local(load.backend_args):
            sources += [(leaf, load, index) for index in range(len(leaf))]
    # Every beginning of a random order is spread over the whole dataset: time may run out.
    sample = Random(0).sample(sources, min(limit, len(sources)))
    end = time.monotonic() + seconds
    for count, (leaf, load, index) in enumerate(sample, start=1):
        load(_with_image(leaf, index))
        if time.monotonic() > end or count == len(sample):
            print_log(f'{count} of the {len(sources)} label maps of the {name} dataset are valid'
                      + ('' if count == len(sources) else '; the others are checked when they are '
                         'loaded'), logger='current')
            return


def ignored_label(model: nn.Module) -> int:
    """Return the label that a segmentor's loss ignores."""
    head: Any = getattr(model, 'decode_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    label = getattr(head, 'ignore_index', None)
    return _IGNORED if label is None else label


def _checked_loader(leaf: Any, ignore_index: int) -> Any:
    """Return a transform that loads a dataset's label maps as its pipeline does, with checks.

    Returns:
        CheckedLoadAnnotations: None if the pipeline has no loader that it could replace.
    """
    from mmseg.datasets.transforms import LoadAnnotations  # detection does without mmseg

    from ...segmentation import CheckedLoadAnnotations

    for step in steps(leaf.pipeline):
        if isinstance(step, CheckedLoadAnnotations):
            return step
        if type(step) is LoadAnnotations:  # in a runner whose config was not changed beforehand
            return CheckedLoadAnnotations(
                num_classes=len(leaf.metainfo.get('classes') or ()) or None,
                ignore_index=ignore_index, reduce_zero_label=step.reduce_zero_label,
                imdecode_backend=step.imdecode_backend, backend_args=step.backend_args)
    return None


def _with_image(leaf: Any, index: int) -> dict[str, Any]:
    """Return the input of a label map's loader, with the size of its image where that is known.

    Raises:
        UserError: If the image can't be read.
    """
    info = leaf.get_data_info(index)
    # Any other image loader may depend on the steps before it.
    for step in steps(leaf.pipeline):
        if type(step) is LoadImageFromFile:
            try:
                return step(info) or info
            except Exception as error:  # each decoder raises its own types
                raise UserError(f'the image {info["img_path"]} can\'t be read '
                                f'({type(error).__name__}): fetch it again, or remove it from the '
                                'dataset') from error
    return info
