"""Label maps from the masks of objects."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from ..check.findings import shorten
from .coco_builder import name_label_files

__all__ = ['write_label_maps']

_IGNORED = 255
_MOST_CLASSES = 254  # besides the background, in a byte


def write_label_maps(content: dict[str, Any], folder: Path) -> None:
    """Write a label map for each image of a COCO annotation file.

    A pixel is 0 where no object is, and else the number of the object's class, from 1 on. Smaller
    objects cover larger ones. Crowd regions, of which nobody knows the single objects, are 255,
    which is ignored in training.

    Args:
        content: Of the annotation file, without faults.
        folder: Gets PNG files, in the images' subfolders.

    Raises:
        UserError: If an object has no mask, there are too many classes, two images would share a
            label map, or one can't be written.
    """
    from pycocotools import mask as coco_mask

    values = {category['id']: value for value, category in enumerate(content['categories'], 1)}
    if len(values) > _MOST_CLASSES:
        raise UserError(f'a label map has room for {_MOST_CLASSES} classes, not {len(values)}')
    objects: dict[Any, list[dict[str, Any]]] = {image['id']: [] for image in content['images']}
    for entry in content['annotations']:
        objects[entry['image_id']].append(entry)
    bare = [str(entry['id']) for entry in content['annotations'] if not entry.get('segmentation')]
    if bare:
        raise UserError(f'{len(bare)} of {len(content["annotations"])} objects have a box but no '
                        f'mask (annotations {shorten(bare)}): label maps need their outlines')
    for image, file in name_label_files(content, folder, '.png'):
        height, width = image['height'], image['width']
        label_map = np.zeros((height, width), np.uint8)
        for entry in sorted(objects[image['id']], key=lambda entry: -entry['area']):
            outline = entry['segmentation']
            if isinstance(outline, list):
                code = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
            elif isinstance(outline['counts'], list):
                code = coco_mask.frPyObjects(outline, height, width)
            else:
                code = outline
            value = _IGNORED if entry.get('iscrowd') else values[entry['category_id']]
            label_map[coco_mask.decode(code).astype(bool)] = value
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(label_map).save(file)
        except OSError as error:
            raise UserError(f'can\'t write {file}: {error.strerror or error}') from error
