"""mIoU, mAcc and aAcc equal those computed in numpy, to full precision."""

import numpy as np
import pytest
import torch

from evit_mm.segmentation import UnroundedIoUMetric

CLASSES = 7
IGNORED = 255


def metrics_in_numpy(pairs):
    """Return the three metrics in percent, counted class by class."""
    intersection, predicted_area, true_area = (np.zeros(CLASSES) for _ in range(3))
    for predicted, true in pairs:
        counted = true != IGNORED
        for k in range(CLASSES):
            intersection[k] += ((predicted == k) & (true == k) & counted).sum()
            predicted_area[k] += ((predicted == k) & counted).sum()
            true_area[k] += ((true == k) & counted).sum()
    union = predicted_area + true_area - intersection
    return dict(aAcc=100 * intersection.sum() / true_area.sum(),
                mIoU=100 * np.mean(intersection[union > 0] / union[union > 0]),
                mAcc=100 * np.mean(intersection[true_area > 0] / true_area[true_area > 0]))


def evaluate(pairs, **options):
    metric = UnroundedIoUMetric(**options)
    metric.dataset_meta = dict(classes=[f'class {k}' for k in range(CLASSES)])
    samples = [dict(pred_sem_seg=dict(data=torch.from_numpy(predicted)[None]),
                    gt_sem_seg=dict(data=torch.from_numpy(true)[None]),
                    img_path=f'{number}.jpg') for number, (predicted, true) in enumerate(pairs)]
    for sample in samples:
        metric.process({}, [sample])
    return metric.evaluate(len(samples))


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    images = []
    for size in ((31, 45), (64, 20), (8, 8)):
        true = rng.integers(0, 5, size)  # without the classes 5 and 6
        predicted = np.where(rng.random(size) < 0.6, true, rng.integers(0, 6, size))
        true[rng.random(size) < 0.1] = IGNORED
        images.append((predicted, true))
    return images


def test_metrics_equal_those_of_numpy(pairs):
    actual, expected = evaluate(pairs), metrics_in_numpy(pairs)
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=1e-12), name
        assert actual[name] != round(actual[name], 2)


def test_predictions_at_ignored_pixels_do_not_count(pairs):
    changed = [(np.where(true == IGNORED, 6, predicted), true) for predicted, true in pairs]
    assert evaluate(changed) == evaluate(pairs)


def test_more_pixels_than_float32_can_count():
    """2 ** 24 + 1 pixels of a class."""
    true = np.zeros((4097, 4096), np.uint8)
    true[-1, 1:] = 1
    predicted = np.zeros_like(true)
    predicted[0, 0] = 1
    pixels = 4096 * 4096 + 1
    actual = evaluate([(predicted, true)])
    assert actual['mAcc'] == pytest.approx(100 * (pixels - 1) / pixels / 2, rel=1e-12)


def test_predictions_are_saved_without_evaluation(pairs, tmp_path):
    assert evaluate(pairs, output_dir=str(tmp_path), format_only=True) == {}
    assert len(list(tmp_path.iterdir())) == 3
