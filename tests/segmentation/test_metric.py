"""mIoU, mAcc and aAcc equal those computed in numpy, to full precision."""

import numpy as np
import pytest
import torch
from PIL import Image

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


def evaluate(pairs, metric=None, paths=None, **options):
    metric = metric or UnroundedIoUMetric(**options)
    paths = paths or [f'{number}.jpg' for number in range(len(pairs))]
    metric.dataset_meta = dict(classes=[f'class {k}' for k in range(CLASSES)])
    samples = [dict(pred_sem_seg=dict(data=torch.from_numpy(predicted)[None]),
                    gt_sem_seg=dict(data=torch.from_numpy(true)[None]),
                    img_path=path)
               for path, (predicted, true) in zip(paths, pairs, strict=True)]
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


def test_each_class_and_the_confusion(pairs):
    metric = UnroundedIoUMetric(iou_metrics=['mIoU', 'mDice'])
    values = evaluate(pairs, metric=metric)
    each, expected = metric.evaluation, np.zeros((CLASSES, CLASSES), int)
    for predicted, true in pairs:
        for k in range(CLASSES):
            for other in range(CLASSES):
                expected[k, other] += ((true == k) & (predicted == other)).sum()
    assert each.confusion.tolist() == expected.tolist()
    assert each.columns['pixels'] == expected.sum(1).tolist()
    union = expected.sum(0) + expected.sum(1) - expected.diagonal()
    with np.errstate(invalid='ignore'):
        np.testing.assert_allclose(each.columns['IoU'], 100 * expected.diagonal() / union,
                                   rtol=1e-12)
    assert values['mDice'] == pytest.approx(np.nanmean(each.columns['Dice']), rel=1e-12)
    assert each.classes == metric.dataset_meta['classes']


def test_images_of_one_name_stay_apart(pairs, tmp_path):
    paths = ['/data/images/a/0001.jpg', '/data/images/b/0001.jpg', '/other/0001.jpg']
    evaluate(pairs, paths=paths, output_dir=str(tmp_path), image_root='/data/images',
             format_only=True)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*.png')}
    assert written == {'a/0001.png', 'b/0001.png', 'other/0001.png'}
    for (predicted, _), name in zip(pairs, ['a', 'b', 'other'], strict=True):
        saved = np.asarray(Image.open(tmp_path / name / '0001.png'))
        assert (saved == predicted).all()


def test_more_classes_than_a_byte_holds(tmp_path):
    predicted = np.array([[0, 255, 256, 299]])
    metric = UnroundedIoUMetric(output_dir=str(tmp_path), format_only=True)
    metric.dataset_meta = dict(classes=['class'] * 300)
    metric.process({}, [dict(pred_sem_seg=dict(data=torch.from_numpy(predicted)[None]),
                             img_path='x.jpg')])
    assert np.asarray(Image.open(tmp_path / 'x.png')).tolist() == predicted.tolist()
