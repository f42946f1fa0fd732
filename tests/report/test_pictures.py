"""Pages of pictures have room for all of them."""

import numpy as np

from evit_mm.report import pictures

RED, BLUE = (255, 0, 0), (0, 0, 255)


def grey(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def has_colour(image, colour):
    return (image == np.array(colour[::-1])).all(-1)


def test_side_by_side_has_a_legend_of_the_classes():
    left, right = grey(300, 400), np.zeros((300, 400, 3), np.uint8)
    page = pictures.side_by_side({'ground truth': left, 'predictions': right}, {'cat': RED,
                                                                               'dog': BLUE})
    assert page.shape[0] > 300 and 800 <= page.shape[1] < 840
    legend = page[-40:]
    assert has_colour(legend, RED).sum() > 50 and has_colour(legend, BLUE).sum() > 50
    assert not has_colour(page[:-60], RED).any()
    wide = pictures.side_by_side({'a': grey(100, 400), 'b': grey(100, 400)}, {})
    assert wide.shape[1] == 400 and wide.shape[0] > 200


def test_a_contact_sheet_has_room_for_every_picture():
    page = pictures.contact_sheet([grey(50, 200), grey(200, 50), grey(90, 90)],
                                  ['a' * 200, 'b', ''], {'cat': RED}, columns=2, cell=100)
    assert page.shape[1] == 2 * 108 + 8 and page.shape[0] > 2 * 108
    assert has_colour(page, RED).any() and (page == 128).all(-1).sum() == 15000