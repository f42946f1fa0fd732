"""From the outputs of an exported model to results in pixels of the image."""

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .preprocess import Prepared

__all__ = ['boxes_in_image', 'label_map_in_image', 'paste_masks']


def boxes_in_image(boxes: npt.NDArray[np.float32], image: Prepared) -> npt.NDArray[np.float32]:
    """Return corners (N, 4) in pixels of the image as it was."""
    factors = np.array([1 / scale for scale in image.scale], np.float32)
    return boxes * np.tile(factors, 2)


def label_map_in_image(label_map: npt.NDArray[Any], image: Prepared) -> npt.NDArray[Any]:
    """Return a label map (H, W) of a padded image in the size of the image as it was."""
    height, width = image.image_size
    part = np.ascontiguousarray(label_map[:height, :width])
    if image.image_size == image.shape:
        return part
    kind = np.uint8 if part.max(initial=0) < 256 else np.uint16
    return cv2.resize(part.astype(kind), image.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def paste_masks(masks: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32],
                shape: tuple[int, int], threshold: float) -> npt.NDArray[np.bool_]:
    """Return the pixels of an image that belong to each object.

    Args:
        masks: Probabilities in a grid over each box, shape (N, h, w); zero outside.
        boxes: Corners in pixels of the image, shape (N, 4).
        shape: Height and width of the image.
        threshold: Probability, interpolated at the centre of a pixel, from which it belongs to the
            object.

    Returns:
        Shape (N, *shape).
    """
    pasted = np.zeros((len(masks), *shape), bool)
    for mask, box, place in zip(masks, boxes, pasted, strict=True):
        x1, y1, x2, y2 = box
        if x2 <= x1 or y2 <= y1:
            continue
        left, right = _pixels(x1, x2, shape[1])
        top, bottom = _pixels(y1, y2, shape[0])
        rows = _weights(top, bottom, y1, y2, mask.shape[0])
        columns = _weights(left, right, x1, x2, mask.shape[1])
        place[top:bottom, left:right] = rows @ mask @ columns.T >= threshold
    return pasted


def _pixels(start: float, end: float, length: int) -> tuple[int, int]:
    """Return the range of pixels that a box can reach."""
    first = min(max(math.floor(start) - 1, 0), length)
    return first, max(min(math.ceil(end) + 1, length), first)


def _weights(first: int, last: int, start: np.float32, end: np.float32,
             cells: int) -> npt.NDArray[np.float32]:
    """Return the weight of each cell at the centre of each pixel, shape (last - first, cells)."""
    centers = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    places = (centers - start) / (end - start) * np.float32(cells) - np.float32(0.5)
    distance = np.abs(places[:, None] - np.arange(cells, dtype=np.float32))
    weights: npt.NDArray[np.float32] = np.maximum(1 - distance, 0)
    return weights
