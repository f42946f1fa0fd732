"""Every segmentation config of the project builds, computes losses and predicts."""

from pathlib import Path

import pytest
import torch
from families.batches import segmentation_batch
from families.trial import make_small, predict_once, train_once
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.utils.flop_counter import FlopCounterMode

from evit_mm.checkpoint import address
from evit_mm.engine.preflight.model import check_model
from evit_mm.models import ARCHS

FOLDER = Path(__file__).resolve().parents[2] / 'configs'
CONFIGS = sorted(path for path in FOLDER.glob('*.py')
                 if path.name.startswith(('upernet_', 'semantic_fpn_')))
# These exist for M4 alone.
OTHERS = ['deeplabv3plus', 'mask2former', 'segformer']
LIGHT = {'s': 'm0', 'm': 'm1', 'l': 'm4'}  # the backbones of the light segmentors
# The other variants differ only in their backbones, which have their own tests.
SOME_SLOW = [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * any(
    f'_{arch}_' in path.stem for arch in ('m1', 'm2', 'm3', 'm4', 'm5')))
             for path in CONFIGS]
ZOO = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'
NUM_CLASSES = 150


def build(path, **backbone):
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    config.model.backbone.init_cfg = None
    config.model.backbone.update(backbone)
    return config, MODELS.build(config.model)


def batch(height=64, width=96, num_images=2):
    return segmentation_batch(NUM_CLASSES, height, width, num_images=num_images)


def test_every_config_belongs_to_a_test():
    others = {FOLDER / f'{name}_evit_m4_ade20k.py' for name in OTHERS} | {
        FOLDER / f'evit_seg_{size}_ade20k.py' for size in LIGHT}
    from_detection = {path for path in FOLDER.glob('*.py')
                      if path.stem.endswith('_coco')
                      or path.name.startswith(('retinanet_', 'evit_det_'))}
    assert set(FOLDER.glob('*.py')) - from_detection == {*CONFIGS, *others}
    assert {f'{head}_evit_{arch}_ade20k' for head in ('upernet', 'semantic_fpn')
            for arch in ARCHS} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize('path', SOME_SLOW)
def test_config_builds_learns_and_predicts(path):
    config, model = build(path)
    model.init_weights()

    model.train()
    losses = model(**model.data_preprocessor(batch(), training=True), mode='loss')
    total, log = model.parse_losses(losses)
    assert total.isfinite()
    assert ('aux.loss_ce' in log) == path.name.startswith('upernet')
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name

    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(batch(), training=False)
        results = model(**data, mode='predict')
        assert results[1].seg_logits.data.shape == (NUM_CLASSES, 64, 96)
        assert results[1].pred_sem_seg.data.shape == (1, 64, 96)
        logits = model(**data, mode='tensor')
        assert logits.shape[:2] == (2, NUM_CLASSES) and logits.isfinite().all()


@pytest.mark.parametrize('name', [
    *(f'{name}_evit_m4' for name in OTHERS), *(f'evit_seg_{size}' for size in LIGHT)])
def test_other_segmentor_builds_learns_and_predicts(name):
    config = Config.fromfile(FOLDER / f'{name}_ade20k.py')
    init_default_scope(config.default_scope)
    make_small(config.model)
    model = MODELS.build(config.model)
    model.init_weights()
    check_model(model, config.model)
    train_once(model, batch())
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, f'{parameter_name} has no gradient'
    predict_once(model, batch())


@pytest.mark.parametrize('path', [
    *(path for path in CONFIGS if path.stem.endswith('_ade20k')),
    *(FOLDER / f'{name}_evit_m4_ade20k.py' for name in OTHERS),
    *(FOLDER / f'evit_seg_{size}_ade20k.py' for size in LIGHT)], ids=lambda path: path.stem)
