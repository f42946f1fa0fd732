"""Exported files are tested with the data and the metrics of a config."""

import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement
from mmseg.registry import DATASETS
from small_models import sharpen, small_config, small_model

from evit_mm import engine
from evit_mm.deployment.export import export
from evit_mm.deployment.export.verify import drawn_image
from evit_mm.engine.config import load_config
from evit_mm.engine.exported import ExportedPredictor, check_exported_classes
from evit_mm.engine.hooks.summary import _describe_device, _describe_weights
from evit_mm.errors import ConfigError, UserError
from evit_mm.predict import load_model
from evit_runtime.exported import ExportedModel
from evit_runtime.metadata import Metadata
from evit_runtime.preprocess import Preprocessing

SEGMENTOR = 'upernet_evit_m0_shapes'


class Session:
    """A session that finds one object, as large as its image."""

    backend = 'none'
    inputs = ('images', 'sizes')
    outputs = ('boxes', 'scores', 'labels')

    def __init__(self):
        self.given = []

    def run(self, inputs):
        self.given.append(inputs)
        sizes = inputs['sizes'].astype(np.float32)
        boxes = np.concatenate((np.zeros_like(sizes), sizes[:, ::-1]), axis=1)[:, None]
        count = len(sizes)
        return {'boxes': boxes, 'scores': np.full((count, 1), 0.5, np.float32),
                'labels': np.ones((count, 1), np.int64)}


@pytest.fixture
def predictor(monkeypatch):
    def build(**values):
        metadata = Metadata(task='detection', inputs=Session.inputs, outputs=Session.outputs,
                            class_names=('cat', 'dog'), preprocessing=Preprocessing(**values))
        model = ExportedModel(Session(), metadata)
        monkeypatch.setattr('evit_mm.engine.exported.load_exported', lambda path: model)
        return ExportedPredictor('model.onnx')

    return build


def test_a_file_for_any_size_takes_the_images_of_the_pipeline(predictor):
    model = predictor(divisor=32)
    images = [torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8) for _ in range(2)]
    samples = [BaseDataElement(metainfo=dict(img_shape=(40, 60), ori_shape=(80, 180),
                                             scale_factor=(1 / 3, 0.5))) for _ in images]
    for sample in model.test_step(dict(inputs=images, data_samples=samples)):
        np.testing.assert_allclose(sample.pred_instances.bboxes, [[0, 0, 180, 80]], rtol=1e-6)
        assert sample.pred_instances.labels.tolist() == [1]
    given = model.model.session.given
    assert len(given) == 1  # both images at once
    assert given[0]['images'].shape == (2, 64, 64, 3)
    assert np.array_equal(given[0]['images'][1, :40, :60], images[1].permute(1, 2, 0))
    assert given[0]['sizes'].tolist() == [[40, 60]] * 2


def test_a_batch_is_padded_to_its_largest_image(predictor):
    """As MMDetection does, whose results depend on it."""
    model = predictor(divisor=32, fill=(1, 2, 3))
    images = [torch.full((3, *size), 9, dtype=torch.uint8) for size in ((40, 60), (90, 30))]
    samples = [BaseDataElement(metainfo=dict(img_shape=tuple(image.shape[1:]), ori_shape=(10, 10),
                                             scale_factor=(1, 1))) for image in images]
    model.test_step(dict(inputs=images, data_samples=samples))
    [given] = model.model.session.given
    assert given['images'].shape == (2, 96, 64, 3)
    assert given['sizes'].tolist() == [[40, 60], [90, 30]]
    assert (given['images'][0, 40:] == (1, 2, 3)).all()
    assert (given['images'][1, :90, :30] == 9).all()


def test_a_file_of_a_fixed_size_reads_the_images_itself(predictor, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((80, 180, 3), np.uint8))
    model = predictor(size=(64, 64))
    sample = BaseDataElement(metainfo=dict(img_path=str(tmp_path / 'a.png')))
    found, = model.test_step(dict(inputs=[torch.zeros((3, 7, 7))], data_samples=[sample]))
    np.testing.assert_allclose(found.pred_instances.bboxes, [[0, 0, 180, 80]], atol=2)
    assert model.model.session.given[0]['images'].shape == (1, 64, 64, 3)


def test_classes_that_differ_are_named(predictor):
    class Dataset:
        metainfo = dict(classes=('cat', 'horse'))

    with pytest.raises(ConfigError, match='dog and horse'):
        check_exported_classes(predictor().model, Dataset())


def test_the_summary_does_not_call_its_weights_random(predictor):
    model = predictor()
    runner = type('Runner', (), dict(_load_from=None, _resume=False, work_dir='.'))()
    assert _describe_weights(runner, model) == 'those of the exported file'
    assert 'runtime' in _describe_device(model)


def test_flags_that_change_the_model_are_refused(predictor, config_file, shapes, tmp_path,
                                                 monkeypatch):
    monkeypatch.setattr('evit_mm.engine.run.load_exported', lambda path: predictor().model)
    with pytest.raises(UserError, match='is tested as it is'):
        engine.test(config_file, 'model.onnx', data_root=shapes, work_dir=tmp_path, tta=True)


