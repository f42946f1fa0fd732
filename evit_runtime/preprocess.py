"""Images as an exported model takes them, resized and padded as by MMDetection's pipelines."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ['Prepared', 'Preprocessing', 'stack']

_INTERPOLATION = {
    'nearest': cv2.INTER_NEAREST, 'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA, 'lanczos': cv2.INTER_LANCZOS4}


@dataclass(frozen=True)
class Prepared:
    """An image that was resized and padded.

    Attributes:
        pixels: (H, W, 3) uint8, BGR.
        size: Height and width of the part that the model takes for the image, the upper left one.
        image_size: Height and width of the resized image inside it.
        scale: What x and y were multiplied by.
        shape: Height and width of the image as it was.
    """

    pixels: npt.NDArray[np.uint8]
    size: tuple[int, int]
    image_size: tuple[int, int]
    scale: tuple[float, float]
    shape: tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """How images are resized and padded.

    Attributes:
        scale: Width and height to resize to; None leaves images as they are.
        keep_ratio: Resize to the largest size whose longer and shorter side fit into those of
            ``scale``.
        interpolation: ``'nearest'``, ``'bilinear'``, ``'bicubic'``, ``'area'`` or ``'lanczos'``.
        pad_size: Width and height to pad to, right and below, as a part of the image; None for
            none.
        pad_divisor: Or a number that width and height are padded to multiples of.
        pad_value: Blue, green and red of this padding.
        size: Height and width of a file of a fixed size, which images are made to fit into.
        divisor: Of a file of any size, the number that height and width of a batch are padded to
            multiples of.
        fill: Blue, green and red of the padding that is no part of the image.
    """

    scale: tuple[int, int] | None = None
    keep_ratio: bool = True
    interpolation: str = 'bilinear'
    pad_size: tuple[int, int] | None = None
    pad_divisor: int | None = None
    pad_value: tuple[int, int, int] = (0, 0, 0)
    size: tuple[int, int] | None = None
    divisor: int = 1
    fill: tuple[int, int, int] = (0, 0, 0)

    def __call__(self, image: npt.NDArray[np.uint8]) -> Prepared:
        """Resize and pad an image (H, W, 3) uint8, BGR, of any size."""
        height, width = image.shape[:2]
        new_width, new_height = self._resized(width, height)
        pixels = image
        if (new_width, new_height) != (width, height):
            pixels = cv2.resize(image, (new_width, new_height),
                                interpolation=_INTERPOLATION[self.interpolation])
        full_width, full_height = self.pad_size or (new_width, new_height)
        if self.pad_divisor:
            full_width, full_height = (_round_up(length, self.pad_divisor)
                                       for length in (new_width, new_height))
        full_width, full_height = max(full_width, new_width), max(full_height, new_height)
        pixels = _pad(pixels, full_height, full_width, self.pad_value)
        if self.size:
            full_height, full_width = (min(full, fixed) for full, fixed in zip(
                (full_height, full_width), self.size, strict=True))
            rows, columns = self.size
        else:
            rows, columns = (_round_up(length, self.divisor)
                             for length in (full_height, full_width))
        return Prepared(_pad(pixels[:rows, :columns], rows, columns, self.fill),
                        (full_height, full_width), (new_height, new_width),
                        (new_width / width, new_height / height), (height, width))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of a resized image."""
        if self.scale is None and self.size is None:
            return width, height
        if not self.keep_ratio and self.scale is not None:
            return self.scale
        factors = []
        if self.scale is not None:
            factors += [max(self.scale) / max(width, height), min(self.scale) / min(width, height)]
        if self.size:
            factors += [self.size[1] / width, self.size[0] / height]
        factor = min(factors)
        resized = int(width * factor + 0.5), int(height * factor + 0.5)
        return max(resized[0], 1), max(resized[1], 1)


def stack(images: list[Prepared], fill: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Return images as one array (B, H, W, 3), padded right and below to the largest."""
    rows, columns = (max(image.pixels.shape[axis] for image in images) for axis in (0, 1))
    return np.stack([_pad(image.pixels, rows, columns, fill) for image in images])


def _pad(pixels: npt.NDArray[np.uint8], height: int, width: int,
         value: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    if pixels.shape[:2] == (height, width):
        return pixels
    padded = np.empty((height, width, 3), np.uint8)
    padded[:] = value
    padded[:pixels.shape[0], :pixels.shape[1]] = pixels
    return padded


def _round_up(length: int, divisor: int) -> int:
    return -(-length // divisor) * divisor
