"""Images of a folder, and how they become a model's input."""

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
    """How images become a model's input: covered, cropped in the middle, normalised.

    Attributes:
        shape: Height and width of the input.
        crop: Share of the scaled image's shorter side that the crop keeps.
        interpolation: ``'bicubic'`` or ``'bilinear'``, antialiased.
        mean: Per channel, of 0 to 255.
        std: Per channel, of 0 to 255.
        channels: ``'rgb'`` or ``'bgr'``, the order in which the model takes them.
    """

    shape: tuple[int, int] = (224, 224)
    crop: float = 0.875
    interpolation: str = 'bicubic'
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: str = 'rgb'

    def __str__(self) -> str:
        height, width = self._scaled
        mean, std = (' '.join(f'{value:.1f}' for value in values)
                     for values in (self.mean, self.std))
        return (f'{self.interpolation} to cover {height}x{width}, cropped to {self.shape[0]}x'
                f'{self.shape[1]}, {self.channels} - ({mean}) / ({std})')

    @property
    def _scaled(self) -> tuple[int, int]:
        return int(self.shape[0] / self.crop), int(self.shape[1] / self.crop)

    def __call__(self, image: Image.Image) -> Tensor:
        """Map an RGB image of any size to (3, height, width)."""
        height, width = self.shape
        cover_height, cover_width = self._scaled
        scaled = (max(cover_width, image.width * cover_height // image.height),
                  max(cover_height, image.height * cover_width // image.width))
        image = image.resize(scaled, Image.Resampling[self.interpolation.upper()])
        left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
        pixels = np.array(image.crop((left, top, left + width, top + height)))
        if self.channels == 'bgr':
            pixels = pixels[..., ::-1]
        return torch.from_numpy(
            ((pixels - self.mean) / self.std).astype(np.float32).transpose(2, 0, 1))


def list_images(folder: Path) -> list[Path]:
    """The images below a folder, sorted.

    Raises:
        UserError: If there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f'--images {folder}: no such folder')
    found = sorted(path for path in folder.rglob('*')
                   if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not found:
        raise UserError(f'--images {folder}: there is no image ({", ".join(_SUFFIXES)}) in it or '
                        'below it')
    return found


def evenly_spaced(paths: Sequence[Path], count: int) -> list[Path]:
    """``count`` of the paths in their order, or all where there are fewer.

    Evenly, because the first images of a folder of classes are of one class.
    """
    count = min(count, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Tells files apart by their names, sizes and times of change.

    They are not read: of many images that would take as long as the work that it spares.
    """
    digest = blake2b(digest_size=16)
    for path in paths:
        try:
            found = path.stat()
            state = f'{found.st_size} {found.st_mtime_ns}'
        except OSError:  # not there, or not on this disk: whoever reads it will tell
            state = 'unknown'
        digest.update(f'{path}\n{state}\n'.encode(errors='surrogateescape'))
    return digest.hexdigest()


def read_image(path: Path) -> Image.Image:
    """An image as RGB.

    Raises:
        UserError: If it can't be read, or only in part.
    """
    try:
        with Image.open(path) as image:
            return image.convert('RGB')
    # What Pillow raises depends on the format.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f'the image {path} can\'t be read: {" ".join(str(error).split())}'
                        ) from error
