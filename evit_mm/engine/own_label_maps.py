"""Segmentors on one's own data: a config's classes, folders and heads from label maps.

`use_label_maps` changes a config so that it trains and evaluates on images and label maps in any
folders, which are read where they are. Lists of the images of a split, where some of a folder are
held out, go to ``label_maps/`` in the work dir.
"""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from mmengine.config import Config
from mmengine.logging import print_log

from evit_runtime.class_names import class_colours

from ..data.check import MasksCheck, Severity, check_masks
from ..data.check.findings import shorten
from ..data.label_map_files import (
    LABEL_MAP_SUFFIXES,
    label_map_ending,
    pair_files,
    visible_files,
)
from ..errors import ConfigError, UserError
from ..files import read_lines, write_atomically
from .config import adapted_folder, leaf_datasets

__all__ = ['OwnLabelMaps', 'set_class_count', 'use_label_maps']

_SHARE_HELD_OUT = 0.2
_SUBFOLDERS = {'train': ('train', 'training'), 'val': ('val', 'validation', 'valid')}
_IMAGE_FOLDERS = ('images', 'image', 'imgs', 'img', 'JPEGImages', 'photos')
_READ_WITH_NAMES = 2000  # label maps, where classes are named; the numbers of classes need all
_MAX_CLASSES = 254
_SHOWN = 20
_IN_MESSAGES = 'your label maps'
# With their modules, as a config may not import them.
_DATASET = 'evit_mm.segmentation.dataset.LabelMapDataset'
_METRIC = 'evit_mm.segmentation.metric.UnroundedIoUMetric'
_KEPT_KEYS = ('pipeline', 'test_mode', 'backend_args', 'serialize_data', '_scope_')

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class OwnLabelMaps:
    """Where the label maps of a user are, and what their numbers mean.

    Attributes:
        masks: Folder of the label maps, or of those for training and validation in subfolders
            train/ or training/, and val/, valid/ or validation/.
        val_masks: Folder of the label maps for validation, if it is another one.
        images: Folder of the images; by default, one called images/ or the like next to ``masks``.
        val_images: Folder of the images of ``val_masks``, if it is another one.
        classes: File of the classes' names in the order of their numbers: one per line, or a list
            in JSON or YAML. By default, classes are numbered.
        zero_is_unlabelled: Whether 0 means unlabelled and 1 is the first class.
        mask_values: The number of each class, where it is another than 0, 1, 2 and so on.
    """

    masks: _Path | None = None
    val_masks: _Path | None = None
    images: _Path | None = None
    val_images: _Path | None = None
    classes: _Path | None = None
    zero_is_unlabelled: bool = False
    mask_values: Sequence[int] | None = None

    def __bool__(self) -> bool:
        return self.masks is not None or self.val_masks is not None

    def check_flags(self) -> None:
        """Check that no flag about label maps is left without them.

        Raises:
            UserError: If one is; it would have no effect.
        """
        flags = {'--classes': self.classes, '--zero-is-unlabelled': self.zero_is_unlabelled,
                 '--mask-values': self.mask_values}
        useless = [flag for flag, value in flags.items() if value]
        if useless and not self:
            raise UserError(f'{useless[0]} is about the label maps of --masks, which is missing')


@dataclass
class _Split:
    """The images and label maps of one split.

    Attributes:
        name: ``'train'`` or ``'val'``.
        images: Folder of the images.
        masks: Folder of the label maps.
        suffix: Ending of the label maps' names; None for any suffix of an image.
        pairs: Paths of images and label maps.
        names: The images to read, relative to their folder; None for all.
    """

    name: str
    images: Path
    masks: Path
    suffix: str | None
    pairs: list[tuple[str, str]]
    names: list[str] | None = None


@dataclass(frozen=True)
class _Numbering:
    """What the numbers in the label maps mean.

    Attributes:
        classes: Names of the classes.
        values: The number of each class; None for 0, 1, 2 and so on.
    """

    classes: list[str]
    values: list[int] | None = None


