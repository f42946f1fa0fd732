"""Annotations in COCO's form, built image by image."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError

__all__ = ['CocoBuilder', 'common_folder', 'list_images', 'name_label_files']

_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')

Box = tuple[float, float, float, float]


@dataclass
class CocoBuilder:
    """The annotations of one split.

    Attributes:
        classes: Names of the classes; categories are numbered from 1 in this order.
        images: Folder that the file names start from.
        content: What has been added so far, as a COCO annotation file holds it.
        left_out: What was not taken over, by kind.
        notes: Sentences on what was found or repaired.
    """

    classes: Sequence[str]
    images: Path
    content: dict[str, Any] = field(init=False)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.content = {
            'info': {}, 'licenses': [], 'images': [], 'annotations': [],
            'categories': [{'id': number, 'name': name}
                           for number, name in enumerate(self.classes, 1)]}

    def add_image(self, path: Path, size: tuple[int, int]) -> int:
        """Add an image, and return its id.

        Args:
            path: The file, below ``images``.
            size: Width and height as viewers show it, in pixels.
        """
        number = len(self.content['images']) + 1
        self.content['images'].append({
            'id': number, 'file_name': Path(os.path.relpath(path, self.images)).as_posix(),
            'width': size[0], 'height': size[1]})
        return number

    def add_object(self, image: int, label: int, box: Box,
                   polygons: Sequence[Sequence[float]] = ()) -> None:
        """Add an object.

        Args:
            image: Id of its image.
            label: Index of its class.
            box: Its x1, y1, x2, y2 in pixels.
            polygons: Its polygons, each as x1, y1, x2, y2, ... in pixels.
        """
        x1, y1, x2, y2 = box
        areas = [_polygon_area(polygon) for polygon in polygons]
        self.content['annotations'].append({
            'id': len(self.content['annotations']) + 1, 'image_id': image,
            'category_id': label + 1, 'bbox': [x1, y1, x2 - x1, y2 - y1],
            'area': sum(areas) or (x2 - x1) * (y2 - y1), 'iscrowd': 0,
            'segmentation': [list(polygon) for polygon in polygons]})

    def describe(self) -> str:
        """Return a line that accounts for what was read."""
        images, objects = self.content['images'], self.content['annotations']
        empty = len(images) - len({entry['image_id'] for entry in objects})
        text = f'{len(images)} images, {len(objects)} objects'
        if empty:
            text += f', {empty} images without an object'
        if self.left_out:
            text += '; left out: ' + ', '.join(
                f'{count} {kind}' for kind, count in self.left_out.items())
        return text


def list_images(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, in the order of their names."""
    return sorted(_visible(folder))


def name_label_files(content: Mapping[str, Any], folder: Path, suffix: str
                     ) -> list[tuple[dict[str, Any], Path]]:
    """Return the images of a COCO annotation file, each with the file for its labels.

    Args:
        content: Of the annotation file.
        folder: Gets the files, in the images' subfolders.
        suffix: That of the files.

    Raises:
        UserError: If two images would share a file, or an image is listed twice.
    """
    owners: dict[Path, dict[str, Any]] = {}
    for image in content['images']:
        name = image['file_name']
        file = folder / Path(name).with_suffix(suffix)
        other = owners.setdefault(file, image)
        if other['file_name'] != name:
            raise UserError(f'{other["file_name"]} and {name} would share the file {file}: rename '
                            'one of the images')
        if other is not image:
            raise UserError(f'{name} is listed under the ids {other["id"]!r} and {image["id"]!r}, '
                            f'which would share the file {file}: merge their entries')
    return [(image, file) for file, image in owners.items()]


def common_folder(paths: Iterable[Path]) -> Path:
    """Return the folder that holds all of some files, directly or in subfolders."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def _visible(folder: Path) -> Iterable[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        for name in names:
            if not name.startswith('.') and os.path.splitext(name)[1].lower() in _SUFFIXES:
                yield Path(parent, name)


def _polygon_area(polygon: Sequence[float]) -> float:
    """Return a polygon's area by the shoelace formula."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