@pytest.mark.slow
def test_metrics_equal_those_of_pytorch(detection, config_file, shapes, tmp_path):
    """Every digit: the objects are some of what random weights find, whose scores are no ties."""
    root = tmp_path / 'data'
    shutil.copytree(shapes, root)
    predictor = load_model(load_config(config_file, detection), check=False)
    sharpen(predictor.module, gain=1.0)
    checkpoint = tmp_path / 'weights.pth'
    torch.save({'state_dict': predictor.module.state_dict()}, checkpoint)
    file = root / 'annotations' / 'instances_val2017.json'
    content = json.loads(file.read_text())
    content['annotations'] = []
    for image in content['images']:
        result = predictor(root / 'val2017' / image['file_name'])[0]
        for box, label in list(zip(result.boxes, result.labels, strict=True))[2:30:3]:
            left, top, right, bottom = map(float, box)
            sides = [0.9 * (right - left), 0.9 * (bottom - top)]
            content['annotations'].append(dict(
                id=len(content['annotations']) + 1, image_id=image['id'], iscrowd=0,
                category_id=int(label) + 1, bbox=[left, top, *sides], area=sides[0] * sides[1]))
    file.write_text(json.dumps(content))
    options = dict(data_root=root, work_dir=tmp_path, cfg_options=detection)
    expected = engine.test(config_file, checkpoint, out=tmp_path / 'expected.pkl', **options)
    assert 0.05 < expected['coco/bbox_mAP'] < 0.9
    path = export(config_file, checkpoint, out=tmp_path / 'model.onnx', cfg_options=detection)
    found = engine.test(config_file, path, out=tmp_path / 'found.pkl', **options)
    assert found == expected
    one, other = (pickle.loads((tmp_path / f'{name}.pkl').read_bytes())
                  for name in ('expected', 'found'))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(torch.as_tensor(b['pred_instances']['scores']),
                                   torch.as_tensor(a['pred_instances']['scores']),
                                   atol=1e-3, rtol=0)


def test_a_segmentor_has_the_metrics_of_its_label_maps(scenes, loaders, tmp_path, monkeypatch):
    """And the config's data_preprocessor, which mmengine adds to the model, is not in the way."""
    class Walls:
        backend, inputs, outputs = 'none', ('images', 'output_size'), ('label_map',)

        def run(self, inputs):
            shape = (len(inputs['images']), *inputs['output_size'])
            return {'label_map': np.zeros(shape, np.uint8)}

    config = load_config(SEGMENTOR)
    classes = DATASETS.get('ADE20KDataset').METAINFO['classes']
    metadata = Metadata(task='segmentation', inputs=Walls.inputs, outputs=Walls.outputs,
                        class_names=classes, preprocessing=Preprocessing(divisor=32))
    model = ExportedModel(Walls(), metadata)
    for module in ('run', 'exported'):
        monkeypatch.setattr(f'evit_mm.engine.{module}.load_exported', lambda path: model)
    metrics = engine.test(SEGMENTOR, 'model.onnx', data_root=scenes, work_dir=tmp_path,
                          cfg_options=loaders)
    assert 'data_preprocessor' in config
    labels = np.concatenate([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).ravel() for path in
                             (scenes / 'annotations' / 'validation').glob('*.png')])
    assert metrics['aAcc'] == pytest.approx(100 * (labels == 1).sum() / (labels > 0).sum())
    assert metrics['aAcc'] > 0


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
@pytest.mark.parametrize('name', ['upernet', 'semantic_fpn'])
def test_miou_equals_that_of_pytorch(name, suffix, tmp_path):
    """On label maps that are PyTorch's predictions, so that one in 10,000 pixels shows."""
    config, checkpoint = small_config(name), tmp_path / 'weights.pth'
    if name == 'semantic_fpn':  # all images in one size
        config.test_dataloader.dataset.pipeline[1].update(scale=(128, 96), keep_ratio=False)
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    config.test_dataloader.update(num_workers=0, persistent_workers=False, dataset=dict(
        type='LabelMapDataset', data_root=str(tmp_path), reduce_zero_label=True,
        pipeline=config.test_dataloader.dataset.pipeline,
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        metainfo=dict(classes=[f'class {index}' for index in range(7)])))
    config.dump(tmp_path / 'config.py')
    model = small_model(name, config)
    torch.save({'state_dict': model.module.state_dict()}, checkpoint)
    for index, size in enumerate([(90, 161), (133, 71), (64, 200)]):
        image = np.roll(drawn_image(size), 17 * index, axis=(0, 1))
        path = tmp_path / 'images' / f'{index}.png'
        cv2.imwrite(str(path), image)
        cv2.imwrite(str(tmp_path / 'masks' / path.name), model(path)[0].label_map + 1)
    options = dict(data_root=tmp_path, work_dir=tmp_path / 'work_dir')
    expected = engine.test(tmp_path / 'config.py', checkpoint, **options)
    assert expected['mIoU'] == 100
    path = export(tmp_path / 'config.py', checkpoint, out=tmp_path / f'model{suffix}')
    found = engine.test(tmp_path / 'config.py', path, **options)
    assert found == pytest.approx(expected, abs=0.01)
