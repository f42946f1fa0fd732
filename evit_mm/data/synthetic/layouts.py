"""Draw the images of a dataset and write them as COCO and ADE20K are laid out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .annotations import coco_annotation
from .files import write_image, write_json
from .scenes import draw_scene
from .settings import FORMAT, GENERATOR, SPLITS, Settings, ade_pair, coco_annotations, coco_image
from .shapes import SHAPE_CLASSES, draw_shapes

__all__ = ['write_ade', 'write_coco']


def write_coco(root: Path, settings: Settings, advance: Callable[[], object]) -> dict[str, int]:
    """Write all files of a detection dataset into folders that exist.

    Args:
        root: The dataset's folder.
        settings: Which one.
        advance: Called after every image.

    Returns:
        Annotations per split, crowd regions included.
    """
    return {split: _write_coco_split(root, settings, split, advance) for split in SPLITS}


def write_ade(root: Path, settings: Settings, advance: Callable[[], object]) -> dict[str, int]:
    """Write all files of a segmentation dataset, as `write_coco` does; returns nothing counted."""
    for split in SPLITS:
        for index in range(settings.count(split)):
            image, labels = draw_scene(settings.image_size, settings.seed, split, index)
            image_name, label_name = ade_pair(split, index)
            write_image(root / image_name, image)
            write_image(root / label_name, labels)
            advance()
    return {}


def _write_coco_split(
    root: Path, settings: Settings, split: str, advance: Callable[[], object]
) -> int:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(settings.count(split)):
        image, instances = draw_shapes(settings.image_size, settings.seed, split, index)
        path = root / coco_image(split, index)
        write_image(path, image)
        images.append({
            'license': 1, 'file_name': path.name, 'coco_url': '', 'height': image.shape[0],
            'width': image.shape[1], 'date_captured': '2017-01-01 00:00:00', 'flickr_url': '',
            'id': index + 1,
        })
        for instance in instances:
            annotations.append(coco_annotation(instance, index + 1, len(annotations) + 1))
        advance()
    write_json(root / coco_annotations(split), {
        'info': {
            'description': 'Synthetic shapes in the layout of COCO 2017', 'url': '',
            'version': str(FORMAT), 'year': 2017, 'contributor': GENERATOR,
            'date_created': '2017/01/01',
        },
        'licenses': [{'url': '', 'id': 1, 'name': 'Generated; free of rights'}],
        'images': images,
        'annotations': annotations,
        'categories': [{'supercategory': 'shape', 'id': number, 'name': name}
                       for number, name in enumerate(SHAPE_CLASSES, start=1)],
    })
    return len(annotations)
