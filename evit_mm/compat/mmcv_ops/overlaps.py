"""Overlaps of axis-aligned, rotated and quadrilateral boxes."""

import torch
from torch import Tensor

from .precision import widen, working_dtype

__all__ = ['OPERATORS']

_IOU = 0  # the value of mode for intersection over union; 1 is over the first box
_MAX_PAIRS = 2 ** 16  # whose polygons are intersected at once


def bbox_overlaps(
    bboxes1: Tensor,
    bboxes2: Tensor,
    ious: Tensor,
    mode: int,
    aligned: bool,
    offset: int,
) -> None:
    """Compute the overlaps of boxes.

    Args:
        bboxes1: Corners ``(x1, y1, x2, y2)``, shape (M, 4).
        bboxes2: Shape (N, 4).
        ious: Written in place, shape (M, N), or (M,) if ``aligned``; 0 where the divisor is 0.
        mode: 0 for intersection over union, 1 for intersection over the area of the first box.
        aligned: Whether boxes are compared one by one; then M is N.
        offset: Added to every width and height: 1 if corners include their pixels, else 0.
    """
    if ious.numel() == 0:
        return
    dtype = working_dtype(torch.promote_types(bboxes1.dtype, bboxes2.dtype))
    first, second = bboxes1.to(dtype), bboxes2.to(dtype)
    areas1 = (first[:, 2:] - first[:, :2] + offset).prod(1)
    areas2 = (second[:, 2:] - second[:, :2] + offset).prod(1)
    if not aligned:
        first, areas1 = first[:, None], areas1[:, None]
    size = first[..., 2:].minimum(second[:, 2:]) - first[..., :2].maximum(second[:, :2]) + offset
    intersection = size.clamp(min=0).prod(-1)
    ious.copy_(_ratio(intersection, areas1, areas2, mode))


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int,
                    aligned: bool) -> None:
    """Compute the overlaps of rotated boxes.

    Args:
        boxes1: ``(center x, center y, width, height, angle in radians)``, shape (M, 5); positive
            angles turn clockwise, y pointing down.
        boxes2: Shape (N, 5).
        ious: Written in place, shape (M * N,), or (M,) if ``aligned``; 0 for boxes without area.
        mode_flag: 0 for intersection over union, 1 for intersection over the area of the first.
        aligned: Whether boxes are compared one by one; then M is N.
    """
    ious.copy_(_polygon_overlaps(_corners(boxes1), _corners(boxes2), mode_flag,
                                 aligned).view_as(ious))


def box_iou_quadri(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int,
                   aligned: bool) -> None:
    """Compute the overlaps of convex quadrilaterals.

    Args:
        boxes1: Corners in either order around the box, ``(x1, y1, ..., x4, y4)``, shape (M, 8).
        boxes2: Shape (N, 8).
        ious: Written in place, shape (M * N,), or (M,) if ``aligned``; 0 for boxes without area.
        mode_flag: 0 for intersection over union, 1 for intersection over the area of the first.
        aligned: Whether boxes are compared one by one; then M is N.
    """
    ious.copy_(_polygon_overlaps(boxes1.unflatten(1, (4, 2)), boxes2.unflatten(1, (4, 2)),
                                 mode_flag, aligned).view_as(ious))


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Suppress rotated boxes that overlap better ones.

    Args:
        dets: Boxes as in `box_iou_rotated`, shape (N, 5), or (N, 6) with labels.
        scores: Shape (N,).
        order: Indices by descending score, shape (N,).
        dets_sorted: ``dets`` in this order.
        labels: Not used; ``dets`` has them.
        iou_threshold: A box is suppressed from this IoU with a better one on.
        multi_label: Whether only boxes of the same label suppress each other.

    Returns:
        Indices of the boxes kept, best score first, int64, shape (K,).
    """
    return _suppress(_corners(dets_sorted[:, :5]), dets_sorted[:, 5] if multi_label else None,
                     order, iou_threshold)


def nms_quadri(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Suppress quadrilaterals that overlap better ones.

    Args:
        dets: Boxes as in `box_iou_quadri`, shape (N, 8), or (N, 9) with labels.
        scores: Shape (N,).
        order: Indices by descending score, shape (N,).
        dets_sorted: ``dets`` in this order.
        iou_threshold: A box is suppressed from this IoU with a better one on.
        multi_label: Whether only boxes of the same label suppress each other.

    Returns:
        Indices of the boxes kept, best score first, int64, shape (K,).
    """
    return _suppress(dets_sorted[:, :8].unflatten(1, (4, 2)),
                     dets_sorted[:, 8] if multi_label else None, order, iou_threshold)


def _suppress(corners: Tensor, labels: Tensor | None, order: Tensor,
              iou_threshold: float) -> Tensor:
    """Return which boxes are kept, as indices of ``order``'s target.

    Args:
        corners: By descending score, shape (N, 4, 2).
        labels: Only boxes of the same label suppress each other, shape (N,).
        order: The original index of each box, shape (N,).
        iou_threshold: A box is suppressed from this IoU with a better one on.
    """
    left = torch.arange(len(corners), device=corners.device)
    kept = []
    while len(left):
        best, left = left[:1], left[1:]
        kept.append(best)
        overlaps = _polygon_overlaps(corners[best], corners[left], _IOU, False)[0]
        is_suppressed = overlaps >= overlaps.new_tensor(iou_threshold)
        if labels is not None:
            is_suppressed &= labels[left] == labels[best]
        left = left[~is_suppressed]
    return order[torch.cat(kept)] if kept else order[:0]


