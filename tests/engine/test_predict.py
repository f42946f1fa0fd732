"""Models that are built and loaded to predict with."""

import json
import shutil

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmseg.apis import inference_model
from torch import nn

from evit_mm.cli.main import main
from evit_mm.engine.config import load_config
from evit_mm.errors import CheckpointError, ConfigError, UserError
from evit_mm.predict import load_model

SHAPES = ('circle', 'square', 'triangle', 'star')


def assert_equal(result, expected, threshold=0):
    """Assert that a result has the very numbers of MMDetection's instances."""
    kept = expected[expected.scores >= threshold]
    for mine, name in ((result.boxes, 'bboxes'), (result.scores, 'scores'),
                       (result.labels, 'labels')):
        assert (mine == kept[name].numpy()).all()
    if result.masks is not None:
        assert (result.masks == kept.masks.numpy()).all()


@pytest.fixture
def picture(shapes):
    return str(next((shapes / 'val2017').glob('*.jpg')))


def test_a_detector_predicts_as_mmdets_own(config, trained, picture, readings):
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='nowhere.pth')
    config.model.test_cfg.score_thr = 0.0
    model = load_model(config, trained.checkpoint)
    assert (model.task, model.class_names) == ('detection', SHAPES)
    assert len(set(model.palette)) == 4
    module = model.module
    assert config.model.backbone.init_cfg.checkpoint == 'nowhere.pth'  # left as it was
    assert readings == [trained.checkpoint]
    assert not module.training and module.dataset_meta['classes'] == SHAPES
    theirs = init_detector(config, trained.checkpoint, device='cpu')
    for image in (picture, np.zeros((50, 60, 3), np.uint8)):
        predicted, expected = (inference_detector(one, image).pred_instances
                               for one in (module, theirs))
        assert len(predicted) == 100
        for name in ('bboxes', 'scores', 'labels'):
            assert torch.equal(predicted[name], expected[name])
        [result] = model(image, score_threshold=0)
        assert_equal(result, expected)
        assert result.shape == result.image.shape[:2] and result.masks is None


def test_a_segmentor_predicts_as_mmsegs_own(segmentor, tmp_path):
    """Without a checkpoint it has the weights of a training's start."""
    model = load_model(segmentor)
    module = model.module
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in module.modules())
    assert len(module.dataset_meta['classes']) == len(module.dataset_meta['palette']) == 150
    assert model.task == 'semantic segmentation' and len(model.class_names) == 150
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    expected = inference_model(module, image)
    torch.save(dict(state_dict=module.state_dict()), tmp_path / 'weights.pth')
    segmentor.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='nowhere.pth')
    again = load_model(segmentor, tmp_path / 'weights.pth')
    assert again.module.cfg.test_pipeline == segmentor.test_dataloader.dataset.pipeline
    [result] = again(image)
    assert (result.label_map == expected.pred_sem_seg.data[0].numpy()).all()
    assert result.label_map.shape == (50, 60) and result.boxes is None
    assert len(result.names) == len(np.unique(result.label_map))
    result = inference_model(again.module, image)
    assert torch.equal(result.seg_logits.data, expected.seg_logits.data)