def use_label_maps(config: Config, own: OwnLabelMaps, *, training: bool,
                   classes: Sequence[str] | None = None) -> int:
    """Let a segmentor's config read a user's label maps.

    Its datasets, heads and evaluators are changed, for training, validation and testing. What was
    adapted is logged, one line each.

    Args:
        config: A whole config with an absolute ``work_dir``; changed in place.
        own: Where the label maps are.
        training: Whether the run trains; a test needs label maps for validation only.
        classes: The classes that the model knows already, in order.

    Returns:
        The number of training images; 0 for a test.

    Raises:
        UserError: If files are missing or have no partner, or a label map is wrong.
        ConfigError: If the config is not that of a segmentor with one dataset in each split.
    """
    _check_config(config, training)
    names = _read_names(Path(own.classes).expanduser()) if own.classes is not None else \
        list(classes) if classes else None
    if names is None and not training:
        raise UserError('--classes is missing: a test needs the names of the classes that the '
                        'model was trained on, in the same order')
    splits = _find_splits(own, training)
    if training and 'val' not in splits:
        splits['val'] = _hold_out(splits['train'])
    numbering = _numbering(own, splits, names)
    count = len(numbering.classes)
    if count < 2:
        raise UserError(f'{_IN_MESSAGES} have {count} classes'
                        + (f' ({numbering.classes[0]})' if count else '')
                        + ': a model learns to tell classes apart, so that the background needs a '
                        'number and a name of its own')
    _log(f'{count} classes: {", ".join(numbering.classes[:_SHOWN])}'
         + (' ...' if count > _SHOWN else '')
         + (f', in the files {", ".join(map(str, numbering.values))}' if numbering.values else '')
         + ('; 0 means unlabelled' if own.zero_is_unlabelled else ''))
    for split in splits.values():
        _log(f'{split.name}: {len(split.pairs)} images in {split.images}, label maps in '
             f'{split.masks}')
    _set_datasets(config, splits, numbering, own.zero_is_unlabelled, training)
    _log(f'num_classes={count} in {", ".join(set_class_count(config, count))}')
    _set_evaluators(config)
    return len(splits['train'].pairs) if training else 0


# --- the config -------------------------------------------------------------------------------


def _check_config(config: Config, training: bool) -> None:
    """Check that label maps fit a config.

    Raises:
        ConfigError: If not.
    """
    name = Path(config.filename).stem if config.filename else 'the config'
    if not any(True for _ in _heads(config)):
        raise ConfigError(f'{name} is not a segmentor: --masks names label maps, which a segmentor '
                          'learns from; a detector learns from boxes (--train-ann)')
    for split in ('train', 'val', 'test') if training else ('test',):
        count = len(list(leaf_datasets(config.get(f'{split}_dataloader') or {})))
        if count != 1 and config.get(f'{split}_dataloader'):
            raise ConfigError(f'{name} has {count} datasets in {split}_dataloader, and your label '
                              'maps can replace one: choose a config with one dataset')


def _heads(config: Config) -> Iterator[tuple[str, MutableMapping[str, Any]]]:
    """Yield the configs of a segmentor's heads, with their paths."""
    model, path = config.model, 'model'
    while 'module' in model:  # of test-time augmentation
        model, path = model['module'], f'{path}.module'
    for key in ('decode_head', 'auxiliary_head'):
        head = model.get(key)
        for i, part in enumerate(head if isinstance(head, list | tuple) else [head]):
            if part:
                yield f'{path}.{key}' + (f'.{i}' if isinstance(head, list | tuple) else ''), part


def set_class_count(config: Config, count: int) -> list[str]:
    """Set the number of classes in all heads, and return the paths of these."""
    paths = []
    for path, head in _heads(config):
        _set_count(head, count)
        paths.append(path)
    return paths


def _set_count(part: Any, count: int) -> None:
    """Set the number of classes in a head and in what is inside it."""
    if isinstance(part, MutableMapping):
        old = part.get('num_classes')
        if isinstance(old, int):
            part['num_classes'] = count
            if part.get('out_channels') == old or count != 2 and part.get('out_channels') == 1:
                part['out_channels'] = count
            _set_class_weights(part, old, count)
        for value in part.values():
            _set_count(value, count)
    elif isinstance(part, list | tuple):
        for value in part:
            _set_count(value, count)


