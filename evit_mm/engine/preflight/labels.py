"""A look into a sample of the label maps; `evit_mm.segmentation.labels` checks each as it loads."""

import time
from random import Random
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.logging import print_log

from ...errors import UserError
from .datasets import leaves, steps
from .files import is_local, segmentation_base

__all__ = ['check_label_maps']


def check_label_maps(dataset: Any, name: str, limit: int = 100, seconds: float = 10.0) -> None:
    """Check that label maps can be read, are as large as their images and hold known classes.

    Datasets whose pipeline does not load label maps, or in a way of its own, are passed over.

    Args:
        dataset: The built dataset.
        name: ``'train'``, ``'val'`` or ``'test'``, for the log.
        limit: Label maps to look into, spread over the dataset.
        seconds: When to stop before that.

    Raises:
        UserError: If one does not fit; it names the file.
        ConfigError: If the config contradicts itself about how to load them.
    """
    segmentation = [leaf for leaf in leaves(dataset) if segmentation_base(type(leaf))]
    if not segmentation:
        return
    from ...segmentation import CheckedLoadAnnotations  # detection does without mmseg

    sources = []
    for leaf in segmentation:
        loads = [step for step in steps(leaf.pipeline) if isinstance(step, CheckedLoadAnnotations)]
        if loads and is_local(loads[0].backend_args):
            sources += [(leaf, loads[0], index) for index in range(len(leaf))]
    # Every beginning of a random order is spread over the whole: time may run out.
    chosen = Random(0).sample(sources, min(limit, len(sources)))
    end = time.monotonic() + seconds
    for count, (leaf, load, index) in enumerate(chosen, start=1):
        load(_with_image(leaf, index))
        if time.monotonic() > end or count == len(chosen):
            print_log(f'{count} of the {len(sources)} label maps of the {name} dataset are sound'
                      + ('' if count == len(sources) else '; the others are checked when they are '
                         'loaded'), logger='current')
            return


def _with_image(leaf: Any, index: int) -> dict[str, Any]:
    """What is known of a label map when it is loaded: how large its image is, if it can be told.

    Raises:
        UserError: If the image can't be read.
    """
    info = leaf.get_data_info(index)
    # A loader of another type may need what steps before it have done.
    for step in steps(leaf.pipeline):
        if type(step) is LoadImageFromFile:
            try:
                return step(info) or info
            except Exception as error:  # each decoder has errors of its own
                raise UserError(f'the image {info["img_path"]} can\'t be read '
                                f'({type(error).__name__}): fetch it again, or take it out of the '
                                'dataset') from error
    return info
