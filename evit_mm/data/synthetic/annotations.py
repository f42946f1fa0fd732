"""COCO annotations of masks: polygons, or run lengths for a crowd."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .canvas import BoolArray
from .shapes import Instance

__all__ = ['coco_annotation', 'mask_to_polygons']


def coco_annotation(instance: Instance, image_id: int, annotation_id: int) -> dict[str, Any]:
    """Return an instance's entry in the list ``annotations`` of a COCO file."""
    mask = instance.mask
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        'segmentation': _run_lengths(mask) if instance.crowd else mask_to_polygons(mask),
        'area': float(mask.sum()),
        'iscrowd': int(instance.crowd),
        'image_id': image_id,
        'bbox': [float(left), float(top), float(columns[-1] + 1 - left),
                 float(rows[-1] + 1 - top)],
        'category_id': instance.category_id,
        'id': annotation_id,
    }


def mask_to_polygons(mask: BoolArray) -> list[list[float]]:
    """Trace the pixels' edges, so that rasterising the polygons gives exactly the mask.

    COCO takes the union of the polygons, so they can't describe a hole: a region with a hole is
    split through it.

    Args:
        mask: Shape (H, W).

    Returns:
        A flat list x, y, x, y, ... in px for each polygon.
    """
    polygons: list[list[float]] = []
    # At twice the size, a pixel's left and upper edges have even coordinates, the others odd ones.
    doubled = np.kron(mask, np.ones((2, 2), dtype=bool)).astype(np.uint8)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for number, contour in enumerate(contours):
        _, _, child, parent = hierarchy[0][number]
        if parent >= 0:
            continue
        if child < 0:
            polygons.append(_corners((contour[:, 0, :] + 1) // 2))
            continue
        part = np.zeros_like(doubled)
        cv2.drawContours(part, contours, number, 1, cv2.FILLED, hierarchy=hierarchy)
        whole = (part[::2, ::2] > 0) & mask
        hole = contours[child][:, 0, 0]
        middle = (int(hole.min()) + int(hole.max())) // 4
        for half in (slice(None, middle), slice(middle, None)):
            piece = np.zeros_like(mask)
            piece[:, half] = whole[:, half]
            polygons += mask_to_polygons(piece)
    return polygons


def _corners(points: npt.NDArray[Any]) -> list[float]:
    """Return the corners of a closed polygon (N, 2) as a flat list x, y, x, y, ..."""
    moved = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
    before, after = moved - np.roll(moved, 1, axis=0), np.roll(moved, -1, axis=0) - moved
    corner = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    # Floats, because MMDetection scales polygons in place.
    return [float(value) for value in moved[corner].ravel()]


def _run_lengths(mask: BoolArray) -> dict[str, list[int]]:
    """Return COCO's uncompressed RLE: lengths of runs of 0 and 1 in turn, column by column."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes.tolist(), flat.size]).tolist()
    return {'counts': [0, *counts] if flat[0] else counts, 'size': list(mask.shape)}
