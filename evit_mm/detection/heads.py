"""Heads for MMDetection."""

from typing import Any

import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean

__all__ = ['SyncedRetinaHead']


@MODELS.register_module()
class SyncedRetinaHead(RetinaHead):
    """RetinaHead that normalises its losses by the positive anchors of all processes.

    RetinaHead divides by the positives of its own process, so that the gradient depends on how a
    batch is distributed over processes. With this head, the mean over the processes equals the loss
    of the whole batch in one process. In a single process, and in its weights and predictions, it
    is the same as RetinaHead.
    """

    def get_targets(self, *args: Any, **kwargs: Any) -> tuple:
        """Compute the targets of AnchorHead, with ``avg_factor`` averaged over the processes.

        Returns:
            tuple: As in AnchorHead; the fifth entry is ``avg_factor``.
        """
        labels, label_weights, targets, weights, avg_factor, *rest = \
            super().get_targets(*args, **kwargs)
        mean = reduce_mean(torch.as_tensor(avg_factor, dtype=torch.float32,
                                           device=labels[0].device))
        return (labels, label_weights, targets, weights, mean.item(), *rest)
