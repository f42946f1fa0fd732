"""A limit on the size of images, checked before they are decoded.

A file of a few hundred kilobytes can hold an image that takes gigabytes.
"""

import os
import warnings
from io import BytesIO

from PIL import Image

from ..errors import UserError

__all__ = ['max_pixels', 'too_many_pixels']

_VARIABLE = 'EVIT_MM_MAX_PIXELS'
_DEFAULT = 178_956_970  # Pillow's limit; an image of it takes 0.5 GB


def max_pixels() -> int:
    """Return the largest number of pixels; the environment variable EVIT_MM_MAX_PIXELS sets it.

    Raises:
        UserError: If the variable is not a number above 0.
    """
    text = os.environ.get(_VARIABLE, '')
    if not text:
        return _DEFAULT
    if not text.isascii() or not text.isdigit() or not int(text):
        raise UserError(f'{_VARIABLE}={text} is not a number of pixels')
    return int(text)


def too_many_pixels(image: bytes | tuple[int, int]) -> str:
    """Return why an image is too large to be decoded; empty if it is not.

    Args:
        image: The content of a file, of which only the header is read, or a width and height. What
            is not an image is left to its decoder.

    Raises:
        UserError: As in `max_pixels`.
    """
    if isinstance(image, tuple):
        size: tuple[int, int] | None = image
    else:
        size = _size(image)
    limit = max_pixels()
    if size is None or size[0] * size[1] <= limit:
        return ''
    return (f'it has {size[0]}x{size[1]} pixels, and more than {limit:,} are taken for an attack '
            f'or a mistake; {_VARIABLE} raises this limit')


def _size(content: bytes) -> tuple[int, int] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(BytesIO(content)) as image:
                return image.size
    except Image.DecompressionBombError:
        # Pillow's limit is a global of the process, which others may rely on.
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(BytesIO(content)) as image:
                return image.size
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    except Exception:  # each format's reader has errors of its own
        return None
