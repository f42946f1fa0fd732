"""Draw the images of a dataset, and write them in the layouts of COCO and ADE20K."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2

from ...files import write_json
from .annotations import coco_annotation
from .canvas import ByteArray
from .scenes import draw_scene
from .settings import FORMAT, GENERATOR, SPLITS, Settings, ade_pair, coco_annotations, coco_image
from .shapes import SHAPE_CLASSES, draw_shapes

__all__ = ['write_ade', 'write_coco', 'write_image']

_JPEG_QUALITY: Final = 92


def write_coco(root: Path, settings: Settings, advance: Callable[[], object]) -> dict[str, int]:
    """Write all files of a detection dataset into existing folders.

    Args:
        root: The dataset's folder.
        settings: The dataset's settings.
        advance: Called after every image.

    Returns:
        The number of annotations of each split, with crowd regions.
    """
    return {split: _write_coco_split(root, settings, split, advance) for split in SPLITS}


def write_ade(root: Path, settings: Settings, advance: Callable[[], object]) -> dict[str, int]:
    """Write all files of a segmentation dataset into existing folders.

    Args:
        root: The dataset's folder.
        settings: The dataset's settings.
        advance: Called after every image.

    Returns:
        An empty dict: label maps have no annotations to count.
    """
    for split in SPLITS:
        for index in range(settings.count(split)):
            image, labels = draw_scene(settings.image_size, settings.seed, split, index)
            image_name, label_name = ade_pair(split, index)
            write_image(root / image_name, image)
            write_image(root / label_name, labels)
            advance()
    return {}


def write_image(path: Path, image: ByteArray) -> None:
    """Write a BGR image (H, W, 3) or a label map (H, W) in the format of the path's suffix.

    Raises:
        OSError: If the file can't be written.
    """
    # cv2.imwrite doesn't say why it fails, so OpenCV encodes and Python writes.
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == '.jpg' else []
    encoded = cv2.imencode(path.suffix, image, options)[1]
    path.write_bytes(encoded.tobytes())


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
