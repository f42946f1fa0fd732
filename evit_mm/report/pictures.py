"""Pages of pictures with headings, captions and a legend.

All images are (H, W, 3) uint8 in OpenCV's order of colours, BGR; all colours are RGB.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from evit_runtime.class_names import Colour
from evit_runtime.drawing import Image, font_file, letter_height

__all__ = ['contact_sheet', 'side_by_side']


def side_by_side(panels: Mapping[str, Image], legend: Mapping[str, Colour]) -> Image:
    """Return images of one size under their headings, and a legend below them.

    Images that are more than twice as wide as high are put below each other.

    Args:
        panels: The images by their headings.
        legend: The colours by the names of their classes.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    height, width = next(iter(panels.values())).shape[:2]
    letters = letter_height(next(iter(panels.values())))
    font = ImageFont.truetype(font_file(), letters)
    margin, line = letters // 2, letters * 2
    columns = 1 if width > 2 * height else len(panels)
    total = columns * width + (columns - 1) * margin
    top = -(-len(panels) // columns) * (height + line)
    places, below = _flow([font.getlength(name) + 3 * letters for name in legend], total, line)
    page = Pillow.new('RGB', (total, top + below), 'white')
    draw = ImageDraw.Draw(page)
    for number, (heading, panel) in enumerate(panels.items()):
        left = number % columns * (width + margin)
        upper = number // columns * (height + line)
        draw.text((left + margin, upper + line // 2), heading, 'black', font, anchor='lm')
        page.paste(Pillow.fromarray(np.ascontiguousarray(panel[..., ::-1])), (left, upper + line))
    for (x, y), (name, colour) in zip(places, legend.items(), strict=True):
        middle = top + y + line // 2
        draw.rectangle((x + margin, middle - margin, x + margin + letters, middle + margin), colour)
        draw.text((x + 2 * letters, middle), name, 'black', font, anchor='lm')
    return np.asarray(page)[..., ::-1].copy()


def contact_sheet(pictures: Sequence[Image], captions: Sequence[str],
                  legend: Mapping[str, Colour], *, columns: int = 4, cell: int = 420) -> Image:
    """Return pictures in rows, each with a caption, and a legend below them.

    Args:
        pictures: The pictures.
        captions: The text above each.
        legend: As in `side_by_side`.
        columns: Pictures in a row.
        cell: Largest side of a picture, in pixels.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    columns = min(columns, len(pictures))
    letters, margin = 14, 8
    font = ImageFont.truetype(font_file(), letters)
    line = 2 * letters
    step = cell + margin
    total = columns * step + margin
    top = -(-len(pictures) // columns) * (step + line) + margin
    places, below = _flow([font.getlength(name) + 3 * letters for name in legend], total, line)
    page = Pillow.new('RGB', (total, top + below), 'white')
    draw = ImageDraw.Draw(page)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = margin + number % columns * step, margin + number // columns * (step + line)
        scale = cell / max(picture.shape[:2])
        small = cv2.resize(picture, (max(1, round(picture.shape[1] * scale)),
                                     max(1, round(picture.shape[0] * scale))),
                           interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        while caption and font.getlength(caption) > cell:
            caption = '…' + caption[2:]
        draw.text((x, y + line // 2), caption, 'black', font, anchor='lm')
        page.paste(Pillow.fromarray(np.ascontiguousarray(small[..., ::-1])), (x, y + line))
    for (x, y), (name, colour) in zip(places, legend.items(), strict=True):
        middle = top + y + line // 2
        draw.rectangle((x + margin, middle - 7, x + margin + letters, middle + 7), colour)
        draw.text((x + 2 * letters, middle), name, 'black', font, anchor='lm')
    return np.asarray(page)[..., ::-1].copy()


def _flow(widths: Sequence[float], total: int, line: int) -> tuple[list[tuple[int, int]], int]:
    """Return places (x, y) of words of some widths, line by line, and the height of the lines."""
    places, x, y = [], 0, 0
    for width in widths:
        if x and x + width > total:
            x, y = 0, y + line
        places.append((x, y))
        x += round(width)
    return places, y + line if places else 0
