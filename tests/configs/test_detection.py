"""Every detection config of the project builds, computes losses and predicts."""

from pathlib import Path

import pytest
import torch
from families.batches import detection_batch
from families.trial import batch_for, make_small, predict_once, train_once
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.utils.flop_counter import FlopCounterMode

from evit_mm.checkpoint import address
from evit_mm.engine.preflight.model import check_model
from evit_mm.models import ARCHS

FOLDER = Path(__file__).resolve().parents[2] / 'configs'
CONFIGS = sorted(path for path in FOLDER.glob('*.py')
                 if path.name.startswith(('retinanet_', 'mask_rcnn_')))
LIGHT = {'s': 'm0', 'm': 'm1', 'l': 'm4'}  # the backbones of the light detectors
# The other variants differ only in their backbones, which have their own tests.
SOME_SLOW = [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * any(
    f'_{arch}_' in path.stem for arch in ('m1', 'm2', 'm3', 'm4', 'm5')))
             for path in CONFIGS]
# These exist for M4 alone.
OTHERS = ['atss', 'cascade_mask_rcnn', 'dino', 'faster_rcnn', 'fcos', 'gfl', 'rtmdet', 'tood']
SLOW = ['cascade_mask_rcnn', 'dino', 'faster_rcnn']
OWN_SCHEDULE = ['dino', 'rtmdet']
ZOO = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'


def test_all_variants_have_configs():
    names = {path.stem for path in CONFIGS}
    assert {f'{detector}_evit_{arch}_coco' for detector in ('retinanet', 'mask_rcnn')
            for arch in ARCHS} <= names


def test_every_coco_config_belongs_to_a_test():
    assert {path.stem for path in FOLDER.glob('*_coco.py')} == {
        *(path.stem for path in CONFIGS if path.stem.endswith('_coco')),
        *(f'{name}_evit_m4_coco' for name in OTHERS), *(f'evit_det_{size}_coco' for size in LIGHT)}


@pytest.mark.parametrize('path', SOME_SLOW)
def test_config_builds_learns_and_predicts(path):
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    config.model.backbone.init_cfg = None
    # 1000 proposals of these small images take ten seconds.
    if 'rpn_proposal' in (config.model.get('train_cfg') or {}):
        config.model.train_cfg.rpn_proposal.max_per_img = 50
        config.model.test_cfg.rpn.max_per_img = 50
    model = MODELS.build(config.model)
    model.init_weights()
    heads = model.roi_head.bbox_head if hasattr(model, 'roi_head') else model.bbox_head
    batch = detection_batch(heads.num_classes, 96, 128)

    model.train()
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    total, log = model.parse_losses(losses)
    assert total.isfinite() and any('loss' in name for name in log)
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name

    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(batch, training=False)
        results = model(**data, mode='predict')
        assert len(results) == 2 and hasattr(results[0].pred_instances, 'scores')
        assert model(**data, mode='tensor') is not None


@pytest.mark.parametrize('path', [
    *(path for path in CONFIGS if path.stem.endswith('_coco')),
    *(FOLDER / f'{name}_evit_m4_coco.py' for name in OTHERS)], ids=lambda path: path.stem)
