"""Tiles: every object once, at its place, and label maps without seams."""

import numpy as np
import pytest

from evit_runtime.errors import UserError
from evit_runtime.tiles import TiledModel

RED, BLUE = (0, 204, 255), (255, 153, 0)


@pytest.fixture
def large(draw):
    """Spots at corners and borders, and two that tiles of 64 pixels with 16 in common cut."""
    places = [(0, 0), (190, 0), (0, 140), (190, 140), (45, 70), (92, 100), (130, 52)]
    return draw(150, 200, *((left, top, 10, 10, RED if k % 2 else BLUE)
                            for k, (left, top) in enumerate(places)))


@pytest.mark.parametrize('batch_size', [1, 4])
def test_each_object_once_at_its_place(spots, large, batch_size):
    [expected] = spots(large)
    spots.shapes.clear()
    [found] = TiledModel(spots, size=64, overlap=0.25, batch_size=batch_size)(large)
    assert len(expected) == 7 and max(map(len, spots.shapes)) == batch_size
    assert {shape for batch in spots.shapes for shape in batch} == {(64, 64)}
    assert sorted(map(tuple, found.boxes)) == sorted(map(tuple, expected.boxes))
    for label, name in enumerate(('red', 'blue')):
        assert found.names.count(name) == (expected.labels == label).sum()
    assert found.shape == (150, 200) and (found.image == large).all()


def test_masks(mask_spots, large):
    [expected] = mask_spots(large)
    [found] = TiledModel(mask_spots, size=64, overlap=0.25)(large)
    assert found.masks.shape == (7, 150, 200) and found.masks.dtype == bool
    by_place = sorted(range(7), key=lambda k: tuple(found.boxes[k]))
    for k, j in zip(by_place, sorted(range(7), key=lambda k: tuple(expected.boxes[k])),
                    strict=True):
        assert (found.masks[k] == expected.masks[j]).all()


def test_nothing_found(spots, mask_spots):
    black = np.zeros((100, 100, 3), np.uint8)
    assert len(TiledModel(spots, size=64)(black)[0]) == 0
    assert TiledModel(mask_spots, size=64)(black)[0].masks.shape == (0, 100, 100)


def test_a_small_image_is_one_tile(spots, two_spots):
    [found] = TiledModel(spots, size=640)(two_spots)
    assert spots.shapes == [[(60, 90)]] and len(found) == 2


@pytest.mark.parametrize('shape', [(150, 200), (64, 64), (65, 63), (1, 300)])
@pytest.mark.parametrize('overlap', [0, 0.25, 0.5])
def test_label_maps(halves, shape, overlap):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    [expected] = halves(image)
    [found] = TiledModel(halves, size=64, overlap=overlap, batch_size=2)(image)
    assert (found.label_map == expected.label_map).all()


def test_label_maps_prefer_the_middle_of_a_tile(halves, monkeypatch):
    """A model that errs at the borders of tiles leaves no trace but at those of the image."""
    image = np.full((150, 200, 3), 255, np.uint8)
    predict = halves._predict

    def wrong_at_borders(images, score_threshold):
        results = predict(images, score_threshold)
        for result in results:
            inside = result.label_map[4:-4, 4:-4].copy()
            result.label_map[:] = 0
            result.label_map[4:-4, 4:-4] = inside
        return results

    monkeypatch.setattr(halves, '_predict', wrong_at_borders)
    [found] = TiledModel(halves, size=64, overlap=0.25)(image)
    assert (found.label_map[4:-4, 4:-4] == 1).all()


@pytest.mark.parametrize('options, message', [
    (dict(size=31), 'tiles have at least 32 pixels, but got 31'),
    (dict(overlap=0.6), 'overlap by 0 to 0.5 of their size, but got 0.6')])
def test_numbers_out_of_range(spots, options, message):
    with pytest.raises(UserError, match=message):
        TiledModel(spots, **options)
