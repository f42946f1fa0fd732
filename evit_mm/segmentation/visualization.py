"""A fix for MMSegmentation's browse_dataset.py, applied by ``evit-mm run`` alone."""

import functools
from typing import Any

import numpy as np
from mmseg.visualization import SegLocalVisualizer

__all__ = ['draw_on_contiguous_images']


def draw_on_contiguous_images() -> None:
    """Make `SegLocalVisualizer` accept images of any memory layout; idempotent.

    browse_dataset.py passes a permuted array; the visualizer draws labels on an array of the same
    layout, which OpenCV refuses.
    """
    draw = SegLocalVisualizer.add_datasample
    if hasattr(draw, '__wrapped__') and draw.__module__ == __name__:
        return

    @functools.wraps(draw, assigned=('__name__', '__qualname__', '__doc__'))
    def add_datasample(self: SegLocalVisualizer, name: str, image: np.ndarray, *args: Any,
                       **kwargs: Any) -> None:
        draw(self, name, np.ascontiguousarray(image), *args, **kwargs)

    SegLocalVisualizer.add_datasample = add_datasample
