"""The base class of everything that predicts."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .class_names import Colour, class_numbers
from .errors import UserError
from .image_files import MAX_PIXELS, read_image
from .results import Result

if TYPE_CHECKING:
    import os

    import PIL.Image

__all__ = ['Image', 'ImageInput', 'Model']

Image = npt.NDArray[np.uint8]
ImageInput: TypeAlias = 'str | os.PathLike[str] | Image | PIL.Image.Image'
"""A path, an array (H, W, 3) uint8 in OpenCV's order of colours, BGR, or a Pillow image."""


class Model(ABC):
    """Detector or segmentor that takes images and returns what is in them.

    Attributes:
        task: ``'detection'``, ``'instance segmentation'`` or ``'semantic segmentation'``.
        class_names: The names of its classes.
        palette: A colour (red, green, blue) for each of them.
        max_pixels: The most pixels of an image file; one with more is refused before it is decoded.
    """

    max_pixels: int = MAX_PIXELS
    task: str
    class_names: tuple[str, ...]
    palette: tuple[Colour, ...]

    def __call__(self, images: 'ImageInput | Iterable[ImageInput]', *,
                 score_threshold: float = 0.3, classes: Iterable[str | int] | None = None,
                 batch_size: int = 1) -> list[Result]:
        """Return a result for each image, in their order.

        Args:
            images: An image, or several: a path, an array (H, W, 3) uint8 in OpenCV's order of
                colours, BGR, or a Pillow image. Files are read as by OpenCV: turned by their EXIF
                orientation, to 8 bits a colour, without transparency, the first of several frames.
            score_threshold: Lowest score of the objects to return. The model's own threshold comes
                first. Segmentors do not use it.
            classes: Names or numbers of the classes to return; all by default.
            batch_size: Images that the model computes at a time.

        Raises:
            UserError: If an image can't be read, or an argument is out of its range.
        """
        return list(self.stream(images, score_threshold=score_threshold, classes=classes,
                                batch_size=batch_size))

    def stream(self, images: 'ImageInput | Iterable[ImageInput]', *,
               score_threshold: float = 0.3, classes: Iterable[str | int] | None = None,
               batch_size: int = 1) -> Iterator[Result]:
        """Yield a result for each image as soon as it is computed.

        Only one batch is in memory at a time. The arguments are those of a call.
        """
        if not 0 <= score_threshold <= 1:
            raise UserError(f'score_threshold is from 0 to 1, but got {score_threshold:g}')
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f'batch_size is at least 1, but got {batch_size}')
        numbers = None if classes is None else class_numbers(classes, self.class_names)
        single = isinstance(images, str | np.ndarray) or not isinstance(images, Iterable)
        return self._stream([images] if single else images,  # type: ignore[list-item, arg-type]
                            float(score_threshold), numbers, batch_size)

    def _stream(self, images: Iterable[ImageInput], score_threshold: float,
                classes: set[int] | None, batch_size: int) -> Iterator[Result]:
        remaining = iter(images)
        while batch := list(islice(remaining, batch_size)):
            arrays = [read_image(image, max_pixels=self.max_pixels) for image in batch]
            results = self._predict(arrays, score_threshold)
            for given, array, result in zip(batch, arrays, results, strict=True):
                if classes is not None or result.scores is not None:
                    result = result.filter(score_threshold=score_threshold, classes=classes)
                result.image = array
                result.source = _source(given)
                yield result

    @abstractmethod
    def _predict(self, images: list[Image], score_threshold: float) -> list[Result]:
        """Return a result for each image of a batch.

        Args:
            images: The images (H, W, 3) uint8, BGR, of any sizes, as they were read.
            score_threshold: Objects with a lower score may be left out; whoever calls leaves
                them out too.

        Returns:
            list: The results in pixels of these images, without ``image`` and ``source``.
        """


def _source(image: Any) -> str | None:
    """Return the path of an image, or None if it has none."""
    if isinstance(image, np.ndarray):
        return None
    # A Pillow image that was opened from a file knows its name.
    return str(getattr(image, 'filename', '') if hasattr(image, 'mode') else image) or None
