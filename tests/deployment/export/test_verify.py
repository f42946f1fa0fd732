"""Differences between an exported model and the one in PyTorch."""

import numpy as np
import pytest

from evit_mm.deployment.export.verify import compare_features, compare_results
from evit_runtime.metadata import Metadata
from evit_runtime.preprocess import Preprocessing
from evit_runtime.results import Result

NAMES = ('cat', 'dog')


def metadata(precision='fp32', max_objects=100):
    return Metadata(task='detection', inputs=(), outputs=(), preprocessing=Preprocessing(),
                    precision=precision, score_threshold=0.05, max_objects=max_objects)


def result(boxes, scores, labels=None, masks=None):
    return Result(shape=(100, 100), class_names=NAMES, boxes=np.array(boxes, np.float32),
                  scores=np.array(scores, np.float32),
                  labels=np.zeros(len(scores), int) if labels is None else np.array(labels),
                  masks=masks)


BOXES = [[10, 10, 40, 40], [50, 50, 90, 80]]


@pytest.mark.parametrize(('found', 'is_same'), [
    (result(BOXES, [0.9, 0.5]), True),
    (result([[10.4, 10, 40, 40], BOXES[1]], [0.9005, 0.5]), True),
    (result([[10.6, 10, 40, 40], BOXES[1]], [0.9, 0.5]), False),
    (result(BOXES, [0.9, 0.502]), False),
    (result(BOXES, [0.9, 0.5], [0, 1]), False),
    (result(BOXES[:1], [0.9]), False),
    (result(np.zeros((0, 4)), []), False),
    (result([*BOXES, [0, 0, 9, 9]], [0.9, 0.5, 0.4]), False),
    (result([*BOXES, [0, 0, 9, 9]], [0.9, 0.5, 0.0502]), True),  # hardly above the threshold
])
def test_objects(found, is_same):
    expected = result(BOXES, [0.9, 0.5])
    assert compare_results(expected, found, metadata()).is_within_bounds is is_same
    assert compare_results(found, expected, metadata()).is_within_bounds is is_same


def test_equal_scores_may_change_places_at_the_end_of_a_full_list():
    one = result(BOXES, [0.9, 0.5])
    other = result([BOXES[0], [0, 0, 9, 9]], [0.9, 0.5])
    assert compare_results(one, other, metadata(max_objects=2)).is_within_bounds
    assert not compare_results(one, other, metadata(max_objects=3)).is_within_bounds


def test_masks():
    masks = np.zeros((1, 100, 100), bool)
    masks[:, 10:40, 10:40] = True
    other = masks.copy()
    other[:, 10:12] = False
    one = result(BOXES[:1], [0.9], masks=masks)
    assert compare_results(one, result(BOXES[:1], [0.9], masks=masks), metadata()
                           ).is_within_bounds
    difference = compare_results(one, result(BOXES[:1], [0.9], masks=other), metadata())
    assert not difference.is_within_bounds and '0.9333' in difference.text


def test_label_maps():
    label_map = np.zeros((100, 100), np.uint8)
    other = label_map.copy()
    other[0, :9] = 1
    one, two = (Result(shape=(100, 100), class_names=NAMES, label_map=each)
                for each in (label_map, other))
    assert compare_results(one, two, metadata()).is_within_bounds
    other[0, :11] = 1
    two = Result(shape=(100, 100), class_names=NAMES, label_map=other)
    assert not compare_results(one, two, metadata()).is_within_bounds
    assert compare_results(one, two, metadata('bf16')).is_within_bounds


def test_feature_maps():
    maps = [np.ones((1, 2, 3, 4))]
    assert compare_features(maps, [maps[0] * 1.0005], 'fp32').is_within_bounds
    assert not compare_features(maps, [maps[0] * 1.01], 'fp32').is_within_bounds
