"""Models without weights, whose results are known."""

import cv2
import numpy as np
import pytest

from evit_runtime.model import Model
from evit_runtime.results import Result


class Spots(Model):
    """Detector of bright spots: a box around each, with its greenness as the score.

    A spot is 'red', or 'blue' where there is more blue than red.
    """

    class_names = ('red', 'blue')
    palette = ((255, 0, 0), (0, 0, 255))

    def __init__(self, *, masks=False):
        self.task = 'instance segmentation' if masks else 'detection'
        self.shapes = []  # of the images of each batch

    def _predict(self, images, score_threshold):
        self.shapes.append([image.shape[:2] for image in images])
        return [self._spots(image) for image in images]

    def _spots(self, image):
        count, numbers, stats, _ = cv2.connectedComponentsWithStats(
            (image.max(-1) > 200).astype(np.uint8))
        boxes, labels, scores, masks = [], [], [], []
        for number in range(1, count):
            left, top, width, height, _ = stats[number]
            blue, green, red = image[numbers == number].max(0)
            boxes.append([left, top, left + width, top + height])
            labels.append(int(blue > red))
            scores.append(green / 255)
            masks.append(numbers == number)
        return Result(shape=image.shape[:2], class_names=self.class_names, palette=self.palette,
                      boxes=boxes, labels=labels, scores=scores,
                      masks=masks if self.task == 'instance segmentation' else None)


class Halves(Model):
    """Segmentor of dark and bright pixels, of class 0 and 1."""

    task = 'semantic segmentation'
    class_names = ('dark', 'bright')
    palette = ((10, 20, 30), (200, 210, 220))

    def _predict(self, images, score_threshold):
        return [Result(shape=image.shape[:2], class_names=self.class_names, palette=self.palette,
                       label_map=(image.mean(-1) > 100).astype(int)) for image in images]


def draw_spots(height, width, *spots):
    """Return a black image with spots: left, top, width, height, colour in BGR."""
    image = np.zeros((height, width, 3), np.uint8)
    for left, top, spot_width, spot_height, colour in spots:
        image[top:top + spot_height, left:left + spot_width] = colour
    return image


RED, BLUE, PALE = (0, 204, 255), (255, 153, 0), (0, 26, 255)  # of scores 0.8, 0.6 and 0.1


@pytest.fixture
def spots():
    return Spots()


@pytest.fixture
def mask_spots():
    return Spots(masks=True)


@pytest.fixture
def halves():
    return Halves()


@pytest.fixture
def two_spots():
    """A picture with a red spot, a blue one, and one of a low score."""
    return draw_spots(60, 90, (10, 20, 8, 6, RED), (50, 30, 12, 20, BLUE), (30, 5, 4, 4, PALE))


@pytest.fixture
def draw():
    return draw_spots
