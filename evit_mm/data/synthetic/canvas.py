"""What all drawings share: random numbers, coverage of pixels, colours, textures, blending."""

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
_FINENESS: Final = 4  # drawn this many times finer, which gives soft edges and masks that fit them


def image_rng(drawing: int, seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one image; `drawing` tells shapes from scenes."""
    return np.random.default_rng([drawing, seed, _STREAMS[split], index])


def vary_size(rng: np.random.Generator, image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of about the requested area, wider or taller by up to a third."""
    stretch = float(np.sqrt(rng.uniform(1.0, 1.33)))
    if rng.random() < 0.5:
        stretch = 1 / stretch
    return round(image_size[0] / stretch), round(image_size[1] * stretch)


def coverage_of(polygon: FloatArray, height: int, width: int) -> FloatArray:
    """Share of each pixel that a polygon covers; polygon (N, 2) in px, result (H, W) in 0..1."""
    fine = np.zeros((height * _FINENESS, width * _FINENESS), dtype=np.uint8)
    shift = 4
    # OpenCV's coordinates name pixels' centres; ours the corner of the first pixel as 0.
    points = np.round((polygon * _FINENESS - 0.5) * 2**shift).astype(np.int32)
    cv2.fillPoly(fine, [points], 255, lineType=cv2.LINE_8, shift=shift)
    coarse = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    return coarse.astype(np.float32) / np.float32(255)


def colour(hue: float, saturation: float, value: float) -> FloatArray:
    """BGR in 0..255 from hue, saturation and value in 0..1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value)[::-1], np.float32) * 255


def clouds(rng: np.random.Generator, height: int, width: int, cells: int) -> FloatArray:
    """Smooth noise of standard deviation about 1 with `cells` grains across; (H, W)."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)


def ramp(height: int, width: int, angle: float) -> FloatArray:
    """Gradient from 0 to 1 across the image; (H, W)."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    slope = rows * np.float32(np.sin(angle)) + columns * np.float32(np.cos(angle))
    slope -= slope.min()
    return (slope / max(float(slope.max()), 1.0)).astype(np.float32)


def blend(canvas: FloatArray, coverage: FloatArray, paint: FloatArray) -> None:
    """Lay paint (H, W, 3) over the canvas, in place, where and as far as it covers (H, W)."""
    canvas += coverage[..., None] * (paint - canvas)


def finish(rng: np.random.Generator, canvas: FloatArray) -> ByteArray:
    """Camera noise, and 8 bits."""
    noisy = canvas + rng.normal(0, rng.uniform(2, 6), size=canvas.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)