def _set_class_weights(head: Any, old: int, count: int) -> None:
    """Fit the weights of classes in a head's losses to another number of classes."""
    for key, loss in head.items():
        if not key.startswith('loss'):
            continue
        for part in loss if isinstance(loss, list | tuple) else [loss]:
            weights = part.get('class_weight') if isinstance(part, Mapping) else None
            if isinstance(weights, list | tuple) and len(weights) == old + 1:
                # That of no object comes last, in heads that predict masks.
                part['class_weight'] = [1.0] * count + [weights[-1]]
            elif isinstance(weights, list | tuple):
                del part['class_weight']
                _log(f'the weights of {old} classes in {key} are left out', logging.WARNING)


def _set_datasets(config: Config, splits: Mapping[str, _Split], numbering: _Numbering,
                  zero_is_unlabelled: bool, training: bool) -> None:
    """Put the label maps in the place of a config's datasets."""
    metainfo = dict(classes=tuple(numbering.classes), palette=class_colours(len(numbering.classes)))
    folder = adapted_folder(config, 'label_maps', training=training)
    for name, split in splits.items():
        new: dict[str, Any] = dict(
            type=_DATASET, metainfo=metainfo, reduce_zero_label=zero_is_unlabelled,
            data_prefix=dict(img_path=str(split.images), seg_map_path=str(split.masks)))
        if numbering.values:
            new['mask_values'] = numbering.values
        if split.suffix:
            new['seg_map_suffix'] = split.suffix
        if split.names is not None:
            new['ann_file'] = str(_write_list(folder / f'{name}.txt', split.names))
        for key in (name,) if name == 'train' else ('val', 'test') if training else ('test',):
            for dataset in leaf_datasets(config.get(f'{key}_dataloader') or {}):
                for old in [old for old in dataset if old not in _KEPT_KEYS]:
                    del dataset[old]
                dataset.update(new)
                _follow_dataset(dataset['pipeline'])
    _follow_dataset(config.get('tta_pipeline'))


def _follow_dataset(pipeline: Any) -> None:
    """Let the loaders of label maps in a pipeline take ``reduce_zero_label`` of their dataset."""
    if isinstance(pipeline, MutableMapping):
        if 'LoadAnnotations' in str(pipeline.get('type')):
            pipeline.pop('reduce_zero_label', None)
        for value in pipeline.values():
            _follow_dataset(value)
    elif isinstance(pipeline, list | tuple):
        for value in pipeline:
            _follow_dataset(value)


def _set_evaluators(config: Config) -> None:
    """Replace the evaluators that need files of a dataset of their own."""
    for key in ('val_evaluator', 'test_evaluator'):
        evaluators = config.get(key)
        several = isinstance(evaluators, list | tuple)
        kinds = [str(evaluator.get('type')) for evaluator in
                 (evaluators if several else [evaluators]) if evaluator]
        if kinds and not all('IoUMetric' in kind for kind in kinds):
            config[key] = dict(type=_METRIC)
            _log(f'{key}: UnroundedIoUMetric instead of {", ".join(kinds)}')


# --- the files --------------------------------------------------------------------------------


def _find_splits(own: OwnLabelMaps, training: bool) -> dict[str, _Split]:
    """Find the images and label maps of each split.

    Raises:
        UserError: If there are none.
    """
    if training and own.masks is None:
        raise UserError('--masks is missing: it names the folder of the label maps to train on')
    masks = _folder(own.masks, '--masks') if own.masks is not None else None
    images = _folder(own.images, '--images') if own.images is not None else None
    beside = images or (_images_beside(masks) if masks is not None else None)
    folders: dict[str, tuple[Path, Path | None]] = {}
    if own.val_masks is not None:
        val_masks = _folder(own.val_masks, '--val-masks')
        folders['val'] = val_masks, _subfolder(images, 'val') or images \
            or _images_beside(val_masks) or beside
    elif masks is not None and (found := _subfolder(masks, 'val')):
        folders['val'] = found, _subfolder(beside, 'val') or beside
    elif masks is not None and not training:
        folders['val'] = masks, beside
    if 'val' in folders and own.val_images is not None:
        folders['val'] = folders['val'][0], _folder(own.val_images, '--val-images')
    if training and masks is not None:
        found = _subfolder(masks, 'train')
        if found is None and 'val' in folders and folders['val'][0].parent == masks:
            raise UserError(f'{masks} has the folder {folders["val"][0].name}/ but none called '
                            'train/ or training/: name the folders by --masks and --val-masks')
        folders['train'] = found or masks, _subfolder(beside, 'train') or beside
    if own.val_images is not None and 'val' not in folders:
        raise UserError('--val-images names the images of --val-masks, which is missing')
    for name, (label_maps, pictures) in folders.items():
        if pictures is None:
            flag = '--images' if name == 'train' or own.masks is not None else '--val-images'
            raise UserError(f'no folder of images next to {label_maps}: name it by {flag}')
    shared = len({pictures for _, pictures in folders.values()}) < len(folders)
    return {name: _split(name, label_maps, pictures, shared)
            for name, (label_maps, pictures) in sorted(folders.items()) if pictures is not None}


