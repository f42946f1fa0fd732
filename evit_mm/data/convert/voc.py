"""Datasets in Pascal VOC's format: an XML file for each image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError, one_line
from ..check import read_headers
from .coco_builder import CocoBuilder, list_images
from .split_folders import split_folders

__all__ = ['read_voc']

_LISTS = ('train', 'val', 'test')


def read_voc(folder: Path) -> dict[str, CocoBuilder]:
    """Read the boxes of a dataset in Pascal VOC's format.

    The XML files are next to the images, in the folder itself or in one for each split; or they are
    in ``Annotations``, the images in ``JPEGImages``, and lists of the splits in ``ImageSets/Main``.
    Supervision reads them; it knows that VOC counts pixels from 1.

    Args:
        folder: The folder of the dataset.

    Returns:
        dict: Annotations by split; all are ``'train'`` where there are no splits.

    Raises:
        UserError: If a file can't be read, or has no image.
    """
    annotations, images = folder / 'Annotations', folder / 'JPEGImages'
    if annotations.is_dir() and images.is_dir():
        loaded = _load(images, annotations)
        lists: dict[str, set[str] | None] = {**_listed_splits(folder)} or {'train': None}
        parts = {split: (loaded, images, stems) for split, stems in lists.items()}
    else:
        parts = {split: (_load(place, place), place, None)
                 for split, place in split_folders(folder, '.xml').items()}
    classes = sorted({name for dataset, _, _ in parts.values() for name in dataset.classes})
    return {split: _build(dataset, classes, place, stems)
            for split, (dataset, place, stems) in parts.items()}


def _load(images: Path, annotations: Path) -> Any:
    """Read a folder with supervision.

    Raises:
        UserError: If it is not installed, or a file has a fault.
    """
    try:
        import supervision
    except ImportError as error:
        raise UserError(f'reading VOC\'s format needs supervision ({error}): pip install '
                        'supervision') from error
    stems = {image.stem for image in list_images(images) if image.parent == images}
    orphans = [file for file in sorted(annotations.glob('*.xml')) if file.stem not in stems]
    if orphans:
        raise UserError(f'{len(orphans)} XML files have no image in {images}, the first is '
                        f'{orphans[0]}: fetch the images, or remove the files')
    try:
        return supervision.DetectionDataset.from_pascal_voc(str(images), str(annotations))
    except Exception as error:  # of its parser, or of a missing part
        raise UserError(f'{annotations} can\'t be read as Pascal VOC: {one_line(error)}') from error


def _listed_splits(folder: Path) -> dict[str, set[str]]:
    lists = {split: folder / 'ImageSets' / 'Main' / f'{split}.txt' for split in _LISTS}
    return {split: {line.split()[0] for line in file.read_text().splitlines() if line.split()}
            for split, file in lists.items() if file.is_file()}


def _build(dataset: Any, classes: list[str], images: Path, stems: set[str] | None) -> CocoBuilder:
    builder = CocoBuilder(classes, images)
    labels: Mapping[str, int] = {name: label for label, name in enumerate(classes)}
    by_stem = {Path(path).stem: path for path in dataset.image_paths}
    absent = sorted((stems or set()) - set(by_stem))
    if absent:
        raise UserError(f'ImageSets/Main lists {len(absent)} images that are not in {images}, the '
                        f'first is {absent[0]}')
    paths = sorted(path for path in dataset.image_paths if stems is None
                   or Path(path).stem in stems)
    headers = read_headers(paths)
    for path in paths:
        if headers[path].error:
            raise UserError(f'can\'t read {path}: {headers[path].error}')
        image = builder.add_image(Path(path), headers[path].displayed_size)
        objects = dataset.annotations[path]
        if objects.mask is not None:
            builder.left_out['polygons, of which boxes are taken'] += len(objects)
        for box, label in zip(objects.xyxy.tolist(), objects.class_id, strict=True):
            builder.add_object(image, labels[dataset.classes[int(label)]], tuple(box))
    return builder
