"""Detectors on one's own data: a config's classes, folders and evaluators from annotation files.

`use_own_data` changes a config so that it trains and evaluates on COCO annotation files, or a
dataset in YOLO's layout, in any folder. Files that fit are read where they are; where something has
to change, such as the order of the categories, a copy goes to ``annotations/`` in the work dir.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from evit_runtime.class_names import class_colours

from ..data.check import CocoCheck, Severity, check_coco, read_coco, read_headers
from ..data.check.findings import shorten
from ..data.convert import read_yolo
from ..data.image_folder import base_name, find_image_folder
from ..errors import ConfigError, UserError
from ..files import write_json
from . import preflight
from .config import adapted_folder, leaf_datasets

__all__ = ['OwnData', 'set_class_count', 'use_own_data']

_SHARE_HELD_OUT = 0.2
_QUICK_SECONDS = 10.0  # for reading image headers before a run
_CLASS_AGNOSTIC = ('rpn_head', 'semantic_head')
_KEPT_KEYS = ('pipeline', 'filter_cfg', 'test_mode', 'backend_args')

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class OwnData:
    """Where the data of a user are; what is None follows from the rest.

    Attributes:
        train_ann: COCO annotation file for training.
        val_ann: COCO annotation file for validation and testing.
        images: Folder of the images.
        val_images: Folder of the images of ``val_ann``, if it is another one.
        data: The data.yaml of a dataset in YOLO's layout, instead of all others.
    """

    train_ann: _Path | None = None
    val_ann: _Path | None = None
    images: _Path | None = None
    val_images: _Path | None = None
    data: _Path | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in vars(self).values())


@dataclass
class _Split:
    """The annotations of one split while they are adapted.

    Attributes:
        name: ``'train'`` or ``'val'``.
        content: Content of the annotation file, without faults.
        images: Folder that its file names start from.
        path: The file to read; None if the content has changed, until it is written.
    """

    name: str
    content: dict[str, Any]
    images: Path
    path: Path | None

    def used_categories(self) -> set[Any]:
        return {entry['category_id'] for entry in self.content['annotations']}


def use_own_data(config: Config, own: OwnData, *, training: bool,
                 classes: Sequence[str] | None = None, skip_invalid: bool = False) -> int:
    """Let a detector's config read a user's data.

    Its datasets, evaluators and heads are changed, for training, validation and testing. What was
    adapted is logged, one line each.

    Args:
        config: A whole config with an absolute ``work_dir``; changed in place.
        own: Where the data are.
        training: Whether the run trains; a test needs validation data only.
        classes: The classes that the model knows already, in order; None takes those of the data.
        skip_invalid: Go on without the objects that can't be used.

    Returns:
        The number of training images with objects; 0 for a test.

    Raises:
        UserError: If a file or an image folder is missing, or the annotations have a fault that
            needs a decision.
        ConfigError: If the config is not that of a detector with one dataset in each split.
    """
    _check_config(config, training)
    _check_flags(own, training)
    folder = adapted_folder(config, 'annotations', training=training)
    if own.data is not None:
        splits = _read_yolo(Path(own.data).expanduser(), training, folder)
    else:
        splits = _read_files(own, training)
    needs_masks = preflight.needs_masks(config)
    splits = {name: _checked(split, needs_masks, skip_invalid) for name, split in splits.items()}
    if training and 'val' not in splits and config.get('val_dataloader'):
        splits['val'] = _hold_out(splits['train'])
    _leave_out_groups(list(splits.values()))
    if classes is None:
        classes = _classes(splits['train' if training else 'val'])
        _log(f'classes: {len(classes)}, {", ".join(classes[:20])}'
             f'{" ..." if len(classes) > 20 else ""}')
    for split in splits.values():
        _order_categories(split, classes)
        if split.path is None:
            split.path = _write(split, folder)
        images = len(split.content['images'])
        _log(f'{split.name}: {images} images in {split.images}, annotations in {split.path}')
    _set_datasets(config, splits, classes, training)
    heads = set_class_count(config.model, len(classes))
    _log(f'num_classes={len(classes)} in {", ".join(heads)}')
    if 'train' not in splits:
        return 0
    return len({entry['image_id'] for entry in splits['train'].content['annotations']
                if not entry.get('iscrowd')})


# --- what the user asked for ------------------------------------------------------------------


def _check_config(config: Config, training: bool) -> None:
    name = Path(config.filename).stem if config.filename else 'the config'
    if config.get('default_scope') == 'mmseg' or not any(_heads(config.model)):
        raise ConfigError(f'{name} is not a detector with classes: COCO annotation files and '
                          'data.yaml are for detectors; a segmentor learns from label maps')
    for split in ('train', 'val', 'test'):
        datasets = list(leaf_datasets(config.get(f'{split}_dataloader') or {}))
        if any('Panoptic' in str(dataset.get('type')) for dataset in datasets):
            raise ConfigError(f'{name} learns from panoptic annotations, which COCO files of '
                              'objects are not: choose a detector\'s config')
        if split == 'train' and training and len(datasets) != 1:
            raise ConfigError(f'{name} trains on {len(datasets)} datasets, and your data can '
                              'replace one: choose a config with one dataset')


def _check_flags(own: OwnData, training: bool) -> None:
    if own.data is not None:
        others = [f'--{key.replace("_", "-")}' for key, value in vars(own).items()
                  if value is not None and key != 'data']
        if others:
            raise UserError(f'--data names images and labels of all splits: leave out '
                            f'{", ".join(others)}')
    elif training and own.train_ann is None:
        raise UserError('--train-ann is missing: it names the annotation file to train on, and '
                        '--data a data.yaml of YOLO\'s layout')
    elif not training and own.val_ann is None:
        raise UserError('--val-ann is missing: it names the annotation file to test on, and '
                        '--data a data.yaml of YOLO\'s layout')


def _log(text: str, level: int = logging.INFO) -> None:
    print_log(f'your data: {text}', logger='current', level=level)


# --- reading ----------------------------------------------------------------------------------


def _read_files(own: OwnData, training: bool) -> dict[str, _Split]:
    """Read the COCO files, and find the images of each."""
    files = {'train': own.train_ann if training else None, 'val': own.val_ann}
    images = {'train': own.images, 'val': own.val_images or own.images}
    splits = {}
    for name, file in files.items():
        if file is None:
            continue
        path = Path(file).expanduser().absolute()
        if not path.is_file():
            raise UserError(f'no such file: {file}; --{name}-ann names a COCO annotation file')
        splits[name] = _with_images(_Split(name, read_coco(path), Path(), path), images[name])
    return splits


def _with_images(split: _Split, folder: _Path | None) -> _Split:
    """Find the folder that the file names of a split start from.

    Raises:
        UserError: If no folder has one of its first images.
    """
    assert split.path is not None
    given = None if folder is None else Path(folder).expanduser().absolute()
    names = [image['file_name'] for image in split.content['images']
             if isinstance(image.get('file_name'), str) and image['file_name']]
    if not names:
        split.images = given or split.path.parent
        return split  # the check of the file says what is wrong
    flag = '--val-images' if split.name == 'val' else '--images'
    split.images, shortened = find_image_folder(split.path, names, split.name, given, flag)
    if shortened:
        _use_base_names(split)
    return split


def _use_base_names(split: _Split) -> None:
    """Replace paths of another machine by the names of the files.

    Raises:
        UserError: If two images would get the same name.
    """
    first: dict[str, str] = {}
    for image in split.content['images']:
        name = image.get('file_name')
        if not isinstance(name, str):
            continue
        image['file_name'] = base_name(name)
        other = first.setdefault(image['file_name'], name)
        if other != name:
            raise UserError(f'{split.path}: {other} and {name} were not found, and without their '
                            f'folders both are {image["file_name"]}: correct file_name')
    example = next(iter(first.items()))
    _log(f'{split.name}: file names such as {example[1]} are read as {example[0]}, as the images '
         f'are in {split.images}')
    split.path = None


def _read_yolo(path: Path, training: bool, folder: Path) -> dict[str, _Split]:
    """Convert a dataset in YOLO's layout."""
    splits = {}
    for name, part in read_yolo(path, ['train', 'val'] if training else ['val']).items():
        _log(f'{name}: converted from YOLO\'s labels, {part.describe()}')
        splits[name] = _Split(name, part.content, part.images, None)
    needed = 'train' if training else 'val'
    if needed not in splits:
        raise UserError(f'{path} has no {needed}: name the folder of its images there')
    return splits


