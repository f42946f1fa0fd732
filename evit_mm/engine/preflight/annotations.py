"""COCO annotation files of a config: checked, and repaired copies put in their place."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import METRICS

from ...data.check import CocoCheck, CocoSource, check_coco, check_source
from ...data.check.findings import printable
from ...errors import ConfigError, UserError
from ...files import write_json
from ..config import leaf_datasets
from .categories import compare_categories
from .files import base_class, class_of, coco_classes, is_remote
from .findings import log_findings

__all__ = ['ConfiguredSource', 'check_annotations', 'compare_with_config', 'needs_masks', 'report',
           'sources_of', 'write_repaired']

_QUICK_SECONDS = 10.0  # for reading image headers before a run; `evit-mm data check` reads all


@dataclass
class ConfiguredSource(CocoSource):
    """A COCO file that a dataset of a config reads.

    Attributes:
        dataset: The dataset's config.
    """

    dataset: MutableMapping[str, Any] = field(default_factory=dict)


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
        check = check_source(source, seconds=_QUICK_SECONDS)
        report(check, split, skip_invalid=skip_invalid)
        checks[os.path.realpath(source.path)] = check
    for path, theirs in compare_with_config(config, split, sources, checks).items():
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


def compare_with_config(config: Any, split: str, sources: Sequence[ConfiguredSource],
                        checks: Mapping[str, CocoCheck]) -> dict[str, CocoCheck]:
    """Check that annotation files have the config's classes, and its evaluators the same images.

    Args:
        config: A whole config.
        split: ``'train'``, ``'val'`` or ``'test'``.
        sources: The files that the datasets of this split read.
        checks: The checks of these files by their real paths.

    Returns:
        dict: The checks of further files that only evaluators read, by their real paths.

    Raises:
        ConfigError: If categories have another order than the classes, or an evaluator reads the
            annotations of other images.
        UserError: If an evaluator's file is not a COCO annotation file.
    """
    for source in sources:
        names = [category['name']
                 for category in checks[os.path.realpath(source.path)].content['categories']]
        compare_categories(source.path, names, source.classes or (), ignore_unknown=True)
    others: dict[str, CocoCheck] = {}
    evaluators = [] if split == 'train' else list(_evaluators(config.get(f'{split}_evaluator')))
    for evaluator in evaluators if sources else ():
        if not _is_coco_metric(evaluator, config.get('default_scope')):
            continue
        path = os.path.realpath(evaluator['ann_file'])
        if path not in checks and path not in others:
            others[path] = _check_evaluator(evaluator, sources, checks, split)
    return others


def report(check: CocoCheck, split: str, *, skip_invalid: bool) -> None:
    """Log what was found in an annotation file.

    Raises:
        UserError: If it has a fault that needs a decision.
    """
    check.findings.raise_errors(skip_invalid=skip_invalid)
    log_findings(check.findings)
    empty = [name for name, count in check.objects.items() if not count]
    if empty and check.objects.total():
        print_log(printable(f'{check.path}: no object of the class{"es" * (len(empty) > 1)} '
                            f'{", ".join(empty[:10])}{" ..." if len(empty) > 10 else ""}'),
                  logger='current', level=logging.WARNING)
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


def needs_masks(config: Any) -> bool:
    """Return whether a config's pipelines or evaluators need the masks of objects."""
    splits = ('train', 'val', 'test')
    return any(
        _loads_masks(dataset.get('pipeline')) for split in splits
        for dataset in leaf_datasets(config.get(f'{split}_dataloader') or {})) or any(
        'segm' in _as_list(evaluator.get('metric')) for split in splits
        for evaluator in _evaluators(config.get(f'{split}_evaluator')))


def sources_of(config: Any, split: str) -> list[ConfiguredSource]:
    """Return the datasets of a split that read a COCO file as `CocoDataset` does."""
    evaluators = [] if split == 'train' else list(_evaluators(config.get(f'{split}_evaluator')))
    evaluates_masks = any('segm' in _as_list(evaluator.get('metric')) for evaluator in evaluators)
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
        sources.append(ConfiguredSource(
            Path(root, dataset['ann_file']), os.path.join(root, folder), classes,
            evaluates_masks or _loads_masks(dataset.get('pipeline')), needs_objects,
            limits.get('min_size', 0), list(_scales(dataset.get('pipeline'))), dataset))
    return sources


def _scales(pipeline: Any) -> Iterator[tuple[float, float]]:
    """Yield the sizes to which a pipeline resizes images and keeps their proportions."""
    if isinstance(pipeline, Mapping):
        name = str(getattr(pipeline.get('type'), '__name__', pipeline.get('type')))
        if name.endswith('Resize') and pipeline.get('keep_ratio', 'Choice' in name):
            scales = pipeline.get('scales') or pipeline.get('scale') or ()
            scales = scales if scales and isinstance(scales[0], list | tuple) else [scales]
            yield from ((float(scale[0]), float(scale[1])) for scale in scales if len(scale) == 2)
        for value in pipeline.values():
            yield from _scales(value)
    elif isinstance(pipeline, list | tuple):
        for step in pipeline:
            yield from _scales(step)


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


def _check_evaluator(evaluator: Mapping[str, Any], sources: Sequence[ConfiguredSource],
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
    check = check_source(replace(first, path=path), seconds=0)
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
