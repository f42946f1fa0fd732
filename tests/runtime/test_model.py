"""Calls of a model: kinds of images, batches, arguments."""

import numpy as np
import pytest
from PIL import Image

from evit_runtime.errors import UserError
from evit_runtime.model import Model
from evit_runtime.results import Result


class Brightness(Model):
    """Model that finds one object per image, whose box holds the image's size and mean."""

    task = 'detection'
    class_names = ('dark', 'bright')
    palette = ((0, 0, 0), (255, 255, 255))

    def __init__(self):
        self.batches = []

    def _predict(self, images, score_threshold):
        self.batches.append(len(images))
        return [Result(shape=image.shape[:2], class_names=self.class_names,
                       boxes=[[*image.shape[:2], image[0, 0, 0], image.mean()]] * 2,
                       labels=[int(image.mean() > 128)] * 2, scores=[0.6, 0.1])
                for image in images]


@pytest.fixture
def model():
    return Brightness()


@pytest.fixture
def files(tmp_path):
    paths = []
    for k in range(5):
        paths.append(tmp_path / f'{k}.png')
        Image.new('RGB', (10 + k, 20), (0, 0, 50 * k)).save(paths[-1])
    return paths


def test_one_image_or_many_of_any_kind(model, files):
    array = np.full((20, 14, 3), (200, 0, 0), np.uint8)
    for images in (str(files[4]), files[4], array, Image.open(files[4])):
        [result] = model(images)
        assert result.boxes[0].tolist() == pytest.approx([20, 14, 200, 200 / 3])
        assert (result.image == array).all() and len(result) == 1
        assert result.source == (None if images is array else str(files[4]))
    results = model([files[0], array, str(files[2])])
    assert [result.boxes[0][1] for result in results] == [10, 14, 12]
    assert len(model(tuple(files))) == len(model(path for path in files)) == 5
    assert model([]) == []


def test_batches(model, files):
    results = model(files, batch_size=2)
    assert model.batches == [2, 2, 1]
    assert [result.shape for result in results] == [(20, 10 + k) for k in range(5)]


def test_a_stream_reads_as_it_goes(model, files):
    results = model.stream(path for path in [*files[:2], 'gone.png'])
    next(results)
    assert model.batches == [1]
    next(results)
    with pytest.raises(UserError, match='^no such file: gone.png$'):
        next(results)


def test_thresholds_and_classes(model, files):
    assert [len(model(files[0], score_threshold=x)[0]) for x in (0, 0.1, 0.2, 0.6, 0.7)] == \
        [2, 2, 1, 1, 0]
    assert len(model(files[0], classes=['bright'])[0]) == 0
    assert model(files[0], classes=['Dark'])[0].names == ['dark']


@pytest.mark.parametrize('options, message', [
    (dict(score_threshold=1.5), 'score_threshold is from 0 to 1, but got 1.5'),
    (dict(score_threshold=float('nan')), 'score_threshold is from 0 to 1, but got nan'),
    (dict(batch_size=0), 'batch_size is at least 1, but got 0'),
    (dict(classes=['drak']), "no class 'drak'; did you mean dark")])
def test_arguments_are_checked_before_the_first_image(model, options, message):
    with pytest.raises(UserError, match=message):
        model.stream(['gone.png'], **options)


def test_a_limit_of_pixels(model, files):
    model.max_pixels = 199
    with pytest.raises(UserError, match='0.png has 10x20 pixels, more than the limit of 0.000199'):
        model(files[0])