def _checked(split: _Split, needs_masks: bool, skip_invalid: bool) -> _Split:
    """Check annotations, and take over what was repaired.

    Files that stay as they are will be checked, and reported, as those of any config.
    """
    names = [image.get('file_name') for image in split.content['images']]
    paths = {name: str(split.images / name) for name in names if isinstance(name, str) and name}
    headers = read_headers(paths.values(), seconds=_QUICK_SECONDS)
    source = split.path or Path(f'the {split.name} annotations')
    check = check_coco(source, content=split.content, needs_masks=needs_masks, headers={
        name: headers[path] for name, path in paths.items() if path in headers})
    check.findings.raise_errors(skip_invalid=skip_invalid)
    if check.is_changed:
        split.path = None
    if split.path is None:
        _report_repairs(check)
    split.content = check.content
    return split


def _report_repairs(check: CocoCheck) -> None:
    """Log what the check of the written copy will not see any more."""
    for finding in check.findings.of(Severity.REPAIRED, Severity.INVALID):
        print_log(finding.message, logger='current', level=logging.INFO if
                  finding.severity is Severity.REPAIRED else logging.WARNING)


# --- splits and categories --------------------------------------------------------------------


def _hold_out(train: _Split) -> _Split:
    """Move a fifth of the images to a validation split, and return it.

    The choice follows from the names of the images alone, so that it is the same in each run and
    on each machine. Copies that Roboflow has augmented stay with each other. Images with objects
    and images without are divided separately.

    Raises:
        UserError: If there are too few images to divide.
    """
    content = train.content
    filled = {entry['image_id'] for entry in content['annotations'] if not entry.get('iscrowd')}
    held_out: set[Any] = set()
    for has_objects in (True, False):
        groups: dict[str, list[Any]] = {}
        for image in content['images']:
            if (image['id'] in filled) is has_objects:
                key = image['file_name'].partition('.rf.')[0]
                groups.setdefault(key, []).append(image['id'])
        total = sum(map(len, groups.values()))
        if has_objects and len(groups) < 2:
            raise UserError('there are too few images with objects to hold some out for '
                            'validation: pass --val-ann with an annotation file of other images')
        wanted = round(_SHARE_HELD_OUT * total) or int(has_objects)
        order = sorted(groups, key=lambda key: hashlib.sha1(key.encode()).digest())
        chosen: list[Any] = []
        for key in order[:-1]:
            if len(chosen) >= wanted:
                break
            chosen += groups[key]
        held_out.update(chosen)
    val = _Split('val', _part(content, held_out, keep=True), train.images, None)
    train.content, train.path = _part(content, held_out, keep=False), None
    _log(f'val: {len(val.content["images"])} of the {len(content["images"])} images are held out '
         'of the training, the same ones in each run; --val-ann names a file of your own instead')
    return val