def test_ade20k_config_states_its_protocol(path):
    config = Config.fromfile(path)
    is_light = path.stem.startswith('evit_seg_')
    arch = LIGHT[path.stem.split('_')[2]] if is_light else path.stem.split('_evit_')[1][:2]
    assert config.model.backbone.arch == arch
    assert address(config.model.backbone.init_cfg.checkpoint) == f'{ZOO}efficientvit_{arch}.pth'
    assert config.model.backbone.norm_eval
    assert config.model.backbone.window_sizes == 8
    assert config.model.data_preprocessor.size == (512, 512)
    assert config.crop_size == (512, 512)
    assert config.train_dataloader.dataset.type == 'ADE20KDataset'
    keys = config.optim_wrapper.paramwise_cfg.custom_keys
    assert keys.attention_biases.decay_mult == 0
    # Of the keys that match, the longest alone counts.
    assert keys.attention_biases.get('lr_mult') == keys.get('backbone', {}).get('lr_mult')
    optimizer = config.optim_wrapper.optimizer
    batch_size, steps, decay = {
        'semantic_fpn': (32, 40000, 1e-4), 'mask2former': (16, 160000, 0.05),
    }.get(path.stem.split('_evit_')[0], (16, 160000, 0.01))
    assert config.train_dataloader.batch_size == batch_size
    assert config.auto_scale_lr.base_batch_size == batch_size
    assert config.train_cfg.max_iters == steps == config.param_scheduler[-1].end
    assert (optimizer.type, optimizer.weight_decay) == ('AdamW', decay)


@pytest.mark.parametrize('size,params,macs', [('s', 2.2, 0.51), ('m', 2.9, 1.10), ('l', 8.6, 1.88)])
def test_cost_of_the_light_segmentors(size, params, macs):
    """The figures of docs/light.md: millions of parameters, and billions of multiply-adds."""
    with torch.device('meta'):  # counted, not computed
        _, model = build(FOLDER / f'evit_seg_{size}_ade20k.py')
        image = torch.zeros(1, 3, 512, 512)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval().decode_head(model.backbone(image))
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, abs=0.005)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(
        params, abs=0.05)


@pytest.mark.parametrize('arch', ['m4', 'm5'])
def test_wide_semantic_fpn_is_that_of_the_papers(arch):
    """The neck and head of mmseg's base, on one level more, with the papers' schedule."""
    config = Config.fromfile(FOLDER / f'semantic_fpn_evit_{arch}_wide_ade20k.py')
    base = Config.fromfile(FOLDER / f'semantic_fpn_evit_{arch}_ade20k.py')
    assert (config.model.neck.type, config.model.neck.out_channels) == ('FPN', 256)
    assert config.model.decode_head.feature_strides == [4, 8, 16, 32, 64]
    assert config.model.decode_head.channels == 128
    (schedule,) = config.param_scheduler
    assert (schedule.type, schedule.power, schedule.eta_min) == ('PolyLR', 0.9, 1e-6)
    assert config.optim_wrapper == base.optim_wrapper
    assert config.optim_wrapper.optimizer.lr == 2e-4
    _, model = build(FOLDER / f'semantic_fpn_evit_{arch}_wide_ade20k.py')
    model.eval()
    with torch.no_grad():
        maps = model.neck(model.backbone(torch.zeros(1, 3, 128, 96)))
        assert [tuple(x.shape[1:]) for x in maps] == [
            (256, 32, 24), (256, 16, 12), (256, 8, 6), (256, 4, 3), (256, 2, 2)]
        assert model.decode_head(maps).shape == (1, NUM_CLASSES, 32, 24)


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('name', ['upernet', 'semantic_fpn'])
def test_the_heads_cost_is_limited(name, arch):
    """Neck and head need at most ten times the backbone's multiply-adds."""
    with torch.device('meta'):  # counted, not computed
        _, model = build(FOLDER / f'{name}_evit_{arch}_ade20k.py')
        image = torch.zeros(1, 3, 512, 512)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        maps = model.backbone(image)
        backbone = counter.get_total_flops()
        model.decode_head(model.neck(maps) if model.with_neck else maps)
    assert 0 < counter.get_total_flops() - backbone <= 10 * backbone


@pytest.mark.parametrize('name', ['upernet', 'semantic_fpn'])
def test_whole_and_slide_inference(name):
    """Windows as large as the image give its result; smaller ones give a whole map."""
    _, model = build(FOLDER / f'{name}_evit_m0_ade20k.py')
    model.init_weights()
    model.eval()
    data = model.data_preprocessor(batch(96, 160, num_images=1), training=False)

    def logits(**test_cfg):
        model.test_cfg = Config(test_cfg)
        with torch.no_grad():
            return model(**data, mode='predict')[0].seg_logits.data

    whole = logits(mode='whole')
    assert whole.shape == (NUM_CLASSES, 96, 160)
    torch.testing.assert_close(logits(mode='slide', crop_size=(96, 160), stride=(96, 160)), whole)
    assert logits(mode='slide', crop_size=(64, 64), stride=(42, 42)).shape == whole.shape
