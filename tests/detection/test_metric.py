"""COCO's metrics equal those of MMDetection's CocoMetric, with either backend."""

import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pycocotools.mask
import pytest
import torch
from mmdet.evaluation import CocoMetric

from evit_mm.detection import PerClassCocoMetric
from evit_mm.errors import ConfigError

BACKENDS = ['faster-coco-eval', 'pycocotools']


def ellipses(boxes, size):
    """Return a mask (N, H, W) for each box (x, y, width, height)."""
    y, x = np.mgrid[:size, :size]
    return np.array([((x - a - w / 2) / (w / 2)) ** 2 + ((y - b - h / 2) / (h / 2)) ** 2 <= 1
                     for a, b, w, h in boxes], bool).reshape(-1, size, size)


def generate(folder, *, images, classes, detections, size=640, masks=False, seed=0):
    """Write annotations, and return their file with detections near and beside the objects."""
    rng = np.random.default_rng(seed)
    content = dict(images=[], annotations=[],
                   categories=[dict(id=3 * k + 1, name=f'class {k}') for k in range(classes)])
    samples = []
    for number in range(1, images + 1):
        content['images'].append(dict(id=number, file_name=f'{number}.jpg', width=size,
                                      height=size))
        count = rng.integers(0, 12)
        sides = np.minimum(np.exp(rng.normal(np.log(size / 8), 1, (count, 2))) + 2, size * 0.9)
        boxes = np.concatenate([rng.random((count, 2)) * (size - sides), sides], 1)
        labels = rng.integers(0, classes, count)
        truth = ellipses(boxes, size) if masks else None
        for k, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            entry = dict(id=len(content['annotations']) + 1, image_id=number,
                         category_id=3 * int(label) + 1, bbox=box.tolist(),
                         area=float(box[2] * box[3]), iscrowd=int(rng.random() < 0.05))
            if masks:
                entry['segmentation'] = rle(truth[k])
                entry['area'] = float(truth[k].sum())
            content['annotations'].append(entry)
        # Several near each object, some of another class, and others anywhere. Scores of two
        # digits are often equal.
        near = rng.integers(0, max(count, 1), detections if count else 0)
        found = np.concatenate([boxes[near] * rng.normal(1, 0.1, (len(near), 4)),
                                rng.random((detections // 4, 4)) * size / 2 + 1]).clip(1)
        wrong = rng.random(len(found)) < 0.2
        names = np.where(wrong[:len(near)], rng.integers(0, classes, len(near)), labels[near]
                         ) if count else np.zeros(0, int)
        names = np.concatenate([names, rng.integers(0, classes, len(found) - len(near))])
        sample = dict(
            bboxes=torch.tensor(np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1),
                                dtype=torch.float32),
            labels=torch.tensor(names), scores=torch.tensor(rng.random(len(found)).round(2)))
        if masks:
            sample['masks'] = torch.from_numpy(ellipses(found, size))
        samples.append(dict(img_id=number, ori_shape=(size, size), pred_instances=sample))
    path = folder / 'truth.json'
    path.write_text(json.dumps(content))
    return SimpleNamespace(path=path, samples=samples, content=content,
                           classes=tuple(c['name'] for c in content['categories']))


def rle(mask):
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(encoded, counts=encoded['counts'].decode())


def evaluate(kind, data, samples=None, **options):
    samples = data.samples if samples is None else samples
    metric = kind(ann_file=str(data.path), **options)
    metric.dataset_meta = dict(classes=data.classes)
    metric.process({}, samples)
    return metric, metric.evaluate(len(samples))


def without_detections(data):
    empty = dict(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long),
                 scores=torch.zeros(0))
    return [dict(sample, pred_instances=empty) for sample in data.samples]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return generate(tmp_path_factory.mktemp('coco'), images=60, classes=5, detections=130)


@pytest.mark.parametrize('backend', BACKENDS)
def test_metrics_equal_those_of_mmdetection(data, backend):
    options = dict(classwise=True, metric_items=['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m',
                                                 'mAP_l', 'AR@100', 'AR@300', 'AR@1000',
                                                 'AR_s@1000', 'AR_m@1000', 'AR_l@1000'])
    _, expected = evaluate(CocoMetric, data, **options)
    metric, values = evaluate(PerClassCocoMetric, data, backend=backend, **options)
    assert values == expected and len(values) == 17 and 0.03 < values['coco/bbox_mAP'] < 0.9
    each = metric.evaluation
    assert each.classes == list(data.classes)
    assert np.mean(each.columns['bbox_AP']) == pytest.approx(values['coco/bbox_mAP'], abs=6e-3)
    assert [round(ap, 3) for ap in each.columns['bbox_AP']] == [
        values[f'coco/{name}_precision'] for name in data.classes]
    assert sum(each.columns['objects']) == sum(
        not entry['iscrowd'] for entry in data.content['annotations'])
    assert each.precision['bbox'].shape == (101, 5)


@pytest.mark.parametrize('backend', BACKENDS)
def test_masks_and_proposals(backend, tmp_path):
    data = generate(tmp_path, images=12, classes=3, detections=12, size=96, masks=True)
    options = dict(metric=['bbox', 'segm', 'proposal'], outfile_prefix=str(tmp_path / 'out'))
    _, expected = evaluate(CocoMetric, data, **options)
    written = (tmp_path / 'out.segm.json').read_text()
    (tmp_path / 'out.segm.json').unlink()
    metric, values = evaluate(PerClassCocoMetric, data, backend=backend, **options)
    assert values == expected and values['coco/segm_mAP'] > 0.01 and 'coco/AR@100' in values
    assert (tmp_path / 'out.segm.json').read_text() == written
    assert {'objects', 'bbox_AP', 'segm_AP_50'} <= set(metric.evaluation.columns)


@pytest.mark.parametrize('backend', BACKENDS)
def test_nothing_detected_is_zero(data, backend):
    metric, values = evaluate(PerClassCocoMetric, data, without_detections(data), backend=backend)
    assert values['coco/bbox_mAP'] == values['coco/bbox_mAP_50'] == 0
    assert metric.evaluation.columns['bbox_AP'] == [0.0] * 5
    # Every object was missed.
    assert metric.evaluation.confusion[:, -1].sum() == sum(metric.evaluation.columns['objects'])


@pytest.mark.parametrize('backend', BACKENDS)
def test_images_that_were_not_predicted_do_not_count(data, tmp_path, backend):
    """As if the file had only those images: a dataset may leave some out."""
    content = json.loads(data.path.read_text())
    kept = {image['id'] for image in content['images'][::3]}
    content['images'] = [image for image in content['images'] if image['id'] in kept]
    content['annotations'] = [entry for entry in content['annotations']
                              if entry['image_id'] in kept]
    path = tmp_path / 'truth.json'
    path.write_text(json.dumps(content))
    samples = [sample for sample in data.samples if sample['img_id'] in kept]
    alone = SimpleNamespace(path=path, classes=data.classes)
    before, expected = evaluate(PerClassCocoMetric, alone, samples, backend=backend)
    metric, values = evaluate(PerClassCocoMetric, data, samples, backend=backend)
    assert values == expected and values['coco/bbox_mAP'] > 0.03
    assert metric.evaluation.columns == before.evaluation.columns
    assert (metric.evaluation.confusion == before.evaluation.confusion).all()


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_class_without_objects_has_no_precision(data, tmp_path, backend):
    content = json.loads(data.path.read_text())
    # Listed first, and with the largest id: the order of the classes is that of the file.
    content['categories'].insert(0, dict(id=90, name='other'))
    path = tmp_path / 'truth.json'
    path.write_text(json.dumps(content))
    samples = [dict(sample, pred_instances=dict(
        sample['pred_instances'], labels=sample['pred_instances']['labels'] + 1))
        for sample in data.samples]
    other = SimpleNamespace(path=path, classes=('other', *data.classes))
    metric, values = evaluate(PerClassCocoMetric, other, samples, backend=backend)
    before, expected = evaluate(PerClassCocoMetric, data, backend=backend)
    assert values == expected
    assert math.isnan(metric.evaluation.columns['bbox_AP'][0])
    assert metric.evaluation.columns['objects'][0] == 0
    assert metric.evaluation.columns['bbox_AP'][1:] == before.evaluation.columns['bbox_AP']
    assert (metric.evaluation.confusion[1:, 1:] == before.evaluation.confusion).all()


def test_confusion_counts_objects_and_detections(tmp_path):
    content = dict(images=[dict(id=1, file_name='a.jpg', width=100, height=100)],
                   categories=[dict(id=5, name='cat'), dict(id=9, name='dog')],
                   annotations=[dict(id=1, image_id=1, category_id=5, bbox=[0, 0, 20, 20], area=400,
                                     iscrowd=0),
                                dict(id=2, image_id=1, category_id=9, bbox=[50, 50, 20, 20],
                                     area=400, iscrowd=0),
                                dict(id=3, image_id=1, category_id=9, bbox=[80, 0, 20, 20],
                                     area=400, iscrowd=0)])
    (tmp_path / 'truth.json').write_text(json.dumps(content))
    boxes = torch.tensor([[0., 0, 20, 20], [50, 50, 70, 70], [30, 80, 40, 90], [80, 0, 100, 20]])
    instances = dict(bboxes=boxes, labels=torch.tensor([0, 0, 1, 1]),
                     scores=torch.tensor([0.9, 0.8, 0.7, 0.2]))
    data = SimpleNamespace(path=tmp_path / 'truth.json', classes=('cat', 'dog'))
    metric, _ = evaluate(PerClassCocoMetric, data, [dict(img_id=1, ori_shape=(100, 100),
                                                         pred_instances=instances)])
    # A cat, a dog taken for a cat, a dog whose detection has a low score, and a dog seen nowhere.
    assert metric.evaluation.confusion.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_truth_of_the_samples():
    """Without a file, the ground truth comes with the samples, as for CocoMetric."""
    sample = dict(img_id=7, ori_shape=(50, 50), pred_instances=dict(
        bboxes=torch.tensor([[5., 5, 30, 30]]), labels=torch.tensor([0]),
        scores=torch.tensor([0.9])), instances=[dict(bbox=[5, 5, 30, 30], bbox_label=0)])
    metric = PerClassCocoMetric()
    metric.dataset_meta = dict(classes=('cat',))
    for _ in range(2):
        metric.process({}, [sample])
        assert metric.evaluate(1)['coco/bbox_mAP'] == 1


def test_formats_results_alone(data, tmp_path):
    metric, values = evaluate(PerClassCocoMetric, data, format_only=True,
                              outfile_prefix=str(tmp_path / 'out'))
    assert values == {} and metric.evaluation is None
    assert len(json.loads((tmp_path / 'out.bbox.json').read_text())) > 1000


def test_an_unknown_backend():
    with pytest.raises(ConfigError, match="'cocoapi' must be 'faster-coco-eval' or 'pycocotools'"):
        PerClassCocoMetric(backend='cocoapi')


@pytest.mark.slow
def test_backends_agree_on_5000_images(tmp_path, capsys):
    data = generate(tmp_path, images=5000, classes=80, detections=80)
    seconds, results = {}, {}
    for name, kind, options in (('CocoMetric', CocoMetric, {}), *(
            (backend, PerClassCocoMetric, dict(backend=backend)) for backend in BACKENDS)):
        metric = kind(ann_file=str(data.path), **options)
        metric.dataset_meta = dict(classes=data.classes)
        metric.process({}, data.samples)
        start = time.process_time()
        results[name] = metric.evaluate(len(data.samples)), getattr(metric, 'evaluation', None)
        seconds[name] = time.process_time() - start
    with capsys.disabled():
        print('\nprocessor seconds for 5000 images:', seconds)
    assert results['CocoMetric'][0] == results[BACKENDS[0]][0] == results[BACKENDS[1]][0]
    fast, slow = (results[backend][1] for backend in BACKENDS)
    assert fast.columns.keys() == slow.columns.keys()
    for name, values in fast.columns.items():
        np.testing.assert_allclose(values, slow.columns[name], rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(fast.precision['bbox'], slow.precision['bbox'], rtol=1e-12)
