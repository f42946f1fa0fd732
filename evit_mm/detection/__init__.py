"""What MMDetection's configs of this project need beside backbone and neck.

Apart from `evit_mm.models`, because it imports mmdet, which segmentation does without.
"""

from typing import Any

import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean

import evit_mm  # noqa: F401  (registers; a config may import this module alone)

__all__ = ['SyncedRetinaHead']


@MODELS.register_module()
class SyncedRetinaHead(RetinaHead):
    """RetinaHead whose losses are normalised by the positives of all processes.

    The plain head divides by the positives of its own process, so that the gradient depends on
    how a batch is spread over processes, and an image with few objects weighs more when it sits
    alone. Here the mean over the processes equals the loss of the whole batch in one process. In
    a single process, and in weights and predictions, it is RetinaHead.
    """

    def get_targets(self, *args: Any, **kwargs: Any) -> tuple:
        """As in AnchorHead, with the mean of all processes as ``avg_factor`` (the fifth entry)."""
        labels, label_weights, targets, weights, avg_factor, *rest = \
            super().get_targets(*args, **kwargs)
        mean = reduce_mean(torch.as_tensor(avg_factor, dtype=torch.float32,
                                           device=labels[0].device))
        return (labels, label_weights, targets, weights, mean.item(), *rest)
