"""Suppression of boxes that overlap better ones."""

import numpy as np
import torch
import torchvision  # noqa: F401  (registers the operators in torch.ops.torchvision)
from torch import Tensor

from .precision import widen, working_dtype

__all__ = ['OPERATORS']

_LINEAR, _GAUSSIAN = 1, 2  # methods of soft NMS


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Suppress boxes that overlap better ones.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)``, shape (N, 4).
        scores: Shape (N,); may differ from ``boxes`` in dtype.
        iou_threshold: A box is suppressed if its IoU with a better one exceeds this value.
        offset: Added to every width and height: 1 if corners include their pixels, else 0.

    Returns:
        Indices of the boxes kept, best score first, int64, shape (K,).
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    dtype = working_dtype(torch.promote_types(boxes.dtype, scores.dtype))
    corners = boxes.to(dtype)
    if offset:
        # Widths, heights and overlaps all grow by the offset when the far corners move.
        corners = torch.cat((corners[:, :2], corners[:, 2:] + offset), dim=1)
    if dtype == torch.float32:
        # torchvision compares a float32 IoU with a double threshold on a CPU. For 0.6, whose
        # float32 is larger, that drops boxes at exactly the threshold; mmcv rounds the threshold,
        # too, and keeps them.
        iou_threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    keep: Tensor = torch.ops.torchvision.nms(corners, scores.to(dtype), iou_threshold)
    return keep


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap better ones, and drop those below a minimum.

    Like mmcv's, it runs on a CPU: each step depends on the one before. Boxes of equal scores have
    the same order as mmcv's.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)``, shape (N, 4).
        scores: Shape (N,).
        dets: The boxes kept and their new scores are written into the first K rows, shape (N, 5).
        iou_threshold: IoU from which on methods 0 and 1 change a score.
        sigma: Divisor of the squared IoU in method 2.
        min_score: A box whose score falls below is dropped.
        method: What a score is multiplied by: 0 by 0, 1 by ``1 - IoU``, 2 by
            ``exp(-IoU ** 2 / sigma)``.
        offset: Added to every width and height: 1 if corners include their pixels, else 0.

    Returns:
        Indices of the boxes kept, int64, shape (K,).
    """
    corners = widen(boxes).cpu().numpy()
    remaining = scores.to(working_dtype(boxes.dtype)).cpu().numpy().copy()
    number = corners.dtype.type
    order = np.arange(len(corners))  # of the boxes left; the first `step` are chosen
    step = 0
    while step < len(order):
        best = step + int(remaining[order[step:]].argmax())
        order[[step, best]] = order[[best, step]]
        step += 1
        others = order[step:]
        overlaps = _overlaps(corners[order[step - 1]], corners[others], offset)
        if method == _GAUSSIAN:
            factors = np.exp(-(overlaps * overlaps) / number(sigma))
        else:
            factors = np.where(overlaps >= number(iou_threshold),
                               1 - overlaps if method == _LINEAR else number(0), number(1))
        remaining[others] *= factors
        is_dropped = remaining[others] < number(min_score)
        # mmcv fills the place of each box dropped with the last one left.
        count = int((~is_dropped).sum())
        kept = others[:count].copy()
        kept[is_dropped[:count]] = others[count:][~is_dropped[count:]][::-1]
        order = np.concatenate((order[:step], kept))
    indices = torch.from_numpy(order).to(boxes.device)
    dets[:len(indices), :4] = boxes[indices].to(dets.dtype)
    dets[:len(indices), 4] = torch.from_numpy(remaining[order]).to(dets)
    return indices


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group boxes with those that they suppress. Like mmcv's, it runs on a CPU.

    Args:
        dets: Corners and scores ``(x1, y1, x2, y2, score)``, shape (N, 5).
        iou_threshold: A box is suppressed from this IoU with a better one on.

    Returns:
        The indices of each group, by descending score; groups by their first one.
    """
    corners = widen(dets[:, :4]).cpu().numpy()
    threshold = corners.dtype.type(iou_threshold)
    order = dets[:, 4].sort(descending=True, stable=True).indices.cpu().numpy()
    groups = []
    while len(order):
        best, others = order[0], order[1:]
        is_matched = _overlaps(corners[best], corners[others], 0) >= threshold
        groups.append([int(best), *others[is_matched].tolist()])
        order = others[~is_matched]
    return groups


def _overlaps(box: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """Return the IoU of a box with others, shape (N,); 0 where both have no area."""
    size = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + offset
    intersection = np.maximum(size, 0).prod(1)
    areas = (others[:, 2:] - others[:, :2] + offset).prod(1)
    union = (box[2:] - box[:2] + offset).prod() + areas - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union != 0)


OPERATORS = (nms, softnms, nms_match)
