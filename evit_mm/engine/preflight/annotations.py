"""COCO annotation files of a config: checked, and repaired copies put in their place."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import METRICS

from ...data.check import CocoCheck, check_coco, read_coco, read_headers
from ...errors import ConfigError, UserError
from ...files import write_json
from ..config import leaf_datasets
from .categories import compare_categories
from .files import base_class, class_of, coco_classes, is_remote
from .findings import log_findings

__all__ = ['check_annotations', 'check_dataset', 'report', 'sources_of', 'write_repaired']

_QUICK_SECONDS = 10.0  # for reading image headers before a run; `evit-mm data check` reads all


@dataclass
class _Source:
    """A dataset that reads a COCO file.

    Attributes:
        dataset: Its config.
        path: Its annotation file.
        images: Folder of its images.
        classes: The classes that it reads.
        needs_masks: Whether its pipeline or its evaluator needs masks.
        needs_objects: Whether it has to have objects.
        min_image_size: Side in pixels below which it leaves images out.
    """

    dataset: MutableMapping[str, Any]
    path: Path
    images: str
    classes: Sequence[str]
    needs_masks: bool
    needs_objects: bool = True
    min_image_size: float = 0


def check_annotations(config: Any, split: str, *, skip_invalid: bool = False,
                      repaired: Path | None = None) -> None:
    """Check the COCO annotation files of one split of a config, and its evaluator's.

    What can be repaired is written to a copy, which replaces the file in the config's dataset and
    evaluator. A line in the log accounts for every object.

    Args:
        config: A whole config; changed in place.
        split: ``'train'``, ``'val'`` or ``'test'``.
        skip_invalid: Go on without the objects that can't be used.
        repaired: Folder for repaired copies; None raises an error where one is needed.

    Raises:
        UserError: If a file has a fault that needs a decision.
        ConfigError: If an evaluator reads the annotations of other images.
    """
    evaluators = [] if split == 'train' else list(_evaluators(config.get(f'{split}_evaluator')))
    sources = sources_of(config, split)
    checks: dict[str, CocoCheck] = {}  # by file
    for source in sources:
        check = check_dataset(source, seconds=_QUICK_SECONDS)
        report(check, split, skip_invalid=skip_invalid)
        compare_categories(source.path, [category['name']
                                         for category in check.content['categories']],
                           source.classes, ignore_unknown=True)
        checks[os.path.realpath(source.path)] = check
    for evaluator in evaluators if sources else ():
        path = os.path.realpath(evaluator['ann_file'])
        if _is_coco_metric(evaluator, config.get('default_scope')):
            if len(sources) == 1:
                _check_images_used(evaluator, sources[0], split)
            if path not in checks:
                theirs = _check_evaluator(evaluator, sources, checks, split)
                theirs.findings.raise_errors(skip_invalid=skip_invalid)
                checks[path] = theirs
    for path, check in checks.items():
        if not check.is_changed:
            continue
        if repaired is None:
            raise UserError(f'{check.path} has to be repaired before it can be used: run '
                            'evit-mm data check with --repair, and use the copy that it writes')
        copy = str(write_repaired(check, repaired))
        for source in sources:
            if os.path.realpath(source.path) == path:
                source.dataset['ann_file'] = copy
        for evaluator in evaluators:
            if os.path.realpath(evaluator['ann_file']) == path:
                evaluator['ann_file'] = copy


def check_dataset(source: _Source, *, seconds: float | None = None, progress: bool = False
                  ) -> CocoCheck:
    """Check the annotation file of one dataset against its images and its classes.

    Args:
        source: The dataset.
        seconds: Time for reading image headers; None reads all.
        progress: Whether to show a progress bar.

    Raises:
        UserError: If the file is not a COCO annotation file.
    """
    content = read_coco(source.path, needs_objects=source.needs_objects)
    paths = {image['file_name']: os.path.join(source.images, image['file_name'])
             for image in content['images'] if isinstance(image.get('file_name'), str)}
    # Where the file gives no size, it has to be read.
    unknown = [paths[image['file_name']] for image in content['images']
               if isinstance(image.get('file_name'), str)
               and image.get('width') is image.get('height') is None]
    headers = read_headers(unknown, progress=progress, title=source.path.name)
    headers |= read_headers((path for path in paths.values() if path not in headers),
                            seconds=seconds, progress=progress, title=source.path.name)
    return check_coco(
        source.path, content=content, classes=source.classes, needs_masks=source.needs_masks,
        needs_objects=source.needs_objects, min_image_size=source.min_image_size,
        headers={file: headers[path] for file, path in paths.items() if path in headers})


def report(check: CocoCheck, split: str, *, skip_invalid: bool) -> None:
    """Log what was found in an annotation file.

    Raises:
        UserError: If it has a fault that needs a decision.
    """
    check.findings.raise_errors(skip_invalid=skip_invalid)
    log_findings(check.findings)
    empty = [name for name, count in check.objects.items() if not count]
    if empty and check.objects.total():
        print_log(f'{check.path}: no object of the class{"es" * (len(empty) > 1)} '
                  f'{", ".join(empty[:10])}{" ..." if len(empty) > 10 else ""}', logger='current',
                  level=logging.WARNING)
    print_log(f'{split}: {check.describe()}', logger='current', level=logging.INFO)


def write_repaired(check: CocoCheck, folder: Path) -> Path:
    """Write the repaired content of an annotation file, and return the new file.

    Its name tells the file it was made from, so that several splits and processes may share a
    folder.

    Raises:
        UserError: If it can't be written.
    """
    mark = hashlib.sha1(str(check.path.resolve()).encode()).hexdigest()[:8]
    path = folder / f'{check.path.stem}-{mark}.json'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'can\'t write {folder}: {error.strerror or error}') from error
    write_json(path, check.content)
    print_log(f'wrote the repaired annotations to {path}', logger='current', level=logging.INFO)
    return path


def sources_of(config: Any, split: str) -> list[_Source]:
    """Return the datasets of a split that read a COCO file as `CocoDataset` does."""
    evaluators = [] if split == 'train' else list(_evaluators(config.get(f'{split}_evaluator')))
    needs_masks = any('segm' in _as_list(evaluator.get('metric')) for evaluator in evaluators)
    needs_objects = not evaluators or not all(
        evaluator.get('format_only') for evaluator in evaluators)
    sources = []
    for dataset in leaf_datasets(config.get(f'{split}_dataloader') or {}):
        classes = None if is_remote(dataset) else coco_classes(dataset, config.get('default_scope'))
        if not classes or not dataset.get('ann_file'):
            continue
        root = dataset.get('data_root') or ''
        folder = (dataset.get('data_prefix') or {}).get('img') or ''
        limits = {} if dataset.get('test_mode') else dataset.get('filter_cfg') or {}
        sources.append(_Source(
            dataset, Path(root, dataset['ann_file']), os.path.join(root, folder), classes,
            needs_masks or _loads_masks(dataset.get('pipeline')), needs_objects,
            limits.get('min_size', 0)))
    return sources


def _loads_masks(pipeline: Any) -> bool:
    if isinstance(pipeline, Mapping):
        return bool(pipeline.get('with_mask')) or any(map(_loads_masks, pipeline.values()))
    return isinstance(pipeline, list | tuple) and any(map(_loads_masks, pipeline))


def _evaluators(evaluator: Any) -> Iterator[MutableMapping[str, Any]]:
    """Yield the configs of metrics in an evaluator's config that name a local file."""
    if isinstance(evaluator, MutableMapping):
        if isinstance(evaluator.get('ann_file'), str) and '://' not in evaluator['ann_file']:
            yield evaluator
        elif evaluator.get('metrics'):
            yield from _evaluators(evaluator['metrics'])
    elif isinstance(evaluator, list | tuple):
        for part in evaluator:
            yield from _evaluators(part)


