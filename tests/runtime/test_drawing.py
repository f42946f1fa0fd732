"""What is drawn is where it should be, at any size of the image."""

import numpy as np
import pytest

from evit_runtime import drawing
from evit_runtime.drawing import Objects
from evit_runtime.errors import UserError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def grey(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def has_colour(image, colour):
    return (image == np.array(colour[::-1])).all(-1)


@pytest.mark.parametrize('height,width', [(20, 20), (96, 40), (700, 900), (30, 1200)])
def test_boxes_at_any_size(height, width):
    box = np.array([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]])
    image = grey(height, width)
    drawn = drawing.draw_objects(image, Objects(box, np.array([1])), ['cat', 'dog'], [RED, BLUE])
    assert (image == 128).all()  # a copy was drawn on
    assert max(drawn.shape[:2]) >= 512
    assert not has_colour(drawn, RED).any()
    rows, columns = np.nonzero(has_colour(drawn, BLUE))
    scale = drawn.shape[1] / width
    assert abs(columns.min() - 0.25 * width * scale) <= 6
    assert abs(rows.max() - 0.75 * height * scale) <= 6 or height < 50  # under a label
    label = (drawn > 200).all(-1)
    assert label.sum() > 20  # the letters, of white on blue


def test_scores_masks_and_labels_beyond_the_border():
    masks = np.zeros((1, 60, 60), bool)
    masks[0, 30:, 30:] = True
    boxes = np.array([[30., 30, 60, 60]])
    plain = drawing.draw_objects(grey(60, 60), Objects(boxes, np.array([0])), ['cat'], [RED])
    drawn = drawing.draw_objects(grey(60, 60), Objects(boxes, np.array([0]), np.array([0.5]),
                                                        masks), ['cat'], [RED])
    inside, outside = drawn[480, 480], drawn[100, 100]
    assert inside[2] > 180 > 128 > inside[0] and (outside == 128).all()
    assert has_colour(drawn, (255, 255, 255)).sum() > has_colour(plain, (255, 255, 255)).sum()


def test_nothing_to_draw():
    nothing = Objects(np.zeros((0, 4)), np.zeros(0, int))
    drawn = drawing.draw_objects(grey(600, 600), nothing, ['cat'], [RED])
    assert (drawn == 128).all()


def test_label_maps_leave_ignored_pixels():
    labels = np.full((10, 10), 255, np.uint8)
    labels[:5] = 1
    drawn = drawing.draw_label_map(grey(100, 100), labels, [RED, BLUE])
    assert drawn.shape == (512, 512, 3)
    assert drawn[100, 100].tolist() == [191, 64, 64] and drawn[400, 400].tolist() == [128] * 3


def test_a_picture_that_can_not_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='can\'t write'):
        drawing.write_picture(tmp_path / 'file' / 'x.png', grey(5, 5))
    with pytest.raises(UserError, match='can\'t write'):
        drawing.write_picture(tmp_path / 'x.unknown', grey(5, 5))
