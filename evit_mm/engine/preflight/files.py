"""Folders, files and suffixes that a dataloader's config names, before it is built."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS, Registry

from ...data.label_map_files import visible_files
from ...errors import UserError
from ..config import leaf_datasets
from .categories import check_categories

__all__ = ['base_class', 'check_files', 'class_of', 'coco_classes', 'dataset_class', 'is_local',
           'is_remote', 'segmentation_base', 'unread_dataset']

_HOW_TO_GET_DATA = {
    'CocoDataset': 'get COCO 2017 from cocodataset.org (train2017.zip, val2017.zip and '
                   'annotations_trainval2017.zip, unpacked into one folder) and pass that folder '
                   'as --data-root',
    'ADE20KDataset': 'get ADEChallengeData2016.zip from the MIT scene parsing benchmark '
                     '(sceneparsing.csail.mit.edu) and pass the unpacked folder as --data-root',
}
_FALLBACK = 'pass the folder of the dataset as --data-root, or set data_root in the config'
_GENERATE = 'evit-mm data shapes generates a small dataset to experiment with'


def check_files(dataloader: Any, ignore_unknown_categories: bool = False, *,
                scope: str | None = None) -> None:
    """Check that the files which a dataloader's config names exist.

    Args:
        dataloader: The config of one dataloader.
        ignore_unknown_categories: As in `check_categories`.
        scope: The config's ``default_scope``, in which the types of its datasets are looked up.

    Raises:
        UserError: If a folder or file is missing or empty; the message says how to get the data.
        ConfigError: If the categories of a COCO file are not the config's classes.
    """
    for dataset in leaf_datasets(dataloader):
        if is_remote(dataset):
            continue  # mmengine's storage backend reports missing files
        kind = dataset_class(dataset, scope)
        name = kind.__name__ if kind else str(dataset.get('type'))
        fix = f'{_HOW_TO_GET_DATA.get(name, _FALLBACK)}; {_GENERATE}'
        root = Path(dataset.get('data_root') or '')
        if not root.is_dir():
            raise UserError(f'no such folder: {root.absolute()}, the root of the dataset; {fix}')
        segmentation = segmentation_base(kind)
        annotations = dataset.get('ann_file')
        # mmseg reads a folder as all of its images.
        if annotations and not (root / annotations).is_file() and not (
                segmentation and (root / annotations).is_dir()):
            raise UserError(f'no such file: {root / annotations}; {fix}')
        classes = coco_classes(dataset, scope) if annotations else None
        if classes:
            check_categories(root / annotations, classes, ignore_unknown_categories)
        for key, prefix in (dataset.get('data_prefix') or {}).items():
            if key == 'seg_map_path' and segmentation and not _loads_labels(dataset['pipeline']):
                continue  # a test set whose labels are not used
            folder = root / prefix if prefix else root
            if not folder.is_dir():
                raise UserError(f'no such folder: {folder}; {fix}')
            if not any(folder.iterdir()):
                raise UserError(f'the folder {folder} is empty; {fix}')
        if kind and segmentation:
            _check_images_found(kind, segmentation, dataset)


def is_local(backend_args: Mapping[str, Any] | None) -> bool:
    """Return whether mmengine's ``backend_args`` stand for local disks."""
    return (backend_args or {}).get('backend', 'local') in ('local', 'disk')


def segmentation_base(kind: type | None) -> Any:
    """Return the base class of MMSegmentation's datasets that a type has, if any.

    It does not import mmseg.
    """
    return base_class(kind, 'mmseg', 'BaseSegDataset') or base_class(kind, 'mmseg', 'BaseCDDataset')


def unread_dataset(kind: Any, dataset: Mapping[str, Any]) -> Any:
    """Return a dataset that has joined its paths but read no file; None if it can't be built.

    It has the defaults of its type. Building the real one will fail where this one does, and say
    why.

    Args:
        kind: A subclass of a base class of MMSegmentation's datasets.
        dataset: Its config.
    """
    config = deepcopy({key: value for key, value in dataset.items()
                       if key not in ('type', '_scope_')})
    config.update(pipeline=[], lazy_init=True, test_mode=False)
    try:
        return kind(**config)
    except Exception:
        return None


