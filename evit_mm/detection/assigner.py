"""The assigner of the light detectors: task-aligned assignment (TOOD, arXiv 2108.07755)."""

from typing import Any

import torch
from mmdet.models.task_modules.assigners import AssignResult, TaskAlignedAssigner
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData

__all__ = ['TaskAlignedPointAssigner']


@TASK_UTILS.register_module()
class TaskAlignedPointAssigner(TaskAlignedAssigner):
    """Task-aligned assignment for heads like RTMDet's, which predict from points.

    The alignment of a prediction with an object is score ** alpha * overlap ** beta. Each object
    gets those of its ``topk`` best aligned points that lie within it.

    MMDetection's `TaskAlignedAssigner` expects boxes and probabilities, and leaves the labels to
    the head. RTMDet's head passes points and logits, and uses ``max_overlaps`` of the result as
    soft labels and as weights of the boxes. Here they are the alignments, scaled for each object so
    that its highest one equals its highest overlap; background has 0.

    Args:
        topk: Candidates of each object.
        alpha: Exponent of the score.
        beta: Exponent of the overlap.
        iou_calculator: Config of the overlaps.
    """

    def __init__(self, topk: int = 13, alpha: float = 1.0, beta: float = 6.0,
                 iou_calculator: dict[str, Any] | None = None) -> None:
        super().__init__(topk, iou_calculator or dict(type='mmdet.BboxOverlaps2D'))
        self.alpha = alpha
        self.beta = beta

    def assign(self, pred_instances: InstanceData, gt_instances: InstanceData,
               gt_instances_ignore: InstanceData | None = None, **kwargs: Any) -> AssignResult:
        """Assign objects to points.

        Args:
            pred_instances: Has ``priors`` (N, 2 or more), which start with x and y in px,
                ``bboxes`` (N, 4) in px and ``scores`` (N, classes), logits.
            gt_instances: Has ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: Not used.

        Returns:
            AssignResult: Has ``gt_inds`` (N,), 0 for background, ``labels`` and ``max_overlaps``
            (N,), the soft labels.
        """
        points = pred_instances.priors[:, :2]
        boxes = InstanceData(priors=torch.cat((points, points), dim=1),
                             bboxes=pred_instances.bboxes.float(),
                             scores=pred_instances.scores.float().sigmoid())  # half would vanish
        result = super().assign(boxes, gt_instances, gt_instances_ignore,
                                alpha=self.alpha, beta=self.beta)
        assigned = result.gt_inds > 0
        objects = result.gt_inds[assigned] - 1
        overlaps = result.max_overlaps[assigned]  # with the objects that are assigned
        alignments = result.assign_metrics[assigned]
        highest = [values.new_zeros(len(gt_instances)).scatter_reduce(0, objects, values, 'amax')
                   for values in (alignments, overlaps)]
        result.max_overlaps = torch.zeros_like(result.assign_metrics)
        result.max_overlaps[assigned] = (
            alignments / highest[0][objects].clamp(min=torch.finfo(alignments.dtype).tiny)
            * highest[1][objects])
        return result
