"""mIoU, mAcc and aAcc to full precision."""

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
    """IoUMetric whose figures can be compared: counted in integers, not rounded.

    The plain metric counts pixels in float32 and rounds what it returns to two decimals of a
    percent. Arguments, printed table and saved predictions are its own. As there, a mean leaves
    out the classes that occur neither in the truth nor in the predictions.
    """

    @staticmethod
    def intersect_and_union(pred_label: Tensor, label: Tensor, num_classes: int,
                            ignore_index: int) -> tuple[Tensor, ...]:
        """Count one image's pixels per class.

        Args:
            pred_label: Predicted classes (H, W).
            label: True classes (H, W).
            num_classes: Number of classes K.
            ignore_index: True class of the pixels that do not count.

        Returns:
            tuple[Tensor]: Intersection, union, predicted and true pixels, each (K,) float64.
        """
        counted = label != ignore_index
        predicted, true = pred_label[counted].long(), label[counted].long()
        intersection, predicted_area, true_area = (
            torch.bincount(classes, minlength=num_classes)[:num_classes].double().cpu()
            for classes in (predicted[predicted == true], predicted, true))
        return intersection, predicted_area + true_area - intersection, predicted_area, true_area

    def compute_metrics(self, results: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
        """Print IoUMetric's table, and return its figures, in percent, before rounding."""
        rounded: dict[str, Any] = super().compute_metrics(results)
        if self.format_only:
            return rounded
        areas = [sum(parts) for parts in zip(*results, strict=True)]
        values = self.total_area_to_metrics(*areas, self.metrics, self.nan_to_num, self.beta)
        return {name if name == 'aAcc' else f'm{name}': float(np.nanmean(value) * 100)
                for name, value in values.items()}