def _part(content: Mapping[str, Any], images: set[Any], *, keep: bool) -> dict[str, Any]:
    return {**content,
            'categories': [dict(category) for category in content['categories']],
            'images': [image for image in content['images'] if (image['id'] in images) is keep],
            'annotations': [entry for entry in content['annotations']
                            if (entry['image_id'] in images) is keep]}


def _leave_out_groups(splits: Sequence[_Split]) -> None:
    """Leave out categories without any object that are the supercategory of others.

    Roboflow's exports begin with one, named after the project or the kind of objects.
    """
    used = {name for split in splits for category in split.content['categories']
            for name in [category['name']] if category['id'] in split.used_categories()}
    dropped: dict[str, None] = {}
    for split in splits:
        categories = split.content['categories']
        kept = []
        for category in categories:
            is_group = category['name'] not in used and any(
                other.get('supercategory') == category['name'] for other in categories
                if other is not category)
            if is_group:
                dropped[category['name']] = None
            else:
                kept.append(category)
        if kept and len(kept) < len(categories):
            split.content['categories'], split.path = kept, None
    for name in dropped:
        _log(f'left out the category {name!r}, which has no object and only groups others')


def _classes(split: _Split) -> list[str]:
    return list(dict.fromkeys(category['name'] for category in split.content['categories']))


def _order_categories(split: _Split, classes: Sequence[str]) -> None:
    """Give a split the categories of the model, in its order, which MMDetection's labels follow.

    Raises:
        UserError: If the split has objects of other classes.
    """
    categories = split.content['categories']
    names = [category['name'] for category in categories]
    if names == list(classes):
        return
    used = split.used_categories()
    unknown = [category['name'] for category in categories
               if category['name'] not in classes and category['id'] in used]
    if unknown:
        source = split.path or f'the {split.name} data'
        raise UserError(f'{source}: objects of {shorten(unknown)} are not among the classes of the '
                        f'training, {shorten(classes, 10)}: correct the names, or remove these '
                        'objects')
    by_name = {category['name']: category for category in categories}
    free = max((category['id'] for category in categories), default=0) + 1
    ordered = []
    for name in classes:
        if name not in by_name:
            by_name[name] = {'id': free, 'name': name}
            free += 1
        ordered.append(by_name[name])
    changes = [f'added {shorten([n for n in classes if n not in names])}'] \
        if set(classes) - set(names) else []
    if surplus := [name for name in names if name not in classes]:
        changes.append(f'left out {shorten(surplus)}, which have no object')
    _log(f'{split.name}: categories put in the order of the classes'
         + ''.join(f', {change}' for change in changes))
    split.content['categories'], split.path = ordered, None