def _split(name: str, masks: Path, images: Path, shared: bool) -> _Split:
    """Pair the images of a split with their label maps.

    Args:
        name: The split.
        masks: Folder of its label maps.
        images: Folder of its images.
        shared: Whether the folder has the images of other splits, too.
    """
    ending = label_map_ending(str(images), str(masks))
    suffix = ending if ending and ending.lower() not in LABEL_MAP_SUFFIXES else None
    names = [file[:-len(suffix)] if suffix else os.path.splitext(file)[0] for file in sorted(
        visible_files(str(masks), LABEL_MAP_SUFFIXES))] if shared else None
    pairs = pair_files(str(images), str(masks), names=names,
                       label_map_suffixes=(suffix,) if suffix else LABEL_MAP_SUFFIXES)
    if not pairs:
        raise UserError(f'no label maps in {masks}: no file there ends in '
                        f'{", ".join(LABEL_MAP_SUFFIXES)}')
    if suffix:
        _log(f'{name}: the names of the label maps end in {suffix}')
    split = _Split(name, images, masks, suffix,
                   [(image, mask) for image, mask in pairs if mask is not None])
    if shared:
        split.names = _relative_names(split)
    return split


def _hold_out(train: _Split) -> _Split:
    """Take a fifth of the images out of a split, always the same, and return them as another.

    Raises:
        UserError: If there is a single image.
    """
    if len(train.pairs) < 2:
        raise UserError(f'{train.images} has one image: add some, as a fifth of the images is held '
                        'out for validation, or name others by --val-masks')
    by_hash = sorted(train.pairs, key=lambda pair: hashlib.sha1(
        os.path.relpath(pair[0], train.images).encode()).digest())
    held_out = set(by_hash[:max(1, round(_SHARE_HELD_OUT * len(by_hash)))])
    val = _Split('val', train.images, train.masks, train.suffix, sorted(held_out))
    train.pairs = [pair for pair in train.pairs if pair not in held_out]
    val.names, train.names = _relative_names(val), _relative_names(train)
    _log(f'{len(val.pairs)} of the {len(by_hash)} images are held out for validation')
    return val


def _relative_names(split: _Split) -> list[str]:
    return [Path(os.path.relpath(image, split.images)).as_posix() for image, _ in split.pairs]


def _write_list(path: Path, names: Sequence[str]) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'can\'t write {path.parent}: {error.strerror or error}') from error
    with write_atomically(path) as file:
        file.write('\n'.join(names) + '\n')
    return path


def _folder(path: _Path, flag: str) -> Path:
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f'no such folder: {path}; {flag} names a folder')
    return folder


def _subfolder(folder: Path | None, split: str) -> Path | None:
    """Return the subfolder of a split, if there is one."""
    return next((folder / name for name in _SUBFOLDERS[split] if (folder / name).is_dir()), None) \
        if folder else None


def _images_beside(masks: Path) -> Path | None:
    """Return the folder of images next to a folder of label maps, if there is one."""
    return next((masks.parent / name for name in _IMAGE_FOLDERS
                 if (masks.parent / name).is_dir() and masks.parent / name != masks), None)


# --- the classes ------------------------------------------------------------------------------


