"""Whether an exported model finds what the model in PyTorch finds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evit_runtime.metadata import Metadata
from evit_runtime.results import Result

from ...errors import UserError

__all__ = ['Difference', 'compare_features', 'compare_results', 'drawn_image']

_LIKE = {'fp32': 'the same up to rounding', 'fp16': 'almost the same', 'bf16': 'almost the same',
         'int8': 'similar'}
# Of the objects, how many may be another's; of label maps, how many pixels; of feature maps, how
# large the difference may be, relative to them.
_BOUNDS = {'fp32': (0.02, 0.001, 1e-3), 'fp16': (0.1, 0.02, 0.05), 'bf16': (0.2, 0.05, 0.2),
           'int8': (0.4, 0.2, 0.5)}
_BOX, _SCORE, _MASK = 0.5, 1e-3, 0.99  # pixels, and IoU
# How much a score may change, so that an object is in one list and beyond the end of the other; and
# the IoU from which two boxes are the same object.
_MARGIN = {'fp32': _SCORE, 'fp16': 0.01, 'bf16': 0.05, 'int8': 0.15}
_SAME = {'fp32': 0.9, 'fp16': 0.9, 'bf16': 0.7, 'int8': 0.5}


@dataclass(frozen=True)
class Difference:
    """How much an exported model differs from the model in PyTorch.

    Attributes:
        text: In words and numbers.
        is_within_bounds: Whether it is no more than the precision explains.
    """

    text: str
    is_within_bounds: bool


def compare_results(expected: Result, found: Result, metadata: Metadata) -> Difference:
    """Compare the result of an exported model with that of the model in PyTorch.

    Args:
        expected: The result of PyTorch, with all objects that the model finds.
        found: The same of the exported model.
        metadata: What the exported file says about itself.
    """
    if expected.label_map is not None:
        assert found.label_map is not None
        share = float((expected.label_map != found.label_map).mean())
        return Difference(f'{1 - share:.4%} of the pixels have the same class',
                          share <= _BOUNDS[metadata.precision][1])
    return _compare_objects(expected, found, metadata)


def compare_features(expected: list[npt.NDArray[Any]], found: list[npt.NDArray[Any]],
                     precision: str) -> Difference:
    """Compare the feature maps of an exported backbone with those of the one in PyTorch."""
    worst = max(float(np.linalg.norm(a - b) / np.linalg.norm(a))
                for a, b in zip(expected, found, strict=True))
    return Difference(f'the feature maps differ by {worst:.1e} of their norm',
                      worst <= _BOUNDS[precision][2])


def _compare_objects(expected: Result, found: Result, metadata: Metadata) -> Difference:
    precision = metadata.precision
    assert expected.boxes is not None and found.boxes is not None
    assert expected.scores is not None and found.scores is not None
    # Rounding moves objects across the end of a list, which a score or a number sets.
    ends = [float(each[-1]) for each in (expected.scores, found.scores)
            if len(each) == metadata.max_objects]
    lowest = max(metadata.score_threshold, *ends, 0.0) + _MARGIN[precision]
    pairs, missing = _match(expected, found, _SAME[precision])
    missing = [index for index in missing if expected.scores[index] > lowest]
    matched = {other for _, other in pairs}
    more = [index for index in range(len(found.boxes))
            if index not in matched and found.scores[index] > lowest]
    count = max(len(expected.boxes), len(found.boxes))
    if not count:
        return Difference('neither finds an object', True)
    first, second = (np.array(side, int) for side in zip(*pairs, strict=True)) if pairs else (
        np.zeros(0, int), np.zeros(0, int))
    box = float(np.abs(expected.boxes[first] - found.boxes[second]).max(initial=0))
    score = float(np.abs(expected.scores[first] - found.scores[second]).max(initial=0))
    text = (f'{len(expected.boxes)} objects, {len(missing)} missing, {len(more)} more; boxes '
            f'differ by up to {box:.3g} pixels, scores by {score:.1e}')
    share = (len(missing) + len(more)) / count
    is_close = box <= _BOX and score <= _SCORE
    if expected.masks is not None and found.masks is not None and len(first):
        overlap, is_like = _compare_masks(expected.masks[first], found.masks[second])
        text += f', masks have an IoU of at least {overlap:.4f}'
        is_close = is_close and is_like
    return Difference(text, share <= _BOUNDS[precision][0] and (is_close or precision != 'fp32'))


def _match(expected: Result, found: Result, min_iou: float
           ) -> tuple[list[tuple[int, int]], list[int]]:
    """Return pairs of the same object, and the objects that are not found."""
    assert expected.boxes is not None and found.boxes is not None
    assert expected.labels is not None and found.labels is not None
    pairs, missing = [], []
    free = np.ones(len(found.boxes), bool)
    for index, (box, label) in enumerate(zip(expected.boxes, expected.labels, strict=True)):
        overlaps = np.where(free & (found.labels == label), _ious(box, found.boxes), -1)
        best = int(overlaps.argmax()) if len(overlaps) else 0
        near = len(overlaps) and np.abs(found.boxes[best] - box).max() <= _BOX
        if len(overlaps) and overlaps[best] >= 0 and (overlaps[best] >= min_iou or near):
            pairs.append((index, best))
            free[best] = False
        else:
            missing.append(index)
    return pairs, missing


def _ious(box: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the IoU of a box with others, shape (N,)."""
    extents = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    intersection = np.maximum(extents, 0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - intersection
    return intersection / np.maximum(union, 1e-9)


def _compare_masks(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> tuple[float, bool]:
    """Return the lowest IoU of two masks, and whether all pairs are alike."""
    different = (expected != found).sum(axis=(1, 2))
    union = np.maximum((expected | found).sum(axis=(1, 2)), 1)
    overlaps = 1 - different / union
    # One pixel is more than a hundredth of a small mask.
    return float(overlaps.min()), bool(((overlaps >= _MASK) | (different <= 2)).all())


def require(difference: Difference, precision: str, what: str) -> None:
    """Check a difference.

    Raises:
        UserError: If it is beyond its bounds.
    """
    if not difference.is_within_bounds:
        raise UserError(f'{what} is not written, because it does not predict what the model in '
                        f'PyTorch does, and {precision} should be {_LIKE[precision]}: '
                        f'{difference.text}; --no-verify writes it all the same')


def drawn_image(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return a picture (H, W, 3) uint8 of shapes on a ground of clouds, to try a model on."""
    height, width = size
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / 64
    picture = 128 + 60 * np.sin(x[..., None] * rng.uniform(0.2, 1.5, 3) + rng.uniform(0, 6, 3))
    picture += 40 * np.cos(y[..., None] * rng.uniform(0.2, 1.5, 3))
    for _ in range(24):
        top, left = rng.integers(0, height), rng.integers(0, width)
        rows, columns = rng.integers(8, max(height // 2, 9)), rng.integers(8, max(width // 2, 9))
        picture[top:top + rows, left:left + columns] = rng.uniform(0, 255, 3)
    picture += rng.normal(0, 6, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)
