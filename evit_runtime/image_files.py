"""Images read from files and from memory, with checks of what OpenCV reads without a word.

OpenCV gives half a picture for a file that was cut off, and decodes one of any size.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from .errors import UserError

__all__ = ['MAX_PIXELS', 'ImageHeader', 'decode_image', 'has_several_frames',
           'images_of_any_size', 'is_cut_off', 'read_header', 'read_image']

MAX_PIXELS = 100_000_000
"""The most pixels of an image that is decoded, unless a caller asks for more."""

_TRANSPOSING = range(5, 9)  # the values of EXIF's orientation that swap width and height
# In the compressed pixels of a JPEG file, 0xFF stands before 0 or the number of a restart.
_JPEG_MARKER = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
_bomb_check = threading.Lock()
_bomb_check_users: list[int | None] = []  # for each, Pillow's limit as it was found


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


def read_header(file: str | os.PathLike[str] | IO[bytes], *, orientation: bool = True,
                refuse: Callable[[tuple[int, int]], str] | None = None) -> ImageHeader:
    """Read the header of an image file; a file that can't be read gives a header with an error.

    Args:
        file: A path, or a file that is open.
        orientation: Read EXIF's orientation too, for which Pillow decodes the whole of a PNG file.
        refuse: Called with width and height before that; a text that it returns is the error.
    """
    try:
        with Image.open(file) as image:
            reason = refuse(image.size) if refuse is not None else ''
            if reason:
                return ImageHeader(error=reason)
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) if orientation else 1
            return ImageHeader(image.width, image.height, turned if turned in range(1, 9) else 1,
                               image.mode, image.format or '')
    except FileNotFoundError:
        return ImageHeader(error='there is no such file')
    except Image.UnidentifiedImageError:
        empty = isinstance(file, str | os.PathLike) and os.path.isfile(file) \
            and os.path.getsize(file) == 0
        return ImageHeader(error='it is empty' if empty else 'it is not an image')
    except Exception as error:  # each format's reader has errors of its own
        return ImageHeader(error=_reason(error))


@contextmanager
def images_of_any_size() -> Iterator[None]:
    """Let Pillow open images larger than its limit, to read their headers; in any thread."""
    with _bomb_check:
        _bomb_check_users.append(Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _bomb_check:
            if len(_bomb_check_users) == 1:
                Image.MAX_IMAGE_PIXELS = _bomb_check_users[0]
            _bomb_check_users.pop()


def read_image(image: Any, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Return an image as an array (H, W, 3) uint8, BGR.

    Args:
        image: A path, an array (H, W, 3) uint8, BGR, which is returned as it is, or a Pillow image.
        max_pixels: The most pixels of a file that is decoded.

    Raises:
        UserError: If it can't be read, is too large, or is something else.
    """
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return image
        raise UserError('an array is (height, width, 3) of type uint8 in the order BGR, as '
                        f'cv2.imread returns it, but got {image.shape} of type {image.dtype}')
    if isinstance(image, Image.Image):
        return _from_pillow(image)
    if not isinstance(image, str | os.PathLike):
        raise UserError('an image is a path, an array or a Pillow image, but got a '
                        f'{type(image).__name__}')
    path = os.fspath(image)
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except FileNotFoundError as error:
        raise UserError(f'no such file: {path}') from error
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'can\'t read the image {path}: {reason}') from error
    return decode_image(content, path, max_pixels=max_pixels)


def decode_image(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS
                 ) -> npt.NDArray[np.uint8]:
    """Return the content of an image file as an array (H, W, 3) uint8, BGR.

    It is what mmcv's LoadImageFromFile gives: turned by EXIF's orientation, grey repeated in three
    channels, 16 bits shortened to 8, without transparency, and the first of several frames.

    Args:
        content: The content of the file.
        name: What messages call it.
        max_pixels: The most pixels of an image that is decoded.

    Raises:
        UserError: If it is not an image, was cut off, or is too large.
    """
    with images_of_any_size():
        header = read_header(BytesIO(content), orientation=False)
    if header.error or not content:
        reason = header.error if content else 'it is empty'
        raise UserError(f'can\'t read the image {name}: {reason}')
    pixels = header.width * header.height
    if pixels > max_pixels:
        raise UserError(
            f'the image {name} has {header.width}x{header.height} pixels, more than the limit of '
            f'{max_pixels / 1e6:g} megapixels; if it is to be read, raise the limit with '
            f'--max-megapixels {-(-pixels // 1_000_000)}, or max_pixels of the model in Python')
    if header.mode in ('F', 'I'):
        raise UserError(f'can\'t read the image {name}: its pixels are 32-bit numbers, not colours '
                        'of 8 or 16 bits; convert it first')
    if is_cut_off(content):
        raise UserError(f'the image {name} was cut off: its file ends too early')
    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        array = None
    if array is None:
        raise UserError(f'can\'t read the image {name}: OpenCV can\'t decode this {header.format} '
                        'file')
    return array


def has_several_frames(content: bytes) -> bool:
    """Return whether the content of an image file is an animation, or has several pages."""
    try:
        with images_of_any_size(), Image.open(BytesIO(content)) as image:
            # A JPEG of several pictures has smaller copies of the first.
            return image.format != 'MPO' and bool(getattr(image, 'is_animated', False))
    except Exception:  # each format's reader has errors of its own
        return False


def is_cut_off(content: bytes) -> bool:
    """Return whether a JPEG or PNG file ends before its last pixel; others have no end mark."""
    if content.startswith(b'\xff\xd8'):
        return _lacks_end_of_jpeg(content)
    if content.startswith(b'\x89PNG'):
        return _lacks_end_of_png(content)
    return False


def _lacks_end_of_jpeg(content: bytes) -> bool:
    position = 2
    # What follows the end, such as the video of a motion photo, is not looked at.
    while marker := _JPEG_MARKER.search(content, position):
        if marker.group() == b'\xff\xd9':
            return False
        length = content[marker.end():marker.end() + 2]
        position = marker.end() + int.from_bytes(length, 'big')
    return True


def _lacks_end_of_png(content: bytes) -> bool:
    position = 8
    while position + 8 <= len(content):
        if content[position + 4:position + 8] == b'IEND':
            return False
        length = int.from_bytes(content[position:position + 4], 'big')
        position += length + 12  # with length, type and checksum
    return True


def _from_pillow(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return a Pillow image as OpenCV would have read its file."""
    name = getattr(image, 'filename', '') or 'from Pillow'
    try:
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith('I;16'):
            grey = (np.asarray(turned).astype(np.uint16) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if turned.mode in ('F', 'I'):
            raise UserError(f'can\'t use the image {name}: its pixels are 32-bit numbers, not '
                            'colours of 8 or 16 bits; convert it first')
        return np.ascontiguousarray(np.asarray(turned.convert('RGB'))[..., ::-1])
    except (OSError, ValueError) as error:  # an opened file is decoded now
        raise UserError(f'can\'t read the image {name}: {_reason(error)}') from error


def _reason(error: Exception) -> str:
    """Return an error's message on one line, without the address of a buffer at its end."""
    return ' '.join(str(error).partition(' <')[0].split()) or type(error).__name__
