"""Images of a folder, and their preprocessing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError

__all__ = ['Preprocessing', 'evenly_spaced', 'files_fingerprint', 'list_images', 'read_image']

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image: resize, center crop, normalise.

    Attributes:
        shape: Height and width of the model's input.
        crop: Share of the resized image's shorter side that the crop keeps.
        interpolation: ``'bicubic'`` or ``'bilinear'``, antialiased.
        mean: Per channel, on a scale of 0 to 255.
        std: Per channel, on a scale of 0 to 255.
        channels: Channel order of the model's input, ``'rgb'`` or ``'bgr'``.
    """

    shape: tuple[int, int] = (224, 224)
    crop: float = 0.875
    interpolation: str = 'bicubic'
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: str = 'rgb'

    def __str__(self) -> str:
        height, width = self._resized
        mean, std = (' '.join(f'{value:.1f}' for value in values)
                     for values in (self.mean, self.std))
        return (f'{self.interpolation} to cover {height}x{width}, cropped to {self.shape[0]}x'
                f'{self.shape[1]}, {self.channels} - ({mean}) / ({std})')

    @property
    def _resized(self) -> tuple[int, int]:
        return int(self.shape[0] / self.crop), int(self.shape[1] / self.crop)

    def __call__(self, image: Image.Image) -> Tensor:
        """Map an RGB image of any size to a tensor (3, height, width)."""
        height, width = self.shape
        min_height, min_width = self._resized
        resized = (max(min_width, image.width * min_height // image.height),
                   max(min_height, image.height * min_width // image.width))
        image = image.resize(resized, Image.Resampling[self.interpolation.upper()])
        left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
        pixels = np.array(image.crop((left, top, left + width, top + height)))
        if self.channels == 'bgr':
            pixels = pixels[..., ::-1]
        return torch.from_numpy(
            ((pixels - self.mean) / self.std).astype(np.float32).transpose(2, 0, 1))


def list_images(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted.

    Raises:
        UserError: If the folder is missing or has no images.
    """
    if not folder.is_dir():
        raise UserError(f'no such folder: {folder}')
    paths = sorted(path for path in folder.rglob('*')
                   if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f'no images in {folder} or its subfolders: name a folder with images '
                        f'({", ".join(_SUFFIXES)}) with --images')
    return paths


def evenly_spaced(paths: Sequence[Path], count: int) -> list[Path]:
    """Return ``count`` of the paths in their order, or all if there are fewer.

    They are evenly spaced, because the first images of a folder with one subfolder per class all
    belong to one class.
    """
    count = min(count, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Return a digest of the files' names, sizes and modification times.

    The files are not read: for many images that would take as long as the analysis.
    """
    digest = blake2b(digest_size=16)
    for path in paths:
        try:
            status = path.stat()
            state = f'{status.st_size} {status.st_mtime_ns}'
        except OSError:  # missing, or not a local file: reading it reports the error
            state = 'unknown'
        digest.update(f'{path}\n{state}\n'.encode(errors='surrogateescape'))
    return digest.hexdigest()


def read_image(path: Path) -> Image.Image:
    """Read an image as RGB.

    Raises:
        UserError: If the file can't be read, or is truncated.
    """
    try:
        with Image.open(path) as image:
            return image.convert('RGB')
    # The exception depends on the format.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f'can\'t read the image {path}: {" ".join(str(error).split())}'
                        ) from error
