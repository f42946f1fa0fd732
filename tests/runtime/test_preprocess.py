"""Images are resized and padded as by mmcv's and MMDetection's transforms."""

import mmcv
import numpy as np
import pytest

from evit_runtime.preprocess import Preprocessing, stack


@pytest.mark.parametrize('size', [(480, 640), (640, 427), (333, 1000), (31, 57), (1, 9)])
@pytest.mark.parametrize(('scale', 'keep_ratio'), [
    ((1333, 800), True), ((2048, 512), True), ((320, 320), False), ((64, 48), True)])
def test_resizing_equals_mmcv(size, scale, keep_ratio):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    if keep_ratio:
        expected, factor = mmcv.imrescale(image, scale, return_scale=True)
    else:
        expected = mmcv.imresize(image, scale)
    prepared = Preprocessing(scale=scale, keep_ratio=keep_ratio)(image)
    assert np.array_equal(prepared.pixels, expected)
    assert prepared.size == prepared.image_size == expected.shape[:2]
    assert prepared.scale == (expected.shape[1] / size[1], expected.shape[0] / size[0])
    assert prepared.shape == size


def test_padding_to_a_divisor_is_no_part_of_the_image():
    rule = Preprocessing(scale=(100, 60), divisor=32, fill=(1, 2, 3))
    prepared = rule(np.zeros((60, 90, 3), np.uint8))
    assert prepared.size == (60, 90) and prepared.pixels.shape == (64, 96, 3)
    assert (prepared.pixels[60:] == (1, 2, 3)).all() and not prepared.pixels[:60, :90].any()


def test_the_padding_of_a_pipeline_is_part_of_the_image():
    rule = Preprocessing(scale=(64, 64), pad_size=(64, 64), pad_value=(114, 114, 114),
                         size=(64, 64))
    prepared = rule(np.zeros((32, 64, 3), np.uint8))
    assert prepared.size == (64, 64) and prepared.image_size == (32, 64)
    assert (prepared.pixels[32:] == 114).all()


@pytest.mark.parametrize('size', [(480, 640), (900, 200), (10, 2000), (96, 160)])
def test_any_image_fits_into_a_fixed_size(size):
    rule = Preprocessing(scale=(160, 96), size=(96, 160), divisor=32)
    prepared = rule(np.full((*size, 3), 9, np.uint8))
    assert prepared.pixels.shape == (96, 160, 3)
    assert prepared.size[0] <= 96 and prepared.size[1] <= 160
    assert (prepared.pixels[:prepared.size[0], :prepared.size[1]] == 9).all()
    assert prepared.size[0] == 96 or prepared.size[1] == 160


def test_a_batch_is_padded_to_its_largest_image():
    rule = Preprocessing()
    batch = stack([rule(np.zeros(shape, np.uint8)) for shape in ((2, 3, 3), (4, 1, 3))],
                  (5, 6, 7))
    assert batch.shape == (2, 4, 3, 3)
    assert (batch[0, 2:] == (5, 6, 7)).all() and (batch[1, :, 1:] == (5, 6, 7)).all()