def _is_coco_metric(evaluator: Mapping[str, Any], scope: str | None) -> bool:
    return base_class(class_of(evaluator, scope, METRICS), 'mmdet', 'CocoMetric') is not None


def _check_images_used(evaluator: Mapping[str, Any], source: _Source, split: str) -> None:
    """Check that a dataset leaves out no image of its annotation file.

    Raises:
        ConfigError: If it leaves some out, which its evaluator would count as missed.
    """
    dataset, name = source.dataset, f'{split}_dataloader.dataset'
    if dataset.get('indices') is not None:
        raise ConfigError(f'{name}.indices={dataset["indices"]!r} leaves out images that '
                          f'{split}_evaluator counts as missed: remove it, or write an annotation '
                          'file of these images for both')
    if dataset.get('filter_cfg') and not dataset.get('test_mode'):
        raise ConfigError(f'{name}.filter_cfg leaves out images that {split}_evaluator counts as '
                          f'missed: set {name}.test_mode=True')


def _check_evaluator(evaluator: Mapping[str, Any], sources: Sequence[_Source],
                     checks: Mapping[str, CocoCheck], split: str) -> CocoCheck:
    """Check an annotation file that an evaluator alone reads.

    Raises:
        ConfigError: If it has the annotations of other images than the model sees.
        UserError: If it is not a COCO annotation file.
    """
    name, path, first = f'{split}_evaluator', Path(evaluator['ann_file']), sources[0]
    fix = f'set {name}.ann_file to {first.path}, as {split}_dataloader.dataset.ann_file'
    if not path.is_file():
        raise ConfigError(f'{name} reads {path}, which does not exist: {fix}')
    if len(sources) > 1:
        return check_coco(path, classes=first.classes, needs_masks=first.needs_masks,
                          needs_objects=first.needs_objects)
    check = check_dataset(replace(first, path=path), seconds=0)
    ours = checks[os.path.realpath(first.path)]
    if _images(check) != _images(ours):
        raise ConfigError(f'{name} reads {path}, and {split}_dataloader {first.path}, which list '
                          f'other images: every metric would be wrong; {fix}')
    print_log(f'{name} reads {path}, and {split}_dataloader {first.path}: they list the same '
              'images', logger='current', level=logging.WARNING)
    return check


def _images(check: CocoCheck) -> set[tuple[Any, str]]:
    """Return ids and files of the images of an annotation file."""
    return {(str(image.get('id')), str(image.get('file_name')))
            for image in check.content['images']}


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
