"""Drawn scenes."""

import pytest

from evit_mm.data.synthetic.scenes import draw_scene


@pytest.mark.parametrize('size', [(64, 64), (64, 192), (192, 64)])
def test_any_allowed_size_can_be_drawn(size):
    for index in range(24):
        image, labels = draw_scene(size, 0, 'val', index)
        assert labels.shape == image.shape[:2]
