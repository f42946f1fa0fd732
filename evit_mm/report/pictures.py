"""Boxes, masks and label maps drawn on images, readable at any size of the image.

All images are (H, W, 3) uint8 in OpenCV's order of colours, BGR; all colours are RGB.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import UserError

__all__ = ['Colour', 'Image', 'Objects', 'class_colours', 'contact_sheet', 'draw_label_map',
           'draw_objects', 'enlarged', 'side_by_side', 'write_picture']

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_SMALLEST = 512  # pixels of the longer side, below which an image is enlarged
_TEXT = 0.026  # height of letters, as a part of the longer side
_SHADE = 0.5  # of masks and label maps
_GOLDEN_RATIO = 0.618034


@dataclass
class Objects:
    """Objects in an image.

    Attributes:
        boxes: Corners (N, 4) in pixels: left, top, right, bottom.
        labels: Their classes (N,).
        scores: Their scores (N,), for predictions.
        masks: Their masks (N, H, W).
    """

    boxes: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    scores: npt.NDArray[Any] | None = None
    masks: npt.NDArray[np.bool_] | None = None


def class_colours(count: int, palette: Sequence[Sequence[int]] | None = None) -> list[Colour]:
    """Return a colour for each class: those of the dataset, or colours far apart."""
    if palette is not None and len(palette) >= count:
        return [(int(r), int(g), int(b)) for r, g, b in palette[:count]]
    # Each hue is far from those of its neighbours, for any number of classes.
    colours = (colorsys.hsv_to_rgb(k * _GOLDEN_RATIO % 1, 0.85 if k % 2 else 0.6, 0.9)
               for k in range(count))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]


def enlarged(image: Image) -> tuple[Image, float]:
    """Return an image that is large enough for text, and by how much it was enlarged."""
    factor = max(1.0, _SMALLEST / max(image.shape[:2]))
    if factor > 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    return image, factor


def draw_objects(image: Image, objects: Objects, classes: Sequence[str],
                 colours: Sequence[Colour]) -> Image:
    """Return an enlarged copy of an image with its objects.

    Raises:
        UserError: If supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise UserError('pictures of objects are drawn with supervision, which is not installed: '
                        'pip install supervision') from error
    from supervision import Color, ColorPalette

    scene, factor = enlarged(image)
    if scene is image:
        scene = image.copy()
    if not len(objects.labels):
        return scene
    masks = objects.masks
    if masks is not None:
        size = scene.shape[1::-1]
        masks = np.array([cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
                          for mask in masks], bool)
    detections = supervision.Detections(
        xyxy=np.asarray(objects.boxes, float).reshape(-1, 4) * factor, mask=masks,
        class_id=np.asarray(objects.labels, int))
    palette = ColorPalette([Color(*colour) for colour in colours])
    letters = _letters(scene)
    if masks is not None:
        scene = supervision.MaskAnnotator(palette, opacity=_SHADE).annotate(scene, detections)
    scene = supervision.BoxAnnotator(palette, thickness=max(2, letters // 6)).annotate(
        scene, detections)
    names = [classes[label] for label in detections.class_id]
    if objects.scores is not None:
        names = [f'{name} {score:.2f}' for name, score in zip(names, objects.scores, strict=True)]
    # Moved into the image, and apart from each other.
    return supervision.RichLabelAnnotator(
        palette, text_color=ColorPalette([Color(*_readable_on(colour)) for colour in colours]),
        font_path=_font_file(), font_size=letters, text_padding=max(2, letters // 5),
        smart_position=True).annotate(scene, detections, names)


def draw_label_map(image: Image, labels: npt.NDArray[Any], colours: Sequence[Colour]) -> Image:
    """Return an enlarged copy of an image, shaded by the class of each pixel.

    Args:
        image: The image.
        labels: Classes (H, W), in any size; pixels with other values stay as they are.
        colours: A colour for each class.
    """
    scene, _ = enlarged(image)
    labels = cv2.resize(labels.astype(np.int32), scene.shape[1::-1],
                        interpolation=cv2.INTER_NEAREST)
    known = (labels >= 0) & (labels < len(colours))
    shades = np.array(colours, np.float32)[:, ::-1][np.where(known, labels, 0)]
    mixed = scene * (1 - _SHADE) + shades * _SHADE
    return np.where(known[..., None], mixed, scene).astype(np.uint8)


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
    letters = _letters(next(iter(panels.values())))
    font = ImageFont.truetype(_font_file(), letters)
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
    font = ImageFont.truetype(_font_file(), letters)
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


def write_picture(path: Path, picture: Image) -> None:
    """Write a picture; its folder is created.

    Raises:
        UserError: If it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        done, content = cv2.imencode(path.suffix, picture)
        if done:
            path.write_bytes(content.tobytes())
            return
        reason = 'OpenCV can\'t encode it'
    except (OSError, cv2.error) as error:
        reason = getattr(error, 'strerror', None) or str(error)
    raise UserError(f'can\'t write {path}: {reason}')


def _letters(image: Image) -> int:
    """Return the height of letters, in pixels."""
    return max(14, round(max(image.shape[:2]) * _TEXT))


def _flow(widths: Sequence[float], total: int, line: int) -> tuple[list[tuple[int, int]], int]:
    """Return places (x, y) of words of some widths, line by line, and the height of the lines."""
    places, x, y = [], 0, 0
    for width in widths:
        if x and x + width > total:
            x, y = 0, y + line
        places.append((x, y))
        x += round(width)
    return places, y + line if places else 0


def _readable_on(colour: Colour) -> Colour:
    """Return black or white, whichever stands out from a colour."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _font_file() -> str:
    """Return a font with the letters of most alphabets; it comes with matplotlib."""
    from matplotlib import get_data_path

    return str(Path(get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'))