def _check_images_found(kind: type, base: Any, dataset: Mapping[str, Any]) -> None:
    """Check that a segmentation dataset has at least one image.

    Raises:
        UserError: If its list of images is empty, or no file has the suffix of its images.
    """
    if getattr(kind, 'load_data_list', None) is not base.load_data_list:
        return  # has its own way to list images
    unread = unread_dataset(kind, dataset)
    if unread is None:
        return
    if unread.ann_file and not os.path.isdir(unread.ann_file):
        if not any(line.strip() for line in Path(unread.ann_file).read_text().splitlines()):
            raise UserError(f'the list of images {unread.ann_file} is empty')
        return
    folder, suffix = unread.data_prefix.get('img_path') or '', unread.img_suffix
    others: Counter[str] = Counter()
    for file in visible_files(folder):
        if file.endswith(suffix):
            return
        others[os.path.splitext(file)[1]] += 1
    raise UserError(
        f'no file in {folder} ends in {suffix!r}, the suffix of {kind.__name__}\'s images'
        + (f': the {others.total()} files there end in '
           f'{", ".join(repr(other) for other, _ in others.most_common(3))}' if others else '')
        + '; set img_suffix of the dataset, or data_prefix.img_path')


def _loads_labels(pipeline: Any) -> bool:
    """Return whether any step of a pipeline's config loads annotations."""
    if isinstance(pipeline, Mapping):
        kind = pipeline.get('type')
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        return 'Annotation' in name or any(_loads_labels(value) for value in pipeline.values())
    return isinstance(pipeline, list | tuple) and any(_loads_labels(step) for step in pipeline)


def is_remote(dataset: Mapping[str, Any]) -> bool:
    """Return whether a dataset's config reads from storage other than local disks."""
    paths = [dataset.get('data_root'), dataset.get('ann_file'),
             *(dataset.get('data_prefix') or {}).values()]
    return not is_local(dataset.get('backend_args')) or any(
        '://' in str(path or '') for path in paths)


def dataset_class(dataset: Mapping[str, Any], scope: str | None) -> type | None:
    """Return the class of a dataset's config; None if there is none, as building it will say."""
    return class_of(dataset, scope, DATASETS)


def class_of(config: Mapping[str, Any], scope: str | None, registry: Registry) -> type | None:
    """Return the class of a config; None if there is none, as building it will say."""
    kind = config.get('type')
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(config.get('_scope_') or scope) as registry:
            try:
                kind = registry.get(kind)
            except RuntimeError:
                return None
    return kind if isinstance(kind, type) else None


def base_class(kind: type | None, package: str, name: str) -> Any:
    """Return a base class by its name, as mmdet or mmseg may not be installed."""
    bases = kind.__mro__ if kind else ()
    return next((base for base in bases if base.__name__ == name
                 and base.__module__.partition('.')[0] == package), None)


def coco_classes(dataset: Mapping[str, Any], scope: str | None) -> Sequence[str] | None:
    """Return the classes of a dataset whose type reads a file as MMDetection's CocoDataset does.

    Args:
        dataset: A dataset's config.
        scope: The config's ``default_scope``.

    Returns:
        The classes; None for another type, and where neither the type nor the config names any.
    """
    kind: Any = dataset_class(dataset, scope)
    base = base_class(kind, 'mmdet', 'CocoDataset')
    if base is None or kind.load_data_list is not base.load_data_list \
            or kind.COCOAPI is not base.COCOAPI:  # panoptic files are other
        return None
    # Accepts all forms that a config may use: a list, one name, a file of names.
    metainfo = kind._load_metainfo(deepcopy(dict(dataset.get('metainfo') or {})))
    return metainfo.get('classes')
