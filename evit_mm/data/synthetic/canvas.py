"""Tools for drawing: random numbers, coverage of pixels, colours, textures, blending."""

import colorsys
from typing import Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ['BoolArray', 'ByteArray', 'FloatArray', 'blend', 'clouds', 'colour', 'coverage_of',
           'finish', 'image_rng', 'ramp', 'vary_size']

FloatArray: TypeAlias = npt.NDArray[np.float32]
ByteArray: TypeAlias = npt.NDArray[np.uint8]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

_STREAMS: Final = {'train': 0, 'val': 1}
_OVERSAMPLING: Final = 4  # along each side; gives soft edges, and masks that fit them


def image_rng(drawing: int, seed: int, split: str, index: int) -> np.random.Generator:
    """Return the random generator of one image; ``drawing`` is 0 for shapes, 1 for scenes."""
    return np.random.default_rng([drawing, seed, _STREAMS[split], index])


def vary_size(rng: np.random.Generator, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return a (height, width) of about the same area, up to a third wider or taller."""
    stretch = float(np.sqrt(rng.uniform(1.0, 1.33)))
    if rng.random() < 0.5:
        stretch = 1 / stretch
    return round(image_size[0] / stretch), round(image_size[1] * stretch)


def coverage_of(polygon: FloatArray, height: int, width: int) -> FloatArray:
    """Compute the share of each pixel that a polygon covers.

    Args:
        polygon: Corners (N, 2) as x, y in px; the image's upper left corner is 0, 0.
        height: Height of the image in px.
        width: Width of the image in px.

    Returns:
        Shares (H, W) from 0 to 1.
    """
    fine = np.zeros((height * _OVERSAMPLING, width * _OVERSAMPLING), dtype=np.uint8)
    shift = 4
    # In OpenCV, 0 is the centre of the first pixel.
    points = np.round((polygon * _OVERSAMPLING - 0.5) * 2**shift).astype(np.int32)
    cv2.fillPoly(fine, [points], 255, lineType=cv2.LINE_8, shift=shift)
    coarse = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    return coarse.astype(np.float32) / np.float32(255)


def colour(hue: float, saturation: float, value: float) -> FloatArray:
    """Return BGR from 0 to 255 of a hue, saturation and value from 0 to 1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value)[::-1], np.float32) * 255


def clouds(rng: np.random.Generator, height: int, width: int, cells: int) -> FloatArray:
    """Return smooth noise (H, W) of standard deviation 1, with ``cells`` grains per side."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)


def ramp(height: int, width: int, angle: float) -> FloatArray:
    """Return a gradient (H, W) from 0 to 1 in the direction of ``angle`` (radians)."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    slope = rows * np.float32(np.sin(angle)) + columns * np.float32(np.cos(angle))
    slope -= slope.min()
    return (slope / max(float(slope.max()), 1.0)).astype(np.float32)


def blend(canvas: FloatArray, coverage: FloatArray, paint: FloatArray) -> None:
    """Blend paint (H, W, 3) into the canvas (H, W, 3), in place, by its coverage (H, W)."""
    canvas += coverage[..., None] * (paint - canvas)


def finish(rng: np.random.Generator, canvas: FloatArray) -> ByteArray:
    """Add camera noise, and round to 8 bits."""
    noisy = canvas + rng.normal(0, rng.uniform(2, 6), size=canvas.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)
