"""COCO annotation files of a config: checked, and repaired copies put in their place."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from ...data.check import CocoCheck, Severity, check_coco, read_coco, read_headers
from ...errors import ConfigError, UserError
from ...files import write_json
from ..config import leaf_datasets
from .files import coco_classes, is_remote

__all__ = ['check_annotations', 'check_dataset', 'report', 'write_repaired']

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
    """

    dataset: MutableMapping[str, Any]
    path: Path
    images: str
    classes: Sequence[str]
    needs_masks: bool


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
    needs_masks = any('segm' in _as_list(evaluator.get('metric')) for evaluator in evaluators)
    sources = list(_sources(config, split, needs_masks))
    for source in sources:
        check = check_dataset(source, seconds=_QUICK_SECONDS)
        report(check, split, skip_invalid=skip_invalid)
        for evaluator in evaluators if len(sources) == 1 else ():
            _check_evaluator(evaluator, check, source.dataset, split)
        if not check.is_changed:
            continue
        if repaired is None:
            raise UserError(f'{source.path} has to be repaired before it can be used: run '
                            'evit-mm data check with --repair, and use the copy that it writes')
        copy = str(write_repaired(check, repaired))
        source.dataset['ann_file'] = copy
        for evaluator in evaluators:
            if _is_same_file(evaluator['ann_file'], source.path):
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
    content = read_coco(source.path)
    files = [image['file_name'] for image in content['images']
             if isinstance(image.get('file_name'), str)]
    paths = [os.path.join(source.images, file) for file in files]
    headers = read_headers(paths, seconds=seconds, progress=progress, title=source.path.name)
    return check_coco(
        source.path, content=content, classes=source.classes, needs_masks=source.needs_masks,
        headers={file: headers[path] for file, path in zip(files, paths, strict=True)
                 if path in headers})


def report(check: CocoCheck, split: str, *, skip_invalid: bool) -> None:
    """Log what was found in an annotation file.

    Raises:
        UserError: If it has a fault that needs a decision.
    """
    check.findings.raise_errors(skip_invalid=skip_invalid)
    for finding in check.findings:
        level = logging.INFO if finding.severity in (Severity.NOTE, Severity.REPAIRED) \
            else logging.WARNING
        print_log(finding.message, logger='current', level=level)
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


def _sources(config: Any, split: str, needs_masks: bool) -> Iterator[_Source]:
    """Yield the datasets of a split that read a COCO file as `CocoDataset` does."""
    for dataset in leaf_datasets(config.get(f'{split}_dataloader') or {}):
        classes = None if is_remote(dataset) else coco_classes(dataset, config.get('default_scope'))
        if not classes or not dataset.get('ann_file'):
            continue
        root = dataset.get('data_root') or ''
        folder = (dataset.get('data_prefix') or {}).get('img') or ''
        yield _Source(dataset, Path(root, dataset['ann_file']), os.path.join(root, folder), classes,
                      needs_masks or _loads_masks(dataset.get('pipeline')))


def _loads_masks(pipeline: Any) -> bool:
    if isinstance(pipeline, Mapping):
        return bool(pipeline.get('with_mask')) or any(map(_loads_masks, pipeline.values()))
    return isinstance(pipeline, list | tuple) and any(map(_loads_masks, pipeline))


def _evaluators(evaluator: Any) -> Iterator[MutableMapping[str, Any]]:
    """Yield the configs of CocoMetric in an evaluator's config that name a file."""
    if isinstance(evaluator, MutableMapping):
        name = getattr(evaluator.get('type'), '__name__', str(evaluator.get('type')))
        if name.rpartition('.')[2] in ('CocoMetric', 'PerClassCocoMetric'):
            if isinstance(evaluator.get('ann_file'), str) and '://' not in evaluator['ann_file']:
                yield evaluator
        elif evaluator.get('metrics'):
            yield from _evaluators(evaluator['metrics'])
    elif isinstance(evaluator, list | tuple):
        for part in evaluator:
            yield from _evaluators(part)


def _check_evaluator(evaluator: Mapping[str, Any], check: CocoCheck, dataset: Mapping[str, Any],
                     split: str) -> None:
    """Check that an evaluator has the annotations of the images that its model sees.

    Raises:
        ConfigError: If it reads a file of other images.
    """
    name = f'{split}_evaluator'
    path = Path(evaluator['ann_file'])
    fix = f'set {name}.ann_file to {check.path}, as {split}_dataloader.dataset.ann_file'
    if not path.is_file():
        raise ConfigError(f'{name} reads {path}, which does not exist: {fix}')
    if dataset.get('indices') is not None:
        raise ConfigError(f'{split}_dataloader.dataset.indices={dataset["indices"]!r} leaves out '
                          f'images that {name} counts as missed: remove it, or write an annotation '
                          f'file of these images for both')
    if _is_same_file(path, check.path):
        return
    theirs = {(image.get('id'), image.get('file_name')) for image in read_coco(path)['images']}
    ours = {(image['id'], image['file_name']) for image in check.content['images']}
    if theirs != ours:
        raise ConfigError(f'{name} reads {path}, and {split}_dataloader {check.path}, which list '
                          f'other images: every metric would be wrong; {fix}')
    print_log(f'{name} reads {path}, and {split}_dataloader {check.path}: they list the same '
              'images', logger='current', level=logging.WARNING)


def _is_same_file(one: str | Path, other: str | Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


