"""Images for segmentation."""

import pytest

from evit_mm.data.synthetic.scenes import draw_scene


@pytest.mark.parametrize('size', [(64, 64), (64, 192), (192, 64)])
def test_extreme_sizes(size):
    for index in range(24):
        image, labels = draw_scene(size, 0, 'val', index)
        assert labels.shape == image.shape[:2]
