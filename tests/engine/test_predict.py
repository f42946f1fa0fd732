"""Models that are built and loaded to predict with."""

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmseg.apis import inference_model
from torch import nn

from evit_mm.errors import CheckpointError, ConfigError, UserError
from evit_mm.predict import load_model

SHAPES = ('circle', 'square', 'triangle', 'star')


@pytest.fixture
def picture(shapes):
    return str(next((shapes / 'val2017').glob('*.jpg')))


def test_a_detector_predicts_as_mmdets_own(config, trained, picture, readings):
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='nowhere.pth')
    config.model.test_cfg.score_thr = 0.0
    model = load_model(config, trained.checkpoint)
    assert config.model.backbone.init_cfg.checkpoint == 'nowhere.pth'  # left as it was
    assert readings == [trained.checkpoint]
    assert not model.training and model.dataset_meta['classes'] == SHAPES
    theirs = init_detector(config, trained.checkpoint, device='cpu')
    for image in (picture, np.zeros((50, 60, 3), np.uint8)):
        predicted, expected = (inference_detector(one, image).pred_instances
                               for one in (model, theirs))
        assert len(predicted) == 100
        for name in ('bboxes', 'scores', 'labels'):
            assert torch.equal(predicted[name], expected[name])


def test_a_segmentor_predicts(segmentor, tmp_path):
    """Without a checkpoint it has the weights of a training's start."""
    model = load_model(segmentor)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert len(model.dataset_meta['classes']) == len(model.dataset_meta['palette']) == 150
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    expected = inference_model(model, image).seg_logits.data
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    segmentor.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='nowhere.pth')
    again = load_model(segmentor, tmp_path / 'weights.pth')
    assert again.cfg.test_pipeline == segmentor.test_dataloader.dataset.pipeline
    result = inference_model(again, image)
    assert torch.equal(result.seg_logits.data, expected)
    assert result.pred_sem_seg.data.shape == (1, 50, 60)


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
    assert tuple(model.dataset_meta['classes']) == classes
    found = model.dataset_meta.get('palette')
    assert (found[0] if isinstance(palette, tuple) else found) == palette


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