def _corners(boxes: Tensor) -> Tensor:
    """Return the corners of rotated boxes, shape (N, 4, 2)."""
    center, size, angle = widen(boxes).split((2, 2, 1), dim=1)
    signs = center.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    x, y = (signs * size[:, None]).unbind(2)
    cos, sin = angle.cos(), angle.sin()
    return center[:, None] + torch.stack((x * cos - y * sin, x * sin + y * cos), dim=2)


def _polygon_overlaps(first: Tensor, second: Tensor, mode: int, aligned: bool) -> Tensor:
    """Return the overlaps of convex quadrilaterals, shape (M, N), or (M,) if ``aligned``.

    Args:
        first: Corners, shape (M, 4, 2).
        second: Shape (N, 4, 2).
        mode: 0 for intersection over union, 1 for intersection over the area of the first.
        aligned: Whether they are compared one by one.
    """
    # Differences of products of coordinates cancel, so that float32 isn't enough.
    first, second = _clockwise(first.double()), _clockwise(second.double())
    if aligned:
        return _ratio(_intersections(first, second), _areas(first), _areas(second),
                      mode).to(torch.float64)
    intersections = first.new_zeros(len(first) * len(second))
    for pairs in torch.arange(len(intersections), device=first.device).split(_MAX_PAIRS):
        rows, columns = pairs // len(second), pairs % len(second)
        intersections[pairs] = _intersections(first[rows], second[columns])
    return _ratio(intersections.view(len(first), len(second)), _areas(first)[:, None],
                  _areas(second), mode)


def _ratio(intersection: Tensor, areas1: Tensor, areas2: Tensor, mode: int) -> Tensor:
    divisor = areas1 + areas2 - intersection if mode == _IOU else areas1
    divisor = divisor.expand_as(intersection)
    return torch.where(divisor != 0, intersection / torch.where(divisor != 0, divisor, 1.0), 0.0)


def _intersections(first: Tensor, second: Tensor) -> Tensor:
    """Return the areas in which pairs of clockwise convex quadrilaterals intersect, shape (P,).

    Their corners are the corners of each inside the other, and the points at which edges cross.
    """
    # The middle between both as the origin: products of large coordinates lose digits.
    middle = (first.mean(1, keepdim=True) + second.mean(1, keepdim=True)) / 2
    first, second = first - middle, second - middle
    scale = torch.cat((first, second), dim=1).abs().amax((1, 2))
    tolerance = 1e-12 * scale.square()[:, None, None] + 1e-300
    edges1, edges2 = (corners.roll(-1, 1) - corners for corners in (first, second))
    # Sides of the edges of one on which the corners of the other are, (P, corner, edge).
    inside1 = (_cross(edges2[:, None], first[:, :, None] - second[:, None]) >= -tolerance).all(2)
    inside2 = (_cross(edges1[:, None], second[:, :, None] - first[:, None]) >= -tolerance).all(2)
    # Crossings of the edges (P, edge of the first, edge of the second).
    between = second[:, None] - first[:, :, None]
    turn = _cross(edges1[:, :, None], edges2[:, None])
    crosses = turn.abs() > tolerance
    safe = torch.where(crosses, turn, 1.0)
    along1 = _cross(between, edges2[:, None]) / safe
    along2 = _cross(between, edges1[:, :, None]) / safe
    crosses &= (along1 >= 0) & (along1 <= 1) & (along2 >= 0) & (along2 <= 1)
    crossings = first[:, :, None] + along1[..., None] * edges1[:, :, None]
    points = torch.cat((first, second, crossings.flatten(1, 2)), dim=1)
    valid = torch.cat((inside1, inside2, crosses.flatten(1)), dim=1)
    # Around their center the points are in order of their angles. Invalid ones repeat a valid one,
    # and add no area.
    some = points.gather(1, valid.long().argmax(1)[:, None, None].expand(-1, 1, 2))
    points = torch.where(valid[..., None], points, some)
    count = valid.sum(1).clamp(min=1)[:, None]
    center = (points * valid[..., None]).sum(1) / count
    points = points - center[:, None]
    angles = torch.atan2(points[..., 1], points[..., 0])
    points = points.gather(1, angles.argsort(1)[..., None].expand_as(points))
    areas = _areas(points)
    return torch.where(valid.any(1), areas, 0.0)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _areas(corners: Tensor) -> Tensor:
    """Return the areas of clockwise polygons (y pointing down), shape (P,)."""
    start = corners - corners[:, :1]
    return _cross(start, start.roll(-1, 1)).sum(1) / 2


def _clockwise(corners: Tensor) -> Tensor:
    """Return quadrilaterals with their corners in clockwise order (y pointing down)."""
    return torch.where((_areas(corners) < 0)[:, None, None], corners.flip(1), corners)


OPERATORS = (bbox_overlaps, box_iou_rotated, box_iou_quadri, nms_rotated, nms_quadri)
