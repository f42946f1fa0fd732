"""Boxes, masks and label maps drawn on images, readable at any size of the image.

All images are (H, W, 3) uint8 in OpenCV's order of colours, BGR; all colours are RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .class_names import Colour
from .errors import UserError
from .files import write_atomically
from .results import Result

__all__ = ['Image', 'Objects', 'draw_label_map', 'draw_objects', 'draw_result', 'enlarged',
           'font_file', 'letter_height', 'write_picture']

Image = npt.NDArray[np.uint8]

_SMALLEST = 512  # pixels of the longer side, below which an image is enlarged
_TEXT = 0.026  # height of letters, as a part of the longer side
_SHADE = 0.5  # of masks and label maps


@dataclass
class Objects:
    """Objects in an image.

    Attributes:
        boxes: Corners (N, 4) in pixels: left, top, right, bottom.
        labels: Their classes (N,).
        scores: Their scores (N,), for predictions.
        masks: Their masks (N, H, W).
        track_ids: The numbers of their tracks (N,); -1 for none.
    """

    boxes: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    scores: npt.NDArray[Any] | None = None
    masks: npt.NDArray[np.bool_] | None = None
    track_ids: npt.NDArray[np.int64] | None = None


def draw_result(result: Result, *, enlarge: bool) -> Image:
    """Return a copy of a result's image with its objects, or its classes and their names.

    Raises:
        UserError: If the result has no image, or supervision is not installed.
    """
    if result.image is None:
        raise UserError('the result has no image to draw on: set its attribute image, an array '
                        '(height, width, 3) of type uint8 in the order BGR')
    if result.boxes is not None:
        assert result.labels is not None
        objects = Objects(result.boxes, result.labels, result.scores, result.masks,
                          result.track_ids)
        return draw_objects(result.image, objects, result.class_names, result.palette,
                            enlarge=enlarge)
    assert result.label_map is not None
    scene = draw_label_map(result.image, result.label_map, result.palette, enlarge=enlarge)
    return _name_regions(scene, result)


def enlarged(image: Image) -> tuple[Image, float]:
    """Return an image that is large enough for text, and by how much it was enlarged."""
    factor = max(1.0, _SMALLEST / max(image.shape[:2]))
    if factor > 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    return image, factor


def draw_objects(image: Image, objects: Objects, classes: Sequence[str],
                 colours: Sequence[Colour], *, enlarge: bool = True) -> Image:
    """Return a copy of an image with its objects.

    Args:
        image: The image.
        objects: The objects in it.
        classes: The names of all classes.
        colours: A colour for each class.
        enlarge: Enlarge a small image, so that the labels can be read.

    Raises:
        UserError: If supervision is not installed.
    """
    supervision = _supervision()
    scene, factor = enlarged(image) if enlarge else (image, 1.0)
    scene = scene.copy()
    if not len(objects.labels):
        return scene
    masks = objects.masks
    if masks is not None and factor > 1:
        size = scene.shape[1::-1]
        masks = np.array([cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
                          for mask in masks], bool)
    detections = supervision.Detections(
        xyxy=np.asarray(objects.boxes, float).reshape(-1, 4) * factor, mask=masks,
        class_id=np.asarray(objects.labels, int))
    palette = _palette(colours)
    if masks is not None:
        scene = supervision.MaskAnnotator(palette, opacity=_SHADE).annotate(scene, detections)
    scene = supervision.BoxAnnotator(palette, thickness=max(2, letter_height(scene) // 6)
                                     ).annotate(scene, detections)
    names = [classes[label] for label in detections.class_id]
    if objects.scores is not None:
        names = [f'{name} {score:.2f}' for name, score in zip(names, objects.scores, strict=True)]
    if objects.track_ids is not None:
        names = [f'#{track} {name}' if track >= 0 else name
                 for name, track in zip(names, objects.track_ids, strict=True)]
    return _write_labels(scene, detections, names, colours)


def draw_label_map(image: Image, labels: npt.NDArray[Any], colours: Sequence[Colour], *,
                   enlarge: bool = True) -> Image:
    """Return a copy of an image, shaded by the class of each pixel.

    Args:
        image: The image.
        labels: Classes (H, W), in any size; pixels with other values stay as they are.
        colours: A colour for each class.
        enlarge: Enlarge a small image.
    """
    scene = enlarged(image)[0] if enlarge else image
    labels = cv2.resize(labels.astype(np.int32), scene.shape[1::-1],
                        interpolation=cv2.INTER_NEAREST)
    known = (labels >= 0) & (labels < len(colours))
    shades = np.array(colours, np.float32)[:, ::-1][np.where(known, labels, 0)]
    mixed = scene * (1 - _SHADE) + shades * _SHADE
    return np.where(known[..., None], mixed, scene).astype(np.uint8)


def write_picture(path: Path, picture: Image) -> None:
    """Write a picture; its folder is created.

    Raises:
        UserError: If it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        done, content = cv2.imencode(path.suffix, picture)
        if done:
            with write_atomically(path, 'wb', is_synced=False) as file:
                file.write(content.tobytes())
            return
        reason = 'OpenCV can\'t encode it'
    except (OSError, cv2.error) as error:
        reason = getattr(error, 'strerror', None) or str(error)
    raise UserError(f'can\'t write {path}: {reason}')


def letter_height(image: Image) -> int:
    """Return the height of letters, in pixels."""
    return max(14, round(max(image.shape[:2]) * _TEXT))


def font_file() -> str:
    """Return a font with the letters of most alphabets; it comes with matplotlib."""
    from matplotlib import get_data_path

    return str(Path(get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'))


def _name_regions(scene: Image, result: Result) -> Image:
    """Write the name of each class of a label map into its largest region."""
    supervision = _supervision()
    assert result.label_map is not None
    labels = cv2.resize(result.label_map, scene.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    places, numbers = [], []
    for number in np.unique(labels[labels < len(result.class_names)]):
        # The pixel that is farthest from other classes and from the border.
        inside = cv2.distanceTransform(np.pad((labels == number).astype(np.uint8), 1),
                                       cv2.DIST_L2, 3)
        y, x = np.unravel_index(inside.argmax(), inside.shape)
        if inside[y, x] > letter_height(scene) / 4:
            places.append((x - 1, y - 1, x, y))
            numbers.append(int(number))
    if not places:
        return scene
    detections = supervision.Detections(xyxy=np.array(places, float), class_id=np.array(numbers))
    return _write_labels(scene, detections, [result.class_names[k] for k in numbers],
                         result.palette, position=supervision.Position.CENTER)


def _write_labels(scene: Image, detections: Any, texts: list[str], colours: Sequence[Colour],
                  position: Any = None) -> Image:
    """Write a label at each box; they are moved into the image and apart from each other."""
    supervision = _supervision()
    letters = letter_height(scene)
    return supervision.RichLabelAnnotator(
        _palette(colours), text_color=_palette([_readable_on(colour) for colour in colours]),
        font_path=font_file(), font_size=letters, text_padding=max(2, letters // 5),
        text_position=position or supervision.Position.TOP_LEFT, smart_position=True
    ).annotate(scene, detections, texts)


def _palette(colours: Sequence[Colour]) -> Any:
    supervision = _supervision()
    return supervision.ColorPalette([supervision.Color(*colour) for colour in colours])


def _readable_on(colour: Colour) -> Colour:
    """Return black or white, whichever stands out from a colour."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _supervision() -> Any:
    """Return the module supervision, which is large and only imported to draw.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise UserError('pictures of objects are drawn with supervision, which is not installed: '
                        'pip install supervision') from error
    return supervision
