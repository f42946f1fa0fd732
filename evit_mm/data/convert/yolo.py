"""Datasets in YOLO's layout: a data.yaml, folders of images, and a text file for each image."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError
from ..check import read_headers
from .coco_builder import Box, CocoBuilder, common_folder, list_images, name_label_files

__all__ = ['read_yolo', 'write_yolo']

_BEYOND = 1e-3  # by which a value may lie outside of 0..1, from rounding
_ALIASES = {'train': ('train',), 'val': ('val', 'valid', 'validation'), 'test': ('test',)}


def read_yolo(path: Path, splits: Sequence[str] = ('train', 'val', 'test')
              ) -> dict[str, CocoBuilder]:
    """Read a dataset in YOLO's layout.

    Labels are boxes (``class x y width height``) or polygons (``class x1 y1 x2 y2 x3 y3 ...``), as
    fractions of the image as viewers show it. An image without a label file has no objects.

    Args:
        path: The data.yaml, or the folder that contains it.
        splits: Those of ``'train'``, ``'val'`` and ``'test'`` that are read, where it names them.

    Returns:
        dict: Annotations by split.

    Raises:
        UserError: If the file, a folder, or a line of a label file has a fault.
    """
    if path.is_dir():
        path = _yaml_in(path)
    content = _read_yaml(path)
    classes = _class_names(content, path)
    keypoints = _keypoint_values(content, path)
    found = {}
    for split in splits:
        values = next((content[key] for key in _ALIASES[split] if content.get(key)), None)
        if values is not None:
            images = list(dict.fromkeys(_images(values, split, content, path)))
            found[split] = _read_split(images, split, classes, keypoints, path)
    return found


def write_yolo(content: dict[str, Any], label_folder: Path) -> int:
    """Write the boxes of a COCO annotation file as YOLO's labels.

    Args:
        content: Of the annotation file, without faults.
        label_folder: Gets a text file for each image, in the images' subfolders.

    Returns:
        The number of objects that were left out: crowd regions, which YOLO's labels do not have.

    Raises:
        UserError: If two images would share a label file, or one can't be written.
    """
    labels = {category['id']: index for index, category in enumerate(content['categories'])}
    lines: dict[Any, list[str]] = {image['id']: [] for image in content['images']}
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    crowds = 0
    for entry in content['annotations']:
        if entry.get('iscrowd'):
            crowds += 1
            continue
        (x, y, w, h), (width, height) = entry['bbox'], sizes[entry['image_id']]
        x1, y1 = max(x, 0), max(y, 0)  # YOLO refuses what lies outside of the image
        x2, y2 = min(x + w, width), min(y + h, height)
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width,
                  (y2 - y1) / height)
        lines[entry['image_id']].append(
            f'{labels[entry["category_id"]]} ' + ' '.join(f'{value:.8g}' for value in values))
    for image, file in name_label_files(content, label_folder, '.txt'):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(''.join(f'{line}\n' for line in lines[image['id']]), encoding='utf-8')
        except OSError as error:
            raise UserError(f'can\'t write {file}: {error.strerror or error}') from error
    return crowds


# --- data.yaml --------------------------------------------------------------------------------


def _yaml_in(folder: Path) -> Path:
    files = sorted([*folder.glob('*.yaml'), *folder.glob('*.yml')])
    if len(files) == 1:
        return files[0]
    preferred = [file for file in files if file.stem == 'data']
    if len(preferred) == 1:
        return preferred[0]
    raise UserError(f'{folder} has {len(files) or "no"} YAML files: name the data.yaml of the '
                    'dataset')


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise UserError(f'no such file: {path}') from error
    except OSError as error:
        raise UserError(f'can\'t read {path}: {error.strerror or error}') from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'{path} is not a YAML file: {reason}') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} is not a data.yaml of YOLO\'s layout: it has no train, val and '
                        'names')
    return content


def _class_names(content: dict[str, Any], path: Path) -> list[str]:
    """Return the names of the classes in the order of their numbers."""
    names = content.get('names')
    if isinstance(names, dict):
        try:
            numbers = {int(key): str(name) for key, name in names.items()}
        except (TypeError, ValueError):
            numbers = {}
        if sorted(numbers) != list(range(len(names))):
            raise UserError(f'{path}: names must number the classes 0 to {len(names) - 1}, but has '
                            f'{", ".join(map(str, names))}')
        names = [numbers[number] for number in sorted(numbers)]
    if not isinstance(names, list) or not names or any(
            isinstance(name, dict | list) or name is None for name in names):
        raise UserError(f'{path}: names must list the names of the classes')
    names = [str(name) for name in names]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(f'{path}: names has {repeated[0]!r} more than once')
    if content.get('nc') not in (None, len(names)):
        raise UserError(f'{path}: nc is {content["nc"]}, but names has {len(names)} classes')
    return names


def _keypoint_values(content: dict[str, Any], path: Path) -> int:
    """Return how many values of keypoints follow a box."""
    shape = content.get('kpt_shape')
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(
            isinstance(number, int) and number > 0 for number in shape):
        raise UserError(f'{path}: kpt_shape must be the number of keypoints, and 2 or 3')
    return shape[0] * shape[1]


def _images(values: Any, split: str, content: dict[str, Any], path: Path) -> Iterator[Path]:
    """Yield the images of a split: those in a folder, or in a list of files.

    Raises:
        UserError: If there is no such folder, or it has no image.
    """
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(value, str):
            raise UserError(f'{path}: {split} must name folders of images')
        place = _resolve(value, content.get('path'), path)
        if place is None:
            raise UserError(f'{path}: {split} names {value}, which is neither there nor next to '
                            'that file: write it relative to that file, or absolute')
        images = _listed(place, path) if place.is_file() else list_images(place)
        if not images:
            raise UserError(f'{path}: {split} names {place}, which has no image')
        yield from images


def _resolve(value: str, root: Any, path: Path) -> Path | None:
    """Find what a data.yaml names: relative to ``path``, to itself, or in its own folder."""
    here = path.absolute().parent
    # Roboflow writes ../train/images for train/images next to the file.
    inner = value.lstrip('./') if value.startswith('.') else value
    roots = [Path(str(root))] if root else []
    tops = [top for given in roots for top in (here / given, Path.cwd() / given)] + [here]
    for name in (value, inner):
        for top in tops:
            place = Path(os.path.normpath(top / Path(name).expanduser()))
            if place.exists():
                return place
    return None


def _listed(file: Path, path: Path) -> list[Path]:
    """Return the images that a text file lists, one on each line."""
    names = [line.strip() for line in file.read_text(encoding='utf-8').splitlines()]
    images = [Path(os.path.normpath(file.parent / name)) for name in names if name]
    missing = [image for image in images if not image.is_file()]
    if missing:
        raise UserError(f'{path}: {file} lists {len(missing)} images that do not exist, the first '
                        f'is {missing[0]}')
    return images


# --- label files ------------------------------------------------------------------------------


def _read_split(images: Sequence[Path], split: str, classes: Sequence[str], keypoints: int,
                path: Path) -> CocoBuilder:
    headers = read_headers(map(str, images), title=split)
    unread = [f'{image} ({headers[str(image)].error})' for image in images
              if headers[str(image)].error]
    if unread:
        raise UserError(f'{path}: {len(unread)} of the {len(images)} images of {split} can\'t be '
                        f'read, the first is {unread[0]}: replace or remove them')
    builder = CocoBuilder(classes, common_folder(images))
    faults: list[str] = []
    labelled = 0
    for image in images:
        size = headers[str(image)].displayed_size
        number = builder.add_image(image, size)
        labels = _label_file(image)
        if not labels.is_file():
            continue
        labelled += 1
        try:
            lines = labels.read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'can\'t read {labels}: {error}') from error
        for position, line in enumerate(lines, 1):
            values = line.split()
            if not values:
                continue
            fault = _fault(values, len(classes), keypoints)
            if fault:
                faults.append(f'{labels}, line {position}: {fault}')
            else:
                _add(builder, number, values, size, keypoints)
    if faults:
        others = f' ({len(faults) - 1} more lines have a fault)' if len(faults) > 1 else ''
        raise UserError(faults[0] + others)
    if not labelled:
        raise UserError(f'{path}: none of the {len(images)} images of {split} has a label file, '
                        f'the first would be {_label_file(images[0])}')
    return builder


def _label_file(image: Path) -> Path:
    """Return the label file of an image: in ``labels`` for ``images``, or next to it."""
    beside = image.with_suffix('.txt')
    parts = list(beside.parts)
    if 'images' not in parts[:-1]:
        return beside
    last = len(parts) - 2 - parts[-2::-1].index('images')
    file = Path(*parts[:last], 'labels', *parts[last + 1:])
    return beside if beside.is_file() and not file.is_file() else file


def _fault(values: Sequence[str], classes: int, keypoints: int) -> str:
    """Return what is wrong with a line; empty if nothing is."""
    count = len(values)
    is_box = count == 5 or bool(keypoints) and count == 5 + keypoints
    if not is_box and (count < 7 or count % 2 == 0):
        return (f'it has {count} numbers, but a box has 5 (class x y width height), and a polygon '
                'a class and at least three pairs')
    try:
        label, *numbers = map(float, values)
    except ValueError:
        return f'{" ".join(values)[:60]!r} is not a row of numbers'
    if not math.isfinite(label) or label != int(label):
        return f'the class {values[0]} is not a whole number'
    if not 0 <= label < classes:
        return f'the class {int(label)} is not among the {classes} names, 0 to {classes - 1}'
    for number in numbers[:4] if is_box else numbers:
        if not -_BEYOND <= number <= 1 + _BEYOND:  # not a number fails, too
            return (f'{number:g} is not in the range 0 to 1: coordinates are fractions of the '
                    'width and height of the image')
    return ''


def _add(builder: CocoBuilder, image: int, values: Sequence[str], size: tuple[int, int],
         keypoints: int) -> None:
    """Add the object of a line without faults."""
    label, *numbers = map(float, values)
    width, height = size
    if len(values) == 5 or keypoints and len(values) == 5 + keypoints:
        x, y, w, h = numbers[:4]
        corners = ((x - w / 2) * width, (y - h / 2) * height,
                   (x + w / 2) * width, (y + h / 2) * height)
        builder.add_object(image, int(label), _inside(corners, size))
        return
    xs = [min(max(x, 0), 1) * width for x in numbers[::2]]
    ys = [min(max(y, 0), 1) * height for y in numbers[1::2]]
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    builder.add_object(image, int(label), (min(xs), min(ys), max(xs), max(ys)), [polygon])


def _inside(box: Box, size: tuple[int, int]) -> Box:
    """Cut off what rounding moves beyond the image."""
    x1, y1, x2, y2 = box
    width, height = size
    return (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
