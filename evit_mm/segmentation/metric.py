"""Metrics for MMSegmentation: mIoU, mAcc and aAcc in full precision."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from torch import Tensor

__all__ = ['UnroundedIoUMetric']


@METRICS.register_module()
class UnroundedIoUMetric(IoUMetric):
    """IoUMetric that counts pixels exactly and does not round.

    IoUMetric counts pixels in float32, and rounds the metrics that it returns to two decimals of a
    percent. The arguments, the printed table and the saved predictions are the same. As there,
    means ignore classes that occur neither in the ground truth nor in the predictions.
    """

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
        rounded: dict[str, Any] = super().compute_metrics(results)
        if self.format_only:
            return rounded
        areas = [sum(parts) for parts in zip(*results, strict=True)]
        values = self.total_area_to_metrics(*areas, self.metrics, self.nan_to_num, self.beta)
        return {name if name == 'aAcc' else f'm{name}': float(np.nanmean(value) * 100)
                for name, value in values.items()}
