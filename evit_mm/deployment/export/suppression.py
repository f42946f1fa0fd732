"""Suppression of boxes that overlap better ones, for a batch of images at once.

PyTorch has it for one image. An operator of our own says that it is one step of the graph, which
ONNX has for a batch (NonMaxSuppression), and so needs no loop over images.
"""

from collections.abc import Callable
from typing import Any

import torch
import torchvision  # noqa: F401  (registers the operators in torch.ops.torchvision)
from torch import Tensor, nn

__all__ = ['BestBoxes', 'Detections', 'onnx_translations']

Detections = tuple[Tensor, Tensor, Tensor]
"""Boxes (B, K, 4), their scores (B, K) and labels (B, K); the places after the last detection of an
image have score 0 and label -1."""

_ABSENT = -1.0
"""Score of a candidate that is none."""


@torch.library.custom_op('evit_mm::is_best_box', mutates_args=())
def is_best_box(boxes: Tensor, scores: Tensor, iou_threshold: float, count: int) -> Tensor:
    """Return which boxes are not suppressed by better ones.

    Args:
        boxes: Corners (x1, y1, x2, y2), float32, shape (B, N, 4).
        scores: float32, shape (B, N); a box with a negative one is ignored.
        iou_threshold: A box is suppressed if its IoU with a better one exceeds this value.
        count: Number of boxes to keep in each image, the best ones.

    Returns:
        Tensor: bool, shape (B, N).
    """
    is_best = torch.zeros_like(scores, dtype=torch.bool)
    # In float32 as everywhere else: the double 0.7 is smaller than the float32.
    threshold = torch.tensor(iou_threshold).item()
    for image in range(len(boxes)):
        present = (scores[image] >= 0).nonzero()[:, 0]
        kept = torch.ops.torchvision.nms(boxes[image, present], scores[image, present], threshold)
        is_best[image, present[kept[:count]]] = True
    return is_best


@is_best_box.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, count: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """Return what the operators of this module are in ONNX, for `torch.onnx.export`."""
    from onnxscript import BOOL
    from onnxscript import opset20 as op

    def translate(boxes: Any, scores: Any, iou_threshold: float, count: int) -> Any:
        def integers(*values: int) -> Any:
            return op.Constant(value_ints=values)

        # Rows of (image, class, box), of which the class is always 0.
        kept = op.NonMaxSuppression(
            boxes, op.Unsqueeze(scores, integers(1)), integers(count),
            op.Constant(value_floats=[iou_threshold]), op.Constant(value_floats=[_ABSENT / 2]))
        places = op.Gather(kept, integers(0, 2), axis=1)
        count_kept = op.Slice(op.Shape(places), integers(0), integers(1))
        nothing = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))
        ones = op.Expand(op.Constant(value_float=1.0), count_kept)
        return op.Cast(op.ScatterND(nothing, places, ones), to=BOOL.dtype)

    return {torch.ops.evit_mm.is_best_box.default: translate}


class BestBoxes(nn.Module):
    """The boxes of each image that no better one of their class overlaps, the best ones first.

    Args:
        iou_threshold: IoU above which a box suppresses another.
        count: Number of boxes of each image.
        min_size: Boxes that are not wider and higher than this many pixels are left out; a
            negative number leaves none out.
        class_agnostic: Whether boxes of any class suppress each other.
    """

    def __init__(self, iou_threshold: float, count: int, *, min_size: float = -1,
                 class_agnostic: bool = False) -> None:
        super().__init__()
        self.iou_threshold = float(iou_threshold)
        self.count = count
        self.min_size = min_size
        self.class_agnostic = class_agnostic

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor,
                is_present: Tensor) -> Detections:
        """Choose boxes.

        Args:
            boxes: Corners of the candidates, shape (B, N, 4).
            scores: Between 0 and 1, shape (B, N).
            labels: Their classes, int64, shape (B, N).
            is_present: Which of them are candidates, bool, shape (B, N).

        Returns:
            Detections: ``count`` for each image.
        """
        if self.min_size >= 0:
            extents = boxes[..., 2:] - boxes[..., :2]
            is_present = is_present & (extents > self.min_size).all(dim=2)
        scores = torch.where(is_present, scores, _ABSENT)
        apart = boxes
        if not self.class_agnostic:
            # Moved so far from each other that boxes of two classes never overlap.
            lowest = boxes.amin(dim=(1, 2), keepdim=True)
            largest = torch.where(is_present[..., None], boxes, lowest).amax(dim=(1, 2))
            apart = boxes + (labels.to(boxes.dtype) * (largest[:, None] + 1))[..., None]
        is_best = is_best_box(apart, scores, self.iou_threshold, self.count)
        scores = torch.where(is_best, scores, _ABSENT)
        scores, order = scores.topk(min(self.count, scores.shape[1]))
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        labels = labels.gather(1, order)
        is_chosen = scores >= 0
        missing = self.count - scores.shape[1]
        return (nn.functional.pad(torch.where(is_chosen[..., None], boxes, 0.0),
                                  (0, 0, 0, missing)),
                nn.functional.pad(torch.where(is_chosen, scores, 0.0), (0, missing)),
                nn.functional.pad(torch.where(is_chosen, labels, -1), (0, missing), value=-1))
