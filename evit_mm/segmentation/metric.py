"""Metrics for MMSegmentation: mIoU, mAcc and aAcc in full precision, and class by class."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from PIL import Image
from torch import Tensor

from ..data.image_paths import path_below
from ..errors import UserError
from ..report.evaluation import Evaluation

__all__ = ['UnroundedIoUMetric']


@METRICS.register_module()
class UnroundedIoUMetric(IoUMetric):
    """IoUMetric that counts pixels exactly, does not round, and reports every class.

    IoUMetric counts pixels in float32, and rounds the metrics that it returns to two decimals of a
    percent. The arguments, the printed table and the saved predictions are the same. As there,
    means ignore classes that occur neither in the ground truth nor in the predictions.

    Args:
        *args: Arguments of IoUMetric.
        image_root: Folder of the images. Predictions are saved under the paths that the images have
            below it, so that images of one name in several folders stay apart; None saves all in
            one folder.
        **kwargs: Arguments of IoUMetric.

    Attributes:
        evaluation: The last evaluation, class by class; None before there was one, and in other
            processes than the first.
    """

    def __init__(self, *args: Any, image_root: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.image_root = image_root
        self.evaluation: Evaluation | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count the pixels of each image, and save its prediction where that is asked for."""
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            predicted = _label_map(sample['pred_sem_seg']['data'])
            if not self.format_only:
                true = _label_map(sample['gt_sem_seg']['data']).to(predicted)
                self.results.append((
                    *self.intersect_and_union(predicted, true, num_classes, self.ignore_index),
                    *_count_pairs(predicted, true, num_classes, self.ignore_index)))
            if self.output_dir is not None:
                self._save(predicted, sample)

    @staticmethod
    def intersect_and_union(pred_label: Tensor, label: Tensor, num_classes: int,
                            ignore_index: int) -> tuple[Tensor, ...]:
        """Count the pixels of each class in an image.

        Args:
            pred_label: Predicted classes (H, W).
            label: Ground truth (H, W).
            num_classes: Number of classes K.
            ignore_index: Label of the pixels to ignore.

        Returns:
            tuple[Tensor]: Pixels in the intersection, in the union, predicted and in the ground
            truth; each (K,) float64.
        """
        counted = label != ignore_index
        predicted, true = pred_label[counted].long(), label[counted].long()
        intersection, predicted_area, true_area = (
            torch.bincount(classes, minlength=num_classes)[:num_classes].double().cpu()
            for classes in (predicted[predicted == true], predicted, true))
        return intersection, predicted_area + true_area - intersection, predicted_area, true_area

    def compute_metrics(self, results: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
        """Print the table of IoUMetric, and return its metrics in percent, without rounding."""
        self.evaluation = None
        rounded: dict[str, Any] = super().compute_metrics([counts[:4] for counts in results])
        if self.format_only:
            return rounded
        areas = [sum(parts) for parts in zip(*(counts[:4] for counts in results), strict=True)]
        values = self.total_area_to_metrics(*areas, self.metrics, self.nan_to_num, self.beta)
        classes = self.dataset_meta['classes']
        columns = {name: (np.asarray(value) * 100).tolist() for name, value in values.items()
                   if name != 'aAcc'}
        confusion = np.zeros(len(classes) ** 2, np.int64)
        for pairs, counts in (counts[4:6] for counts in results):
            confusion[pairs.numpy()] += counts.numpy()
        self.evaluation = Evaluation(
            classes, {'pixels': areas[3].long().tolist(), **columns},
            confusion=confusion.reshape(len(classes), len(classes)), confusion_title='pixels')
        return {name if name == 'aAcc' else f'm{name}': float(np.nanmean(value) * 100)
                for name, value in values.items()}

    def _save(self, predicted: Tensor, sample: dict[str, Any]) -> None:
        """Write a prediction as PNG, in the values that the dataset's label maps have.

        Raises:
            UserError: If it can't be written.
        """
        labels = predicted.cpu().numpy()
        if sample.get('reduce_zero_label', False):
            labels = labels + 1
        path = Path(self.output_dir, path_below(sample['img_path'], self.image_root))
        path = Path(os.path.splitext(path)[0] + '.png')
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels.astype(np.uint8 if labels.max() < 256 else np.uint16)).save(path)
        except OSError as error:
            raise UserError(f'can\'t write {path}: {error.strerror or error}') from error


def _label_map(data: Tensor) -> Tensor:
    """Return a label map (1, H, W) or (H, W) as (H, W)."""
    return data.reshape(data.shape[-2:])


def _count_pairs(predicted: Tensor, true: Tensor, num_classes: int, ignore_index: int
                 ) -> tuple[Tensor, Tensor]:
    """Return the pairs of true and predicted classes in an image, and how often each occurs.

    A pair is one number, true class x K + predicted class. Most images have few of the K * K.
    """
    counted = (true != ignore_index) & (true < num_classes) & (predicted < num_classes)
    counts = torch.bincount(true[counted].long() * num_classes + predicted[counted].long())
    pairs = counts.nonzero()[:, 0]
    return pairs.cpu(), counts[pairs].cpu()
