"""A dataset of label maps with classes of one's own, in any folders."""

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from ..data.check.masks import labels_of_values
from ..data.label_map_files import IMAGE_SUFFIXES, LABEL_MAP_SUFFIXES, pair_files
from ..errors import ConfigError, UserError
from ..files import read_lines

__all__ = ['LabelMapDataset']


@DATASETS.register_module()
class LabelMapDataset(BaseSegDataset):
    """Images and label maps of the same names, whose numbers are the classes in their order.

    Unlike datasets with names of their own, such as ADE20KDataset, this one never renumbers label
    maps by the names of classes. Images may have any common suffix, in any case, several of them in
    one folder, and so may label maps.

    Args:
        mask_values: The number in the files of each class, where it isn't 0, 1, 2 and so on.
            (0, 255) is for masks in black and white. All other numbers are errors, except 255,
            which is ignored unless it is a class.
        img_suffix: Suffixes of the images; None takes those of `IMAGE_SUFFIXES`.
        seg_map_suffix: Suffixes of the label maps, such as ``'_mask.png'``; None takes those of
            `LABEL_MAP_SUFFIXES`.
        metainfo: ``classes``, a tuple of names or a file of one name per line, and ``palette``,
            which may be missing. In their place, ``classes_of=dict(type='ADE20KDataset')`` takes
            classes, palette and ``reduce_zero_label`` of another type.
        ann_file: File with one image per line, with or without suffix, relative to the folder of
            the images; all images of the folder by default.
        reduce_zero_label: Whether 0 in the files means unlabelled, and 1 is the first class; None
            means no, unless ``classes_of`` says so.
        lazy_init: Whether to list the files later.
        **kwargs: Arguments of BaseSegDataset.

    Raises:
        ConfigError: If there are no classes, or the arguments contradict each other.
        UserError: If an image has no label map, a label map no image, or names are not unique.
    """

    def __init__(self, *, mask_values: Sequence[int] | None = None,
                 img_suffix: str | Sequence[str] | None = None,
                 seg_map_suffix: str | Sequence[str] | None = None,
                 metainfo: Mapping[str, Any] | None = None, ann_file: str = '',
                 reduce_zero_label: bool | None = None, lazy_init: bool = False,
                 **kwargs: Any) -> None:
        metainfo = dict(metainfo or {})
        # In metainfo, because other dataset types accept anything there when they take this one's
        # place in a config.
        source = metainfo.pop('classes_of', None)
        if source and not metainfo.get('classes'):
            kind = DATASETS.get(source['type'])
            metainfo = {**kind.METAINFO, **metainfo}
            if reduce_zero_label is None:
                default = inspect.signature(kind).parameters.get('reduce_zero_label')
                reduce_zero_label = default is not None and default.default
        metainfo['classes'] = _class_names(metainfo)
        super().__init__(metainfo=metainfo, ann_file=ann_file, lazy_init=True,
                         reduce_zero_label=bool(reduce_zero_label), **kwargs)
        self.img_suffixes = _as_suffixes(img_suffix, IMAGE_SUFFIXES)
        self.seg_map_suffixes = _as_suffixes(seg_map_suffix, LABEL_MAP_SUFFIXES)
        if mask_values is not None:
            _check_values(mask_values, self._metainfo['classes'], self.reduce_zero_label)
            table = labels_of_values(mask_values)
            self.label_map = {value: int(label) for value, label in enumerate(table)}
            self._metainfo['label_map'] = self.label_map
        if not lazy_init:
            self.full_init()

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return the images with their label maps.

        Raises:
            UserError: As in the class.
        """
        images = self.data_prefix.get('img_path') or ''
        label_maps = self.data_prefix.get('seg_map_path') if _loads_labels(self.pipeline) else None
        for folder in (images, label_maps):
            if folder is not None and not os.path.isdir(folder):
                raise UserError(f'no such folder: {folder}')
        names = None
        if self.ann_file and not os.path.isdir(self.ann_file):
            names = read_lines(Path(self.ann_file))
            if not names:
                raise UserError(f'the list of images {self.ann_file} is empty')
        pairs = pair_files(images, label_maps, image_suffixes=self.img_suffixes,
                           label_map_suffixes=self.seg_map_suffixes, names=names)
        print_log(f'{len(pairs)} images in {images}', logger='current', level=logging.DEBUG)
        common = dict(label_map=self.label_map, reduce_zero_label=self.reduce_zero_label)
        return [dict(img_path=image, seg_fields=[], **common,
                     **({} if label_map is None else dict(seg_map_path=label_map)))
                for image, label_map in pairs]


def _class_names(metainfo: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes, after checking that each has a name and a colour of its own.

    Raises:
        ConfigError: If not.
    """
    classes, palette = metainfo.get('classes'), metainfo.get('palette')
    if not classes:
        raise ConfigError('LabelMapDataset has no classes: set metainfo=dict(classes=(...)) in the '
                          'dataset, in the order of their numbers in the label maps')
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise ConfigError(f'no such file: {classes}, which metainfo.classes of the dataset '
                              'names; a single class is a tuple: (\'name\',)')
        classes = read_lines(Path(classes))
    twice = [name for name in classes if list(classes).count(name) > 1]
    if twice:
        raise ConfigError(f'metainfo.classes of the dataset has {twice[0]!r} twice: each class '
                          'needs a name of its own')
    if palette is not None and len(palette) not in (0, len(classes)):
        raise ConfigError(f'metainfo of the dataset has {len(classes)} classes but a palette of '
                          f'{len(palette)} colours: give one colour for each class, or none')
    return tuple(classes)


def _check_values(values: Sequence[int], classes: Sequence[str], reduce_zero_label: bool) -> None:
    """Check that each class has a number of its own in the files.

    Raises:
        ConfigError: If not.
    """
    if reduce_zero_label:
        raise ConfigError('mask_values and reduce_zero_label=True of the dataset are two ways to '
                          'number classes: leave 0 out of mask_values, or remove one of the two')
    if len(values) != len(classes) or len(set(values)) != len(values) or not all(
            isinstance(value, int) and 0 <= value <= 255 for value in values):
        raise ConfigError(f'mask_values={tuple(values)} of the dataset must be {len(classes)} '
                          f'different numbers from 0 to 255, one for each of its classes')


def _as_suffixes(suffix: str | Sequence[str] | None, default: Sequence[str]) -> Sequence[str]:
    return default if suffix is None else (suffix,) if isinstance(suffix, str) else tuple(suffix)


def _loads_labels(step: Any) -> bool:
    """Return whether a built transform, or one inside it, loads label maps."""
    inner = step if isinstance(step, list | tuple) else [
        *(getattr(step, 'transforms', None) or ()), *(getattr(step, 'subroutines', None) or ())]
    return 'Annotation' in type(step).__name__ or any(map(_loads_labels, inner))
