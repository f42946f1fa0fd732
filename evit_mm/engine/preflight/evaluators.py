"""Built evaluators: they evaluate the images that their dataset has."""

import logging
from typing import Any

from mmengine.logging import print_log

from .datasets import leaves
from .files import base_class

__all__ = ['warn_of_missed_images']


def warn_of_missed_images(evaluator: Any, dataset: Any, split: str) -> None:
    """Warn of objects that MMDetection's CocoMetric will count as missed without a prediction.

    It evaluates all images of its annotation file, also those that ``indices`` or ``filter_cfg``
    keep out of the dataset. `PerClassCocoMetric`, which `evit_mm.train` and `evit_mm.test` put in
    its place, does not.

    Args:
        evaluator: mmengine's evaluator of a split.
        dataset: The built dataset of this split.
        split: ``'val'`` or ``'test'``, for the message.
    """
    for metric in evaluator.metrics:
        base = base_class(type(metric), 'mmdet', 'CocoMetric')
        if base is None or type(metric).compute_metrics is not base.compute_metrics:
            continue
        # Private, but all that is left of the file; there is none without an ann_file.
        truth = getattr(metric, '_coco_api', None)
        if truth is None:
            continue
        predicted = {leaf.get_data_info(index).get('img_id')
                     for leaf in leaves(dataset) for index in range(len(leaf))}
        missed = set(truth.getImgIds()) - predicted
        classes = truth.getCatIds(catNms=list(dataset.metainfo.get('classes') or ()))
        objects = truth.getAnnIds(imgIds=list(missed), catIds=classes, iscrowd=False) \
            if missed and classes else ()
        if objects:
            print_log(f'{type(metric).__name__} is going to count {len(objects)} objects of '
                      f'{len(missed)} images as missed, because the {split} dataset leaves these '
                      'images of the annotation file out (indices or filter_cfg): set '
                      'type=\'evit_mm.detection.PerClassCocoMetric\' in the evaluator, which '
                      'counts the images that are predicted', logger='current',
                      level=logging.WARNING)
