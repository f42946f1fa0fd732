"""Built datasets: their files exist, and the model has as many classes as they do."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ...errors import ConfigError, UserError
from .files import is_local, segmentation_base

__all__ = ['built_dataset', 'check_classes', 'leaves', 'steps']

_CLASS_AGNOSTIC = ('rpn_head', 'semantic_head')


def built_dataset(build: Callable[[], Any], name: str) -> Any:
    """Build a dataset, and check that it has images and that all its files exist.

    Args:
        build: Returns a dataset of mmengine.
        name: ``'train'``, ``'val'`` or ``'test'``, for the message.

    Raises:
        UserError: If it can't be read, has no images, or a file is missing.
    """
    try:
        dataset = build()
    except UserError:
        raise
    except (KeyError, ValueError, TypeError, AssertionError, IndexError, OSError) as error:
        if 'at least one array to concatenate' not in str(error):  # an empty list of images
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f'the {name} dataset can\'t be read: {type(error).__name__}: {reason}'
                            ) from error
        dataset = []
    if len(dataset) == 0:
        raise UserError(f'the {name} dataset has no usable images: its annotation file '
                        'or list of images is empty, or no image has an object of the config\'s '
                        'classes')
    _check_listed_files(dataset, name)
    return dataset


def check_classes(model: nn.Module, dataset: Any, name: str) -> None:
    """Check that the heads predict as many classes as the dataset has.

    Args:
        model: A detector or segmentor.
        dataset: A built dataset.
        name: ``'train'``, ``'val'`` or ``'test'``, for the message.

    Raises:
        ConfigError: If a head has another number of classes.
    """
    metainfo = getattr(dataset, 'metainfo', {})
    classes = metainfo.get('classes')
    if classes is None or 'thing_classes' in metainfo:
        return  # panoptic heads count things and stuff separately
    for path, module in model.named_modules():
        count = getattr(module, 'num_classes', None)
        is_head = 'head' in path and not any(name in path for name in _CLASS_AGNOSTIC)
        if is_head and isinstance(count, int) and count != len(classes):
            raise ConfigError(f'{path} predicts {count} classes, but the {name} dataset has '
                              f'{len(classes)}: set model.{path}.num_classes={len(classes)}')


def leaves(dataset: Any) -> Iterator[Any]:
    """Yield the datasets that read local files, inside all wrappers."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if any(part is not None for part in inner):
        for part in inner:
            yield from leaves(part)
    elif hasattr(dataset, 'get_data_info') and is_local(getattr(dataset, 'backend_args', None)):
        yield dataset


def steps(pipeline: Any) -> Iterator[Any]:
    """Yield the transforms of a built pipeline, each before those inside it."""
    if isinstance(pipeline, list | tuple):
        for step in pipeline:
            yield from steps(step)
    elif callable(pipeline):
        yield pipeline
        for name in ('transforms', 'subroutines'):  # of Compose and the like; of TestTimeAug
            yield from steps(getattr(pipeline, name, None))


def _check_listed_files(dataset: Any, name: str) -> None:
    exists = _FileExistence()
    images: list[str] = []
    maps: list[tuple[str, str]] = []
    total = labelled = 0
    for leaf in leaves(dataset):
        # Only a segmentation dataset whose pipeline loads labels must have them.
        needs_maps = segmentation_base(type(leaf)) and any(
            'Annotation' in type(step).__name__ for step in steps(leaf.pipeline))
        for index in range(len(leaf)):
            info = leaf.get_data_info(index)
            image, label_map = info.get('img_path'), info.get('seg_map_path')
            if image and '://' not in image:
                total += 1
                if not exists(image):
                    images.append(image)
            if needs_maps and label_map and '://' not in label_map:
                labelled += 1
                if not exists(label_map):
                    maps.append((label_map, image))
    if images:
        raise UserError(f'{len(images)} of the {total} images of the {name} dataset are missing '
                        f'or empty, the first is {images[0]}: fetch them, or remove them from '
                        'the annotation file or list of images')
    if maps:
        label_map, image = maps[0]
        raise UserError(f'{len(maps)} of the {labelled} label maps of the {name} dataset are '
                        f'missing or empty, the first is {label_map} of the image {image}: fetch '
                        'them, remove their images from the dataset, or correct its '
                        'data_prefix.seg_map_path and seg_map_suffix')


class _FileExistence:
    """Test whether a file exists and is not empty, which lists each folder once."""

    def __init__(self) -> None:
        self.sizes: dict[str, dict[str, int]] = {}

    def __call__(self, path: str) -> bool:
        folder, file = os.path.split(path)
        if folder not in self.sizes:  # one listing is faster than a stat of every file
            self.sizes[folder] = {entry.name: entry.stat().st_size for entry in os.scandir(folder)
                                  if entry.is_file()} if os.path.isdir(folder) else {}
        return bool(self.sizes[folder].get(file))
