"""Sizes and formats of image files, read in parallel from their headers."""

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from tqdm import tqdm

from evit_runtime import image_files
from evit_runtime.image_files import ImageHeader, images_of_any_size

from ..image_limits import too_many_pixels

__all__ = ['ImageHeader', 'read_header', 'read_headers']

_BATCH = 512  # files between two looks at the clock


def read_header(path: str) -> ImageHeader:
    """Read the header of an image file; a file that can't be read gives a header with an error."""
    return image_files.read_header(path, refuse=too_many_pixels)


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
    with images_of_any_size(), \
            ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool, \
            tqdm(total=len(names), desc=title, unit='image', disable=not progress,
                 leave=False) as bar:
        for some in _batches(names, _BATCH):
            if seconds is not None and time.monotonic() - start > seconds:
                break
            headers.update(zip(some, pool.map(read_header, some), strict=True))
            bar.update(len(some))
    return headers


def _batches(values: list[str], size: int) -> Iterator[list[str]]:
    iterator = iter(values)
    while some := list(islice(iterator, size)):
        yield some