def random_images(*sizes):
    generator = np.random.default_rng(1)
    return [generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def test_batches_of_a_detector(config, trained, monkeypatch):
    """Only images that the pipeline makes one size are computed together."""
    config.model.test_cfg.score_thr = 0.0
    model = load_model(config, trained.checkpoint)
    images = random_images((50, 60), (60, 50), (100, 120), (50, 60), (7, 200))
    alone = [model(image, score_threshold=0)[0] for image in images]
    sizes = []
    step = model.module.test_step
    monkeypatch.setattr(model.module, 'test_step',
                        lambda data: sizes.append(len(data['inputs'])) or step(data))
    together = model(images, score_threshold=0, batch_size=4)
    assert sizes == [2, 1, 1, 1]
    for one, other in zip(alone, together, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        assert np.median(np.abs(one.boxes - other.boxes)) < 1e-2  # near ties may change places


def test_batches_of_a_segmentor(segmentor):
    model = load_model(segmentor)
    images = random_images((50, 60), (60, 50), (50, 60))
    for image, result in zip(images, model(images, batch_size=3), strict=True):
        assert (result.label_map == model(image)[0].label_map).mean() > 0.999
        assert (result.image == image).all()


def test_masks_are_mmdets_own():
    config = load_config('mask_rcnn_evit_m0_coco', {
        'model.backbone.init_cfg': None, 'model.test_cfg.rpn.max_per_img': 20,
        'model.test_cfg.rcnn.score_thr': 0.0, 'model.test_cfg.rcnn.max_per_img': 5,
        'test_dataloader.dataset.pipeline.1.scale': (96, 96)})
    model = load_model(config, check=False)
    assert model.task == 'instance segmentation' and len(model.class_names) == 80
    for image in random_images((90, 60), (64, 64)):
        expected = inference_detector(model.module, image).pred_instances
        [result] = model(image, score_threshold=0)
        assert len(result) and result.masks.shape == (len(result), *image.shape[:2])
        assert_equal(result, expected)


@pytest.mark.parametrize('meta,classes,palette', [
    (dict(dataset_meta=dict(CLASSES=('a', 'b'), PALETTE=[(1, 2, 3)] * 2)), ('a', 'b'),
     [(1, 2, 3)] * 2),
    (dict(CLASSES=('a', 'b')), ('a', 'b'), None),
    (dict(dataset_meta=dict(classes=SHAPES)), SHAPES, (220, 20, 60)),
    (dict(epoch=1), SHAPES, (220, 20, 60)), (None, SHAPES, (220, 20, 60))])
def test_classes(meta, classes, palette, config, trained, tmp_path):
    """Those of the checkpoint come before those of the config."""
    state = torch.load(trained.checkpoint, weights_only=False)['state_dict']
    torch.save(dict(state_dict=state, **({} if meta is None else dict(meta=meta))),
               tmp_path / 'weights.pth')
    model = load_model(config, tmp_path / 'weights.pth')
    meta = model.module.dataset_meta
    assert tuple(meta['classes']) == classes
    found = meta.get('palette')
    assert (found[0] if isinstance(palette, tuple) else found) == palette
    # Names of another number of classes than the head has are not its names.
    assert model.class_names == (classes if len(classes) == 4 else
                                 ('class 0', 'class 1', 'class 2', 'class 3'))


def test_a_checkpoint_of_other_classes(config, trained, readings):
    """The heads of a config that was made for COCO are built for those of the checkpoint."""
    config.model.bbox_head.num_classes = 80
    model = load_model(config, trained.checkpoint)
    assert model.class_names == SHAPES and model.module.bbox_head.num_classes == 4
    assert config.model.bbox_head.num_classes == 80


def test_label_maps_of_other_classes(segmentor, tmp_path):
    model = load_model(segmentor)
    weights = {key: value[:3] if 'conv_seg' in key else value
               for key, value in model.module.state_dict().items()}
    palette = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    torch.save(dict(state_dict=weights, meta=dict(dataset_meta=dict(
        classes=('road', 'roof', 'sky'), palette=palette))), tmp_path / 'own.pth')
    model = load_model(segmentor, tmp_path / 'own.pth')
    [result] = model(random_images((50, 60)))
    assert set(result.names) <= {'road', 'roof', 'sky'}
    assert result.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_two_models_of_different_packages(config, segmentor, picture):
    """The one that was loaded last does not change where the other finds its transforms."""
    detector = load_model(config)
    assert load_model(segmentor)(picture)[0].boxes is None
    assert detector(picture, score_threshold=0)[0].label_map is None


def test_images_that_can_not_be_prepared(config, picture):
    config.test_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    with pytest.raises(ConfigError, match='not begin with LoadImageFromFile in colour, but with'):
        load_model(config)(picture)
    config.test_dataloader = config.test_pipeline = None
    with pytest.raises(ConfigError, match='has no test_dataloader with a pipeline'):
        load_model(config)(picture)


def test_images_that_are_too_narrow_to_resize(config):
    with pytest.raises(UserError, match="an image of 1x3000 pixels can't be prepared as the "):
        load_model(config)(np.zeros((3000, 1, 3), np.uint8))


def test_the_command(config_file, trained, shapes, tmp_path, monkeypatch, capsys):
    """A folder with its pictures, one of which is damaged."""
    photos = tmp_path / 'photos'
    shutil.copytree(shapes / 'val2017', photos / 'day')
    (photos / 'broken.jpg').write_text('no picture')
    monkeypatch.chdir(tmp_path)
    assert main(['predict', str(config_file), trained.checkpoint, 'photos', '--score-thr', '0.06',
                 '--batch-size', '3', '--classes', 'circle', 'star']) == 2
    printed = capsys.readouterr()
    assert '4 pictures: ' in printed.out
    assert 'broken.jpg: it is not an image' in printed.err
    content = json.loads((tmp_path / 'predictions/predictions.json').read_text())
    assert [image['file_name'] for image in content['images']] == sorted(
        f'day/{path.name}' for path in (shapes / 'val2017').iterdir())
    # They are those of the model in Python.
    model = load_model(config_file, trained.checkpoint)
    results = model(sorted((shapes / 'val2017').iterdir()), score_threshold=0.06,
                    classes=['circle', 'star'])
    assert sum(map(len, results)) == len(content['annotations'])
    assert len(list((tmp_path / 'predictions/pictures/day').iterdir())) == 4


def test_devices(config, monkeypatch):
    for device, message in (('gpu', 'no such device: gpu; use cpu or cuda'),
                            ('cuda:7', 'no such device: cuda:7; torch finds no CUDA card')):
        with pytest.raises(UserError, match=message):
            load_model(config, device=device)


def test_an_exported_file_has_its_weights():
    with pytest.raises(UserError, match='a.onnx holds its weights: leave out the checkpoint b.pth'):
        load_model('a.onnx', 'b.pth')


def test_mistakes(config, trained, tmp_path):
    for source, error, text in (('nowhere', UserError, 'no such config: nowhere'),
                                (Config(dict(a=1)), ConfigError, 'the config has no model')):
        with pytest.raises(error, match=text):
            load_model(source)
    with pytest.raises(CheckpointError, match='no such file: gone.pth'):
        load_model(config, 'gone.pth')
    with pytest.raises(CheckpointError, match='its backbone looks like m0'):
        load_model('retinanet_evit_m1_coco', trained.checkpoint)
    config.model.backbone.arch = 'm9'
    with pytest.raises(ConfigError, match='m9'):
        load_model(config)