def test_coco_config_states_its_protocol(path):
    config = Config.fromfile(path)
    name, _, arch = path.stem.removesuffix('_coco').rpartition('_evit_')
    assert config.model.backbone.arch == arch
    assert address(config.model.backbone.init_cfg.checkpoint) == f'{ZOO}efficientvit_{arch}.pth'
    assert config.model.backbone.norm_eval == (name != 'rtmdet')
    keys = config.optim_wrapper.paramwise_cfg.custom_keys
    assert keys.attention_biases.decay_mult == 0
    # Of the keys that match, the longest alone counts.
    assert keys.attention_biases.get('lr_mult') == keys.get('backbone', {}).get('lr_mult')
    # The ImageNet weights are those of images normalized like this; RTMDet's order is BGR.
    preprocessor = config.model.data_preprocessor
    rgb = slice(None) if preprocessor.bgr_to_rgb else slice(None, None, -1)
    assert (preprocessor.mean[rgb], preprocessor.std[rgb]) == (
        [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    if name in OWN_SCHEDULE:
        epochs, images = {'rtmdet': (300, 32), 'dino': (12, 2)}[name]
        assert config.train_cfg.max_epochs == epochs
        assert config.train_dataloader.batch_size == images
        assert config.auto_scale_lr.base_batch_size == 8 * images
        return
    # The protocol of the published detectors.
    assert config.optim_wrapper.optimizer == dict(
        type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert 'clip_grad' not in config.optim_wrapper
    warm_up, steps = config.param_scheduler
    # mmdet's configs of these families reach the full rate an iteration before ours.
    end = 500 if name in ('atss', 'fcos', 'gfl', 'tood') else 501
    assert (warm_up.start_factor, warm_up.end) == (0.001, end)
    assert (steps.milestones, config.train_cfg.max_epochs) == ([8, 11], 12)
    assert config.train_dataloader.batch_size == 2
    assert config.auto_scale_lr.base_batch_size == 16
    assert config.train_dataloader.dataset.pipeline[2].scale == (1333, 800)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OTHERS])
def test_other_detector_builds_learns_and_predicts(name):
    config = Config.fromfile(FOLDER / f'{name}_evit_m4_coco.py')
    init_default_scope(config.default_scope)
    make_small(config.model)
    if name == 'dino':
        config.model.num_queries = 20  # fewer than the tokens of a small image
    model = MODELS.build(config.model)
    model.init_weights()
    check_model(model, config.model)
    batch = batch_for(config, size=(96, 128))
    train_once(model, batch)
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, f'{parameter_name} has no gradient'
    predict_once(model, batch)


@pytest.mark.parametrize('size', LIGHT)
def test_light_detector_builds_learns_and_predicts(size):
    config = Config.fromfile(FOLDER / f'evit_det_{size}_coco.py')
    init_default_scope(config.default_scope)
    make_small(config.model)
    model = MODELS.build(config.model)
    model.init_weights()
    check_model(model, config.model)
    assert model.neck.out_strides == (8, 16, 32, 64)
    batch = batch_for(config, size=(96, 128))
    train_once(model, batch)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    predict_once(model, batch)


@pytest.mark.parametrize('size', LIGHT)
def test_light_detector_states_its_protocol(size):
    config = Config.fromfile(FOLDER / f'evit_det_{size}_coco.py')
    backbone = config.model.backbone
    assert backbone.arch == LIGHT[size] and not backbone.norm_eval
    assert address(backbone.init_cfg.checkpoint) == f'{ZOO}efficientvit_{LIGHT[size]}.pth'
    preprocessor = config.model.data_preprocessor
    assert preprocessor.bgr_to_rgb and preprocessor.mean == [123.675, 116.28, 103.53]
    assert preprocessor.std == [58.395, 57.12, 57.375]
    assert config.optim_wrapper.paramwise_cfg.custom_keys.attention_biases.decay_mult == 0
    assert config.auto_scale_lr.base_batch_size == 8 * config.train_dataloader.batch_size == 256
    assert config.train_cfg.max_epochs == 300
    average, switch = config.custom_hooks
    assert average.type == 'EMAHook' and average.update_buffers
    mixes = ('CachedMosaic', 'CachedMixUp')
    steps = [step.type for step in config.train_dataloader.dataset.pipeline]
    assert all(mix in steps for mix in mixes)
    # The last 20 epochs learn from images alone, and each of them is validated.
    assert switch.switch_epoch == 280 and config.train_cfg.dynamic_intervals == [(280, 1)]
    assert [step.type for step in switch.switch_pipeline] == [
        step for step in steps if step not in mixes]
    sizes = {part.scale for part in config.test_dataloader.dataset.pipeline
             if part.type == 'Resize'}
    assert sizes == {(416, 416)}


@pytest.mark.parametrize('size,params,macs', [('s', 2.3, 0.40), ('m', 3.1, 0.84), ('l', 9.0, 1.45)])
def test_cost_of_the_light_detectors(size, params, macs):
    """The figures of docs/light.md: millions of parameters, and billions of multiply-adds."""
    config = Config.fromfile(FOLDER / f'evit_det_{size}_coco.py')
    init_default_scope(config.default_scope)
    config.model.backbone.init_cfg = None
    with torch.device('meta'):  # counted, not computed
        model = MODELS.build(config.model).eval()
        image = torch.zeros(1, 3, 416, 416)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.bbox_head(model.extract_feat(image))
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, abs=0.005)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(
        params, abs=0.05)


def test_the_config_of_the_readme_builds(repository, tmp_path):
    text = (repository / 'README.md').read_text()
    (tmp_path / 'own.py').write_text(text.split('```python\n')[1].split('```')[0])
    config = Config.fromfile(tmp_path / 'own.py')
    init_default_scope(config.default_scope)
    assert config.model.backbone.pop('init_cfg').checkpoint == 'efficientvit_m4.pth'
    assert MODELS.build(config.model).neck.out_strides == (8, 16, 32, 64, 128)
