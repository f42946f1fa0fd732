"""Images for detection: positions and sizes of the shapes."""

import numpy as np
import pytest

from evit_mm.data.synthetic.shapes import _add_crowd, draw_shapes


def test_crowd_mask_covers_all_its_shapes():
    rng = np.random.default_rng(0)
    for _ in range(10):
        before = np.full((120, 100, 3), 100, np.float32)
        after = before.copy()
        crowd = _add_crowd(rng, after)
        painted = (before != after).any(axis=2)
        assert painted.sum() > 200
        assert not (painted & ~crowd.mask).any()


@pytest.mark.parametrize('size', [(64, 64), (64, 192), (192, 64)])
def test_extreme_sizes(size):
    for index in range(24):
        image, instances = draw_shapes(size, 0, 'val', index)
        assert any(not instance.crowd for instance in instances)
        assert all(instance.mask.shape == image.shape[:2] for instance in instances)


def test_most_objects_are_of_medium_size():
    extents = []
    for index in range(60):
        _, instances = draw_shapes((128, 128), 1, 'train', index)
        for instance in instances:
            if not instance.crowd:
                extents.append(max(instance.mask.any(axis=0).sum(),
                                   instance.mask.any(axis=1).sum()) / 128)
    assert np.mean([0.15 < extent < 0.6 for extent in extents]) > 0.8
