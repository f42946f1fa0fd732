"""The generated images with small, crowded objects."""

import json

import cv2
import numpy as np
from light.small_objects import GRID, TILE, draw, write_split

from evit_mm.data.synthetic.shapes import SHAPE_CLASSES


def test_the_objects_are_small_and_many_and_stay_within_their_tiles():
    picture, instances = draw('val', 3)
    assert picture.shape == (GRID * TILE, GRID * TILE, 3)
    assert len(instances) > GRID ** 2
    areas = np.array([instance.mask.sum() for instance in instances])
    assert (areas < 32 ** 2).mean() > 0.9  # small, by COCO
    assert not any(instance.crowd for instance in instances)
    for instance in instances:
        rows, columns = np.nonzero(instance.mask)
        assert rows.min() // TILE == rows.max() // TILE
        assert columns.min() // TILE == columns.max() // TILE
    assert not np.array_equal(picture, draw('train', 3)[0])


def test_the_files_are_cocos(tmp_path):
    write_split(tmp_path, 'train', 2)
    content = json.loads((tmp_path / 'annotations' / 'instances_train2017.json').read_text())
    assert [category['name'] for category in content['categories']] == list(SHAPE_CLASSES)
    assert {each['image_id'] for each in content['annotations']} == {1, 2}
    for image in content['images']:
        picture = cv2.imread(str(tmp_path / 'train2017' / image['file_name']))
        assert picture.shape[:2] == (image['height'], image['width'])
