"""Conversion of masks to COCO annotations, and back."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from evit_mm.data.synthetic.annotations import coco_annotation, mask_to_polygons
from evit_mm.data.synthetic.shapes import draw_shapes


def test_polygons_reproduce_the_masks():
    # Shapes that others cut into pieces are rare, so this needs many images.
    num_cut_shapes = 0
    for index in range(200):
        _, instances = draw_shapes((80, 80), 0, 'train', index)
        for instance in instances:
            assert instance.mask.any()
            annotation = coco_annotation(instance, 1, 1)
            if instance.crowd:
                continue
            height, width = instance.mask.shape
            polygons = annotation['segmentation']
            assert all(len(polygon) >= 8 for polygon in polygons)
            assert all(isinstance(value, float) for value in polygons[0])
            decoded = mask_utils.decode(mask_utils.merge(
                mask_utils.frPyObjects(polygons, height, width)))
            np.testing.assert_array_equal(decoded, instance.mask)
            num_cut_shapes += len(polygons) > 1
    assert num_cut_shapes


@pytest.mark.parametrize('rows', [
    ['####', '#..#', '####'],
    ['#####', '#.#.#', '#####', '#.#.#', '#####'],
    ['#######', '#.....#', '#.###.#', '#.#.#.#', '#.###.#', '#.....#', '#######'],
    ['#.', '.#'],
    ['#'],
], ids=['hole', 'holes', 'ring in ring', 'diagonal', 'one pixel'])
def test_polygons_of_awkward_masks(rows):
    mask = np.array([[cell == '#' for cell in row] for row in rows])
    polygons = mask_to_polygons(mask)
    decoded = mask_utils.decode(mask_utils.merge(
        mask_utils.frPyObjects(polygons, *mask.shape)))
    np.testing.assert_array_equal(decoded, mask)
