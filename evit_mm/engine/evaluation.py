"""Metrics that report every class, in place of MMDetection's and MMSegmentation's."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from mmengine.config import Config

from ..data.image_paths import common_folder
from .config import leaf_datasets

__all__ = ['evaluate_by_class']

# The package and the name of each metric that is replaced; with its module, the other one works in
# the config that a run saves in its work dir, too.
_REPLACEMENTS = {
    ('mmdet', 'CocoMetric'): 'evit_mm.detection.metric.PerClassCocoMetric',
    ('mmseg', 'IoUMetric'): 'evit_mm.segmentation.metric.UnroundedIoUMetric',
}


def evaluate_by_class(config: Config) -> None:
    """Let the evaluators of a config report every class, and tell images of one name apart.

    CocoMetric of MMDetection and IoUMetric of MMSegmentation are replaced by metrics of the same
    arguments and results. Other evaluators are left as they are.

    Args:
        config: The whole config, changed in place.
    """
    for split in ('val', 'test'):
        for metric in _metrics(config.get(f'{split}_evaluator')):
            kind = metric.get('type')
            if isinstance(kind, type):
                package, name = kind.__module__.partition('.')[0], kind.__name__
            else:
                package, _, name = str(kind).rpartition('.')
                package = package or metric.get('_scope_') or config.get('default_scope')
            if replacement := _REPLACEMENTS.get((package, name)):
                metric['type'] = replacement
            if str(metric['type']).rpartition('.')[2] == 'UnroundedIoUMetric' \
                    or name == 'UnroundedIoUMetric':
                metric['image_root'] = common_folder(
                    leaf_datasets(config.get(f'{split}_dataloader') or {}))


def _metrics(evaluator: Any) -> Iterator[MutableMapping[str, Any]]:
    """Yield the configs of the metrics in an evaluator's config."""
    if isinstance(evaluator, MutableMapping):
        if isinstance(evaluator.get('metrics'), list | tuple | Mapping):
            yield from _metrics(evaluator['metrics'])
        elif evaluator.get('type'):
            yield evaluator
    elif isinstance(evaluator, list | tuple):
        for part in evaluator:
            yield from _metrics(part)