def _read_names(path: Path) -> list[str]:
    """Read the names of the classes.

    Raises:
        UserError: If there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UserError(f'no such file: {path}; --classes names a file with the name of a class on '
                        'each line, in the order of their numbers')
    if path.suffix.lower() not in ('.json', '.yaml', '.yml'):
        names: Any = read_lines(path)
    else:
        try:
            names = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f'{path} can\'t be read as a list of classes: '
                            f'{" ".join(str(error).split())}') from error
        if isinstance(names, dict):
            names = names.get('names', names.get('classes', names))
        if isinstance(names, dict) and sorted(names) == list(range(len(names))):
            names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(
            isinstance(name, str | int) for name in names):
        raise UserError(f'{path} is not a list of classes: it must have one name per line, or a '
                        'list of names in JSON or YAML')
    names = [str(name) for name in names]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f'{path} has {twice[0]!r} twice: each class needs a name of its own')
    return names


def _numbering(own: OwnLabelMaps, splits: Mapping[str, _Split], names: list[str] | None
               ) -> _Numbering:
    """Find out what the numbers in the label maps mean.

    Raises:
        UserError: If a label map is wrong, or its numbers don't fit the names.
    """
    pairs = [pair for split in splits.values() for pair in split.pairs]
    if names is not None or own.mask_values is not None:
        pairs = pairs[::-(-len(pairs) // _READ_WITH_NAMES)]
    check = check_masks([mask for _, mask in pairs], title=_IN_MESSAGES,
                        images={mask: image for image, mask in pairs},
                        progress=sys.stderr.isatty())
    _raise_faults(check)
    present = [int(number) for number in np.flatnonzero(check.values[:255])]
    if own.mask_values is not None:
        return _explicit_numbering(own, names, check)
    if present == [0] and check.values[255] and not own.zero_is_unlabelled and (
            names is None or len(names) == 2):
        # Whoever ignores 255 here has nothing to learn.
        return _Numbering(names or ['class_0', 'class_255'], [0, 255])
    first = int(own.zero_is_unlabelled)
    used = [number for number in present if number >= first]
    shown = shorten(present, 8)
    if names is None:
        highest = max(used, default=0)
        if highest - first + 1 > max(10, 2 * len(used)):
            raise UserError(f'{_IN_MESSAGES} have the numbers {shown}, with large gaps: if these '
                            'are the classes in this order, pass --mask-values '
                            f'{",".join(map(str, used))}; otherwise, name all classes by --classes')
        return _Numbering([f'class_{number}' for number in range(first, highest + 1)])
    if len(names) > _MAX_CLASSES:
        raise UserError(f'{own.classes} has {len(names)} classes, and label maps of 8 bits can '
                        f'hold {_MAX_CLASSES}')
    beyond = [number for number in used if number >= first + len(names)]
    if beyond:
        if not first and beyond == [len(names)]:
            fix = f'if 0 means unlabelled, pass --zero-is-unlabelled; else name {len(names) + 1} ' \
                  'classes'
        else:
            fix = 'name all classes, or pass --mask-values with the number of each'
        raise UserError(f'{_IN_MESSAGES} have the numbers {shown}, but there are {len(names)} '
                        f'classes, {first} to {first + len(names) - 1}: {fix}')
    return _Numbering(names)


def _explicit_numbering(own: OwnLabelMaps, names: list[str] | None, check: MasksCheck
                        ) -> _Numbering:
    values = list(own.mask_values or ())
    if own.zero_is_unlabelled:
        raise UserError('--mask-values and --zero-is-unlabelled are two ways to number classes: '
                        'leave 0 out of --mask-values')
    if not values or len(set(values)) != len(values) or not all(0 <= n <= 255 for n in values):
        raise UserError(f'--mask-values {",".join(map(str, values))}: give each class another '
                        'number from 0 to 255')
    if names is not None and len(names) != len(values):
        raise UserError(f'--mask-values has {len(values)} numbers, and --classes {len(names)} '
                        'names: give one number for each class')
    other = [int(n) for n in np.flatnonzero(check.values) if n not in (*values, 255)]
    if other:
        raise UserError(f'{_IN_MESSAGES} have numbers that --mask-values does not name: '
                        f'{shorten(other, 8)}; add them, or correct the files')
    return _Numbering(names or [f'class_{value}' for value in values], values)


def _raise_faults(check: MasksCheck) -> None:
    """Raise what is wrong with files; what their numbers mean is not known yet.

    Raises:
        UserError: If a file is wrong.
    """
    for finding in check.findings.of(Severity.ERROR):
        if finding.kind in ('unusable', 'image', 'size', 'orientation'):
            more = f' ({finding.count - 1} more such files)' if finding.count > 1 else ''
            raise UserError(finding.message + more)


def _log(text: str, level: int = logging.INFO) -> None:
    print_log(f'your data: {text}', logger='current', level=level)
