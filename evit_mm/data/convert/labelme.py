"""Datasets of LabelMe: a JSON file for each image.

Supervision reads them as bitmaps, which costs the exact vertices of polygons; hence this reader.
"""

import json
import math
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..check import read_headers
from ..image_folder import base_name
from .coco_builder import CocoBuilder, common_folder
from .split_folders import split_folders

__all__ = ['read_labelme']

_LEAST_POINTS = {'rectangle': 2, 'polygon': 3}


def read_labelme(folder: Path) -> dict[str, CocoBuilder]:
    """Read a dataset of LabelMe.

    Rectangles become boxes, and polygons boxes and polygons. Shapes of one label and one group are
    one object. Other shapes are left out, and counted.

    Args:
        folder: The folder with a JSON file for each image, or with one folder for each split.

    Returns:
        dict: Annotations by split; all are ``'train'`` where there are no splits.

    Raises:
        UserError: If a file can't be read, has no image, or has a shape with a fault.
    """
    files = {split: {file: _read(file) for file in sorted(place.glob('*.json'))}
             for split, place in split_folders(folder, '.json').items()}
    classes = sorted({shape['label'] for contents in files.values()
                      for content in contents.values() for shape in content['shapes']
                      if shape['shape_type'] in _LEAST_POINTS})
    return {split: _build(contents, classes) for split, contents in files.items()}


def _read(file: Path) -> dict[str, Any]:
    """Return the content of a file.

    Raises:
        UserError: If it is not one of LabelMe's, or a shape has a fault.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'can\'t read {file}: {str(error).splitlines()[0]}') from error
    if not isinstance(content, dict) or not isinstance(content.get('shapes'), list) \
            or not isinstance(content.get('imagePath'), str):
        raise UserError(f'{file} is not a file of LabelMe: it has no shapes and imagePath')
    for number, shape in enumerate(content['shapes'], 1):
        if not isinstance(shape, dict) or not isinstance(shape.get('label'), str):
            raise UserError(f'{file}: shape {number} has no label')
        shape.setdefault('shape_type', 'polygon')  # of LabelMe's first versions
        least = _LEAST_POINTS.get(shape['shape_type'])
        points = shape.get('points')
        if least and not (isinstance(points, list) and len(points) >= least
                          and all(map(_is_point, points))):
            raise UserError(f'{file}: shape {number}, a {shape["shape_type"]} of '
                            f'{shape["label"]!r}, needs at least {least} points [x, y]')
    return content


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(
        isinstance(number, int | float) and math.isfinite(number) for number in value)


def _build(contents: dict[Path, dict[str, Any]], classes: list[str]) -> CocoBuilder:
    images = {file: _image(file, content) for file, content in contents.items()}
    headers = read_headers(map(str, images.values()))
    builder = CocoBuilder(classes, common_folder(images.values()))
    for file, image in images.items():
        header = headers[str(image)]
        if header.error:
            raise UserError(f'can\'t read {image}: {header.error}')
        content = contents[file]
        size = content.get('imageWidth'), content.get('imageHeight')
        if all(size) and size != header.displayed_size:
            raise UserError(f'{file}: the shapes are those of an image of {size[0]}x{size[1]}, and '
                            f'{image} has {header.displayed_size[0]}x{header.displayed_size[1]}: '
                            'use the image that was annotated')
        number = builder.add_image(image, header.displayed_size)
        groups: dict[Any, list[dict[str, Any]]] = {}
        for position, shape in enumerate(content['shapes']):
            if shape['shape_type'] not in _LEAST_POINTS:
                builder.left_out[f'shapes of the type {shape["shape_type"]}'] += 1
                continue
            group = shape.get('group_id')
            key = (shape['label'], group) if group is not None else position
            groups.setdefault(key, []).append(shape)
        for shapes in groups.values():
            _add(builder, number, classes.index(shapes[0]['label']), shapes)
    return builder


def _image(file: Path, content: dict[str, Any]) -> Path:
    """Return the image of a file: at its path, or next to it."""
    image = file.parent / content['imagePath'].replace('\\', '/')
    return image if image.is_file() else file.parent / base_name(content['imagePath'])


def _add(builder: CocoBuilder, image: int, label: int, shapes: list[dict[str, Any]]) -> None:
    points = [point for shape in shapes for point in shape['points']]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    polygons = [[value for point in shape['points'] for value in point] for shape in shapes
                if shape['shape_type'] == 'polygon']
    if len(polygons) < len(shapes):
        polygons = []  # a rectangle is no outline, so that the object has none as a whole
    builder.add_object(image, label, (min(xs), min(ys), max(xs), max(ys)), polygons)
