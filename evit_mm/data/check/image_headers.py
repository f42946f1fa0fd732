"""Sizes and formats of image files, read in parallel from their headers."""

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from PIL import ExifTags, Image
from tqdm import tqdm

from ..image_limits import too_many_pixels

__all__ = ['ImageHeader', 'read_header', 'read_headers']

_BATCH = 512  # files between two looks at the clock
_TRANSPOSING = range(5, 9)  # the values of EXIF's orientation that swap width and height


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file says.

    Attributes:
        width: Pixels per row, as stored.
        height: Rows, as stored.
        orientation: EXIF's orientation, 1 to 8; 1 if there is none.
        mode: Pillow's mode, such as 'RGB', 'L' or 'I;16'.
        format: Pillow's format, such as 'JPEG'.
        error: Why the file can't be read; the other attributes are then meaningless.
    """

    width: int = 0
    height: int = 0
    orientation: int = 1
    mode: str = ''
    format: str = ''
    error: str = ''

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self.width, self.height

    @property
    def displayed_size(self) -> tuple[int, int]:
        """Width and height as a viewer shows them, turned by EXIF's orientation."""
        return self.size[::-1] if self.orientation in _TRANSPOSING else self.size


def read_header(path: str) -> ImageHeader:
    """Read the header of an image file; a file that can't be read gives a header with an error."""
    try:
        with Image.open(path) as image:
            large = too_many_pixels(image.size)
            if large:  # before getexif(), which decodes a PNG file
                return ImageHeader(error=large)
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            return ImageHeader(image.width, image.height,
                               orientation if orientation in range(1, 9) else 1,
                               image.mode, image.format or '')
    except FileNotFoundError:
        return ImageHeader(error='there is no such file')
    except Image.UnidentifiedImageError:
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        return ImageHeader(error='it is empty' if empty else 'it is not an image')
    except Exception as error:  # each format's reader has errors of its own
        reason = ' '.join(str(error).partition(' <')[0].split()) or type(error).__name__
        return ImageHeader(error=reason)


def read_headers(paths: Iterable[str], *, seconds: float | None = None, title: str = '',
                 progress: bool = False) -> dict[str, ImageHeader]:
    """Read the headers of many image files in parallel.

    Args:
        paths: The files.
        seconds: Time after which the rest is left out; None reads all.
        title: Text in front of the progress bar.
        progress: Whether to show one.

    Returns:
        dict: The headers by path, of as many files as there was time for, from the first on.
    """
    names = list(dict.fromkeys(paths))
    if not names:
        return {}
    headers: dict[str, ImageHeader] = {}
    start = time.monotonic()
    # Reading a header waits for the disk most of the time.
    with _images_of_any_size(), \
            ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool, \
            tqdm(total=len(names), desc=title, unit='image', disable=not progress,
                 leave=False) as bar:
        for some in _batches(names, _BATCH):
            if seconds is not None and time.monotonic() - start > seconds:
                break
            headers.update(zip(some, pool.map(read_header, some), strict=True))
            bar.update(len(some))
    return headers


@contextmanager
def _images_of_any_size() -> Iterator[None]:
    """Let Pillow open images larger than its limit, as only their headers are read."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _batches(values: list[str], size: int) -> Iterator[list[str]]:
    iterator = iter(values)
    while some := list(islice(iterator, size)):
        yield some