def _write(split: _Split, folder: Path) -> Path:
    """Write the adapted annotations of a split.

    Raises:
        UserError: If they can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'can\'t write {folder}: {error.strerror or error}') from error
    path = folder / f'{split.name}.json'
    write_json(path, split.content)
    return path


# --- the config -------------------------------------------------------------------------------


def _set_datasets(config: Config, splits: Mapping[str, _Split], classes: Sequence[str],
                  training: bool) -> None:
    for name in ('train', 'val', 'test'):
        split = splits.get('train' if name == 'train' else 'val')
        dataloader = config.get(f'{name}_dataloader')
        if split is None or not dataloader or name == 'train' and not training:
            continue
        datasets = list(leaf_datasets(dataloader))
        if len(datasets) != 1:
            raise ConfigError(f'{name}_dataloader reads {len(datasets)} datasets, and your data '
                              'can replace one: choose a config with one dataset')
        _set_dataset(datasets[0], split, classes, config.get('default_scope'))
        if name != 'train':
            key = f'{name}_evaluator'
            config[key] = _evaluator(config.get(key), str(split.path),
                                     preflight.needs_masks(config))


def _set_dataset(dataset: MutableMapping[str, Any], split: _Split, classes: Sequence[str],
                 scope: str | None) -> None:
    if not preflight.coco_classes(dataset, scope):
        kept = {key: dataset[key] for key in _KEPT_KEYS if key in dataset}
        dataset.clear()
        dataset.update(type='CocoDataset', **kept)
    dataset.pop('indices', None)
    dataset.update(
        data_root=f'{split.images}/', ann_file=str(split.path), data_prefix=dict(img=''),
        metainfo=dict(classes=tuple(classes), palette=class_colours(len(classes))))


def _evaluator(evaluator: Any, path: str, masks: bool) -> Any:
    """Return an evaluator's config that reads another annotation file.

    Metrics of COCO are kept with their settings; others are replaced by COCO's.
    """
    parts = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    ours = [part for part in parts if isinstance(part, MutableMapping)
            and str(getattr(part.get('type'), '__name__', part.get('type'))).endswith('CocoMetric')]
    if not ours:
        return dict(type='CocoMetric', ann_file=path, metric=['bbox', 'segm'] if masks else 'bbox')
    for part in ours:
        part.update(ann_file=path, format_only=False)
    return ours if isinstance(evaluator, list | tuple) else ours[0]


def _heads(part: Any, path: str = '') -> Iterator[tuple[str, MutableMapping[str, Any]]]:
    """Yield path and config of every part of the heads that has a number of classes."""
    if isinstance(part, MutableMapping):
        in_head = 'head' in path and not any(name in path for name in _CLASS_AGNOSTIC)
        if in_head and ('num_classes' in part or 'num_things_classes' in part):
            yield path, part
        for key, value in part.items():
            yield from _heads(value, f'{path}.{key}' if path else str(key))
    elif isinstance(part, list | tuple):
        for index, value in enumerate(part):
            yield from _heads(value, f'{path}.{index}')


def set_class_count(model: Any, count: int) -> list[str]:
    """Set the number of classes in every head, and return the paths of the heads."""
    heads = list(_heads(model))
    for _, head in heads:
        if 'num_things_classes' in head:  # of MaskFormer and Mask2Former
            old = head['num_things_classes'] + head.get('num_stuff_classes', 0)
            head.update(num_things_classes=count, num_stuff_classes=0)
        else:
            old = head['num_classes']
            head['num_classes'] = count
        for loss in head.values():
            weights = loss.get('class_weight') if isinstance(loss, MutableMapping) else None
            if isinstance(weights, list | tuple) and len(weights) in (old, old + 1):
                loss['class_weight'] = [weights[0]] * count + list(weights[old:])
    return [path for path, _ in heads]
