"""Images for detection and instance segmentation: coloured shapes on cluttered backgrounds."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from .canvas import (
    BoolArray,
    ByteArray,
    FloatArray,
    blend,
    clouds,
    colour,
    coverage_of,
    finish,
    image_rng,
    ramp,
    vary_size,
)

__all__ = ['SHAPE_CLASSES', 'Instance', 'draw_shapes']

SHAPE_CLASSES: Final = ('circle', 'square', 'triangle', 'star')
"""Names of the detection classes; the category ids in the files are 1 to 4, in this order."""

# Most shapes of a class have about the same hue, so that minutes of training give a detector that
# works; the others have any hue, so that a better detector has to learn the outlines.
_HUES: Final = (0.0, 0.28, 0.55, 0.8)
_CLASS_HUE_SHARE: Final = 0.75


@dataclass(frozen=True)
class Instance:
    """An annotated object, or crowd of objects.

    Attributes:
        category_id: Index into `SHAPE_CLASSES`, counting from 1.
        mask: Visible pixels, shape (H, W).
        crowd: True if the mask is a region full of shapes instead of one shape.
    """

    category_id: int
    mask: BoolArray
    crowd: bool = False


def draw_shapes(
    image_size: tuple[int, int], seed: int, split: str, index: int
) -> tuple[ByteArray, list[Instance]]:
    """Draw one image of the detection dataset.

    Every eighth image has a crowd region, and every eighth has tiny shapes, so that small datasets
    have both.

    Args:
        image_size: (height, width) in px around which the size varies.
        seed: The dataset's seed.
        split: ``'train'`` or ``'val'``.
        index: Index of the image in its split, from 0.

    Returns:
        BGR image of shape (H, W, 3), and its instances with visible masks of shape (H, W).
    """
    rng = image_rng(0, seed, split, index)
    height, width = vary_size(rng, image_size)
    canvas = _add_strokes(rng, _background(rng, height, width))
    crowd = _add_crowd(rng, canvas) if index % 8 == 2 else None
    taken = crowd.mask if crowd else np.zeros((height, width), dtype=bool)
    shapes = _add_shapes(rng, canvas, taken, int(rng.integers(1, 3 if crowd else 6)))
    if index % 8 == 1:
        shapes += _add_tiny(rng, canvas, shapes)
    return finish(rng, canvas), shapes + ([crowd] if crowd else [])


# --- background -------------------------------------------------------------------------------


def _background(rng: np.random.Generator, height: int, width: int) -> FloatArray:
    """Return a dull background (H, W, 3): a gradient, clouds and often a pattern."""
    ends = [colour(rng.random(), rng.uniform(0, 0.35), rng.uniform(0.25, 0.85))
            for _ in range(2)]
    share = ramp(height, width, rng.uniform(0, 2 * np.pi))[..., None]
    canvas = ends[0] * (1 - share) + ends[1] * share
    for cells, strength in ((4, 14), (11, 9), (29, 6)):
        canvas += strength * clouds(rng, height, width, cells)[..., None]
    pattern = rng.choice(['none', 'stripes', 'checks'])
    if pattern != 'none':
        waves = rng.uniform(6, 18)
        angle = rng.uniform(0, np.pi)
        wave = np.sin(ramp(height, width, angle) * 2 * np.pi * waves)
        if pattern == 'checks':
            wave = np.sign(wave * np.sin(ramp(height, width, angle + np.pi / 2)
                                         * 2 * np.pi * waves))
        canvas += rng.uniform(5, 14) * wave[..., None]
    return canvas.astype(np.float32)


def _add_strokes(rng: np.random.Generator, canvas: FloatArray) -> FloatArray:
    """Return the canvas with bent lines of any colour: edges that belong to no object."""
    height, width = canvas.shape[:2]
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(1, 6)):
        corners = rng.uniform(0, 1, size=(rng.integers(2, 5), 2)) * (width, height)
        line = colour(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.2, 1))
        thickness = max(1, round(min(height, width) * rng.uniform(0.005, 0.02)))
        cv2.polylines(pixels, [corners.astype(np.int32)], False, line.tolist(), thickness,
                      cv2.LINE_AA)
    return pixels.astype(np.float32)


# --- placement --------------------------------------------------------------------------------


def _add_crowd(rng: np.random.Generator, canvas: FloatArray) -> Instance:
    """Paint a cluster of small shapes of one class; return one instance over all of them."""
    height, width = canvas.shape[:2]
    category_id = _random_category(rng)
    radius = rng.uniform(0.15, 0.22) * min(height, width)
    member = radius * rng.uniform(0.35, 0.45)
    reach = radius + member
    centre = rng.uniform((reach, reach), (width - reach, height - reach))
    union = np.zeros((height, width), dtype=bool)
    # A sunflower's spiral is dense and hardly overlaps, so no position has to be rejected.
    count = int(rng.integers(9, 16))
    turn = rng.uniform(0, 2 * np.pi)
    for number in range(count):
        distance = radius * np.sqrt((number + 0.5) / count)
        angle = turn + number * np.pi * (3 - np.sqrt(5))
        place = centre + distance * np.array([np.cos(angle), np.sin(angle)])
        polygon = _outline(rng, category_id, member * rng.uniform(0.8, 1.2), place)
        coverage = coverage_of(polygon, height, width)
        _paint_shape(rng, canvas, coverage, category_id)
        union |= coverage > 0
    bridge = 2 * round(member * 0.5) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (bridge, bridge))
    # Without padding, closing would fill gaps between a shape and the border.
    closed = cv2.morphologyEx(np.pad(union.astype(np.uint8), bridge), cv2.MORPH_CLOSE, kernel)
    return Instance(category_id, closed[bridge:-bridge, bridge:-bridge] > 0, crowd=True)


def _add_shapes(
    rng: np.random.Generator, canvas: FloatArray, taken: BoolArray, count: int
) -> list[Instance]:
    """Paint up to ``count`` shapes, at least one, later ones over earlier ones.

    A position is rejected if it touches ``taken`` or would hide most of an earlier shape, of which
    only a sliver would be annotated.
    """
    height, width = taken.shape
    side = min(height, width)
    placed: list[tuple[int, BoolArray, int]] = []  # category, visible mask, whole area
    largest = 0.5
    while len(placed) < count:
        category_id = _random_category(rng)
        allowed = 0.5 if rng.random() < 0.5 else 0.0  # share of an earlier shape that may be hidden
        for _ in range(30):
            size = side * rng.uniform(min(0.2, largest / 2), largest)
            margin = size * (0.35 if rng.random() < 0.2 else 0.55)
            centre = rng.uniform((margin, margin), (width - margin, height - margin))
            polygon = _outline(rng, category_id, size, centre)
            coverage = coverage_of(polygon, height, width)
            mask = coverage >= 0.5
            if (not (mask & taken).any()
                    and mask.sum() > 0.6 * cv2.contourArea(polygon)
                    and all((mask & visible).sum() <= allowed * visible.sum()
                            and (visible & ~mask).sum() > 0.45 * area
                            for _, visible, area in placed)):
                _paint_shape(rng, canvas, coverage, category_id)
                placed = [(other, visible & ~mask, area) for other, visible, area in placed]
                placed.append((category_id, mask, int(mask.sum())))
                break
        else:
            if placed:
                break
            largest *= 0.8
    return [Instance(category_id, visible) for category_id, visible, _ in placed]


def _add_tiny(
    rng: np.random.Generator, canvas: FloatArray, shapes: list[Instance]
) -> list[Instance]:
    """Paint one shape of less than 8 px and one or two small ones, away from other shapes."""
    height, width = canvas.shape[:2]
    taken = np.any([shape.mask for shape in shapes], axis=0)
    added: list[Instance] = []
    sizes = [rng.uniform(4.5, 6.4), *rng.uniform(9, 24, size=rng.integers(1, 3))]
    for size in sizes:
        for _ in range(50):
            category_id = _random_category(rng)
            centre = rng.uniform((size, size), (width - size, height - size))
            coverage = coverage_of(_outline(rng, category_id, size, centre), height, width)
            mask = coverage >= 0.5
            if mask.any() and not (mask & taken).any():
                _paint_shape(rng, canvas, coverage, category_id)
                taken |= mask
                added.append(Instance(category_id, mask))
                break
    return added


# --- single shapes ----------------------------------------------------------------------------


def _random_category(rng: np.random.Generator) -> int:
    return int(rng.integers(1, len(SHAPE_CLASSES) + 1))


def _outline(
    rng: np.random.Generator, category_id: int, size: float, centre: npt.NDArray[np.float64]
) -> FloatArray:
    """Return the corners (N, 2) of a randomly turned shape that is about ``size`` px large."""
    name = SHAPE_CLASSES[category_id - 1]
    corners = {'circle': 72, 'square': 4, 'triangle': 3, 'star': 10}[name]
    angles = np.arange(corners) * (2 * np.pi / corners)
    radii = np.full(corners, 0.5 if name == 'circle' else 0.58)
    if name == 'star':
        radii[1::2] *= rng.uniform(0.4, 0.5)
    elif name == 'triangle':
        angles = angles + rng.uniform(-0.12, 0.12, size=3)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    turn = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(turn), np.sin(turn)
    rotation = np.array([[cosine, sine], [-sine, cosine]], dtype=np.float32)
    return (points.astype(np.float32) @ rotation * size + centre).astype(np.float32)


def _paint_shape(
    rng: np.random.Generator, canvas: FloatArray, coverage: FloatArray, category_id: int
) -> None:
    """Blend a shape into the canvas, in a vivid colour that contrasts with its background."""
    height, width = coverage.shape
    inside = coverage >= 0.5
    under = canvas[inside].mean(axis=0)
    class_hue = rng.random() < _CLASS_HUE_SHARE
    for _ in range(12):
        hue = rng.normal(_HUES[category_id - 1], 0.05) if class_hue else rng.random()
        vivid = colour(hue, rng.uniform(0.55, 1), rng.uniform(0.45, 1))
        if np.linalg.norm(vivid - under) > 110:
            break
    shade = 1 + rng.uniform(0, 0.25) * (ramp(height, width, rng.uniform(0, 2 * np.pi)) - 0.5)
    shade = shade + rng.uniform(0, 0.07) * clouds(rng, height, width, 23)
    if rng.random() < 0.4:
        depth = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)
        shade = np.where(depth < max(1.0, 0.08 * float(depth.max())), 0.55, 1) * shade
    blend(canvas, coverage, vivid * shade[..., None])
