"""Draw 2,000 images of 320x320 with small, crowded shapes: 4x4 images of 80x80 each.

    PYTHONPATH=tests python -m light.small_objects data/small_objects

Four fifths are for training. The files have COCO's layout and names.
"""

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from evit_mm.data.synthetic.annotations import coco_annotation
from evit_mm.data.synthetic.settings import coco_annotations, coco_image
from evit_mm.data.synthetic.shapes import SHAPE_CLASSES, Instance, draw_shapes
from evit_mm.files import write_json

GRID, TILE = 4, 80
TILES_WITH_CROWD = 2  # the remainder by 8 of the indices for which a crowd is drawn


def main() -> None:
    arguments = build_parser().parse_args()
    held_out = arguments.images // 5
    for split, count in (('train', arguments.images - held_out), ('val', held_out)):
        write_split(arguments.out, split, count)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path)
    parser.add_argument('--images', type=int, default=2000)
    return parser


def write_split(root: Path, split: str, count: int) -> None:
    """Write the images of a split, and their annotations."""
    (root / coco_image(split, 0)).parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as processes:
        annotations = [each for annotations in processes.map(
            write_image, *zip(*((root, split, number) for number in range(count)), strict=True),
            chunksize=8) for each in annotations]
    for number, annotation in enumerate(annotations, start=1):
        annotation['id'] = number
    images = [dict(id=number + 1, file_name=Path(coco_image(split, number)).name,
                   height=GRID * TILE, width=GRID * TILE) for number in range(count)]
    categories = [dict(id=k, name=name) for k, name in enumerate(SHAPE_CLASSES, start=1)]
    path = root / coco_annotations(split)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(images=images, annotations=annotations, categories=categories))


def write_image(root: Path, split: str, number: int) -> list[dict[str, Any]]:
    """Draw and write one image, and return its annotations, whose ids are not set yet."""
    picture, instances = draw(split, number)
    cv2.imwrite(str(root / coco_image(split, number)), picture)
    return [coco_annotation(instance, number + 1, 0) for instance in instances]


def draw(split: str, number: int) -> tuple[NDArray[np.uint8], list[Instance]]:
    """Draw one image, and return it with its instances."""
    side = GRID * TILE
    picture = np.empty((side, side, 3), np.uint8)
    instances = []
    # Without the crowds, which are one region each and not counted.
    numbers = (k for k in itertools.count(number * 2 * GRID ** 2) if k % 8 != TILES_WITH_CROWD)
    for row, column in itertools.product(range(GRID), repeat=2):
        tile, parts = draw_shapes((TILE, TILE), 0, split, next(numbers))
        place = np.s_[row * TILE:(row + 1) * TILE, column * TILE:(column + 1) * TILE]
        picture[place] = cv2.resize(tile, (TILE, TILE), interpolation=cv2.INTER_AREA)
        for part in parts:
            mask = np.zeros((side, side), bool)
            mask[place] = cv2.resize(part.mask.astype(np.uint8), (TILE, TILE),
                                     interpolation=cv2.INTER_NEAREST) > 0
            if mask.any():
                instances.append(Instance(part.category_id, mask))
    return picture, instances


if __name__ == '__main__':
    main()
