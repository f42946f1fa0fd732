"""Conversion of whole datasets."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError
from ...files import locked_folder, write_atomically, write_json
from ..check import check_coco, read_coco, read_headers
from ..image_folder import find_image_folder
from .coco_builder import CocoBuilder
from .label_maps import write_label_maps
from .labelme import read_labelme
from .voc import read_voc
from .yolo import read_yolo, write_yolo

__all__ = ['SOURCES', 'TARGETS', 'Converted', 'convert_dataset']

_Path = str | os.PathLike[str]
_READERS: Mapping[str, Callable[[Path], dict[str, CocoBuilder]]] = {
    'yolo': read_yolo, 'voc': read_voc, 'labelme': read_labelme}
SOURCES = (*_READERS, 'coco')
TARGETS = ('coco', 'yolo', 'masks')


@dataclass(frozen=True)
class Converted:
    """A split that was converted.

    Attributes:
        path: What was written: an annotation file, or a folder of labels or label maps.
        images: Folder of its images.
        summary: What it has, and what was left out.
        notes: Sentences on what was found or repaired in the annotations.
    """

    path: Path
    images: Path
    summary: str
    notes: tuple[str, ...] = ()


def convert_dataset(source: _Path, out: _Path, *, source_format: str, target_format: str = 'coco',
                    images: _Path | None = None, copy_images: bool = False,
                    skip_invalid_objects: bool = False) -> dict[str, Converted]:
    """Convert the annotations of a dataset.

    Args:
        source: YOLO's data.yaml, a COCO annotation file, or the folder of a VOC or LabelMe dataset.
        out: A new or empty folder. It gets ``SPLIT.json``; or ``labels/SPLIT``, ``images/SPLIT``
            and ``data.yaml``; or ``masks/SPLIT`` and ``classes.txt``.
        source_format: One of `SOURCES`.
        target_format: One of `TARGETS`.
        images: Folder of the images of a COCO file; by default, it is looked for.
        copy_images: Copy the images to ``images/SPLIT``. YOLO's layout gets links otherwise.
        skip_invalid_objects: Go on without the objects of a COCO file that can't be used.

    Returns:
        dict: What was written, by split.

    Raises:
        UserError: If something can't be read, converted or written.
    """
    if source_format not in SOURCES or target_format not in TARGETS:
        raise UserError(f'can\'t convert {source_format} to {target_format}: the formats are '
                        f'{", ".join(SOURCES)}, and {", ".join(TARGETS)}')
    source, out = Path(source).expanduser().absolute(), Path(out).expanduser().absolute()
    if out.is_file() or out.suffix in ('.json', '.yaml', '.yml'):
        raise UserError(f'--out {out}: name a folder')
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f'{out} is not empty: name a new folder')
    if not source.exists():
        raise UserError(f'no such file or folder: {source}')
    if source_format == 'coco':
        splits = _read_coco(source, None if images is None else Path(images).expanduser(),
                            skip_invalid_objects)
    else:
        if images is not None:
            raise UserError('--images is for COCO files; the other formats tell where the images '
                            'are')
        splits = _READERS[source_format](source)
    if not splits:
        raise UserError(f'{source} names no split: add train and val')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'can\'t write {out}: {error.strerror or error}') from error
    with locked_folder(out, 'converts a dataset into', beside=True):
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f'{out} is not empty: name a new folder')
        return _write(splits, out, target_format, copy_images)


def _read_coco(path: Path, images: Path | None, skip_invalid: bool) -> dict[str, CocoBuilder]:
    """Read a COCO annotation file without its faults."""
    content = read_coco(path)
    split = 'val' if 'val' in path.stem.lower() else 'train'
    names = [image['file_name'] for image in content['images']
             if isinstance(image.get('file_name'), str)]
    folder, shortened = find_image_folder(path, names, split, images) if names else (path, False)
    if shortened:
        raise UserError(f'{path}: {names[0]} is not in {folder}, which has a file of that base '
                        'name: correct file_name, or pass --images with the folder above')
    headers = read_headers(str(folder / name) for name in names)
    check = check_coco(path, content=content,
                       headers={name: headers[str(folder / name)] for name in names})
    check.findings.raise_errors(skip_invalid=skip_invalid)
    builder = CocoBuilder([category['name'] for category in check.content['categories']], folder)
    builder.content = check.content
    builder.notes += [finding.message for finding in check.findings]
    return {split: builder}


def _write(splits: Mapping[str, CocoBuilder], out: Path, target: str, copy_images: bool
           ) -> dict[str, Converted]:
    written = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, split in splits.items():
            images = out / 'images' / name
            if copy_images or target != 'coco':
                _check_names(split)
            if copy_images or target == 'yolo':
                _place_images(split, images, copy=copy_images)
            else:
                images = split.images
            if target == 'coco':
                path = out / f'{name}.json'
                write_json(path, split.content)
            elif target == 'masks':
                path = out / 'masks' / name
                write_label_maps(split.content, path)
            else:
                path = out / 'labels' / name
                crowds = write_yolo(split.content, path)
                if crowds:
                    split.left_out['crowd regions'] += crowds
                outlines = sum(bool(entry.get('segmentation'))
                               for entry in split.content['annotations'])
                if outlines:
                    split.left_out['outlines, of which boxes are written'] += outlines
            written[name] = Converted(path, images, split.describe(), tuple(split.notes))
        _write_classes(next(iter(splits.values())).content, list(splits), out, target)
    except OSError as error:
        raise UserError(f'can\'t write {out}: {error.strerror or error}') from error
    return written


def _write_classes(content: Mapping[str, Any], splits: list[str], out: Path, target: str) -> None:
    names = [category['name'] for category in content['categories']]
    if target == 'yolo':
        with write_atomically(out / 'data.yaml') as file:
            yaml.safe_dump(
                {**{split: f'images/{split}' for split in splits}, 'names': dict(enumerate(names))},
                file, sort_keys=False, allow_unicode=True)
    elif target == 'masks':
        with write_atomically(out / 'classes.txt') as file:
            file.write('\n'.join(['background', *names, '']))


def _check_names(split: CocoBuilder) -> None:
    """Check that files named after the images stay below their folder.

    Raises:
        UserError: If the name of an image leads out of it.
    """
    for image in split.content['images']:
        name = image['file_name']
        if Path(name).is_absolute() or '..' in Path(name).parts:
            raise UserError(f'the file_name {name} leads out of the folder of the images: make '
                            'file names relative to it')


def _place_images(split: CocoBuilder, folder: Path, *, copy: bool) -> None:
    """Copy the images of a split to a folder, or link them there."""
    for name in sorted({image['file_name'] for image in split.content['images']}):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = split.images / name
        if copy:
            shutil.copyfile(source, target)
        else:
            target.symlink_to(source.resolve())
