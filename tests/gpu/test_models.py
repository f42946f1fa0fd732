"""Detectors and segmentors train and predict on the device as they do on the CPU."""

import copy

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from random_models import randomize
from torch import nn

from evit_mm.deployment import deploy
from evit_mm.deployment.precision import compute_in_bfloat16
from evit_mm.engine.model_parts import parts

pytestmark = [pytest.mark.cuda,
              pytest.mark.filterwarnings('ignore:__floordiv__', 'ignore:torch.meshgrid')]

HEIGHT, WIDTH = 128, 192
DETECTORS = ('retinanet_evit_m0_coco', 'mask_rcnn_evit_m0_coco', 'evit_det_s_coco')
SEGMENTORS = ('upernet_evit_m0_ade20k', 'semantic_fpn_evit_m0_ade20k', 'evit_seg_s_ade20k')


@pytest.fixture
def build(repository, device):
    """Build the model of a config on the CPU, with random weights."""
    def build(name):
        config = Config.fromfile(repository / 'configs' / f'{name}.py')
        init_default_scope(config.default_scope)
        config.model.backbone.init_cfg = None
        if 'size' in config.model.data_preprocessor:
            config.model.data_preprocessor.size = (HEIGHT, WIDTH)
        model = revert_sync_batchnorm(MODELS.build(config.model))
        model.init_weights()
        for module in model.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.p = 0.0  # its random numbers are those of the device
        return randomize(model)

    return build


def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)
            for _ in range(2)]


def detection_batch():
    samples = []
    for _ in range(2):
        sample = DetDataSample(metainfo=dict(
            img_shape=(HEIGHT, WIDTH), ori_shape=(HEIGHT, WIDTH), scale_factor=(1.0, 1.0),
            batch_input_shape=(HEIGHT, WIDTH)))
        masks = np.zeros((2, HEIGHT, WIDTH), np.uint8)
        masks[0, 10:50, 8:60] = masks[1, 40:120, 70:180] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8., 10., 60., 50.], [70., 40., 180., 120.]]),
            labels=torch.tensor([0, 79]), masks=BitmapMasks(masks, HEIGHT, WIDTH))
        samples.append(sample)
    return dict(inputs=images(), data_samples=samples)


def segmentation_batch():
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(
            img_shape=(HEIGHT, WIDTH), ori_shape=(HEIGHT, WIDTH), pad_shape=(HEIGHT, WIDTH)))
        labels = torch.randint(0, 150, (1, HEIGHT, WIDTH), generator=generator)
        labels[:, :9] = 255
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return dict(inputs=images(), data_samples=samples)


def batch_for(name):
    return detection_batch() if name in DETECTORS else segmentation_batch()


def training_step(model, batch, **autocast):
    """Return the losses and the norm of the gradients of a training step."""
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    data = model.data_preprocessor(batch, training=True)
    with torch.autocast(next(model.parameters()).device.type, enabled=bool(autocast), **autocast):
        losses = model(**data, mode='loss')
    total, logged = model.parse_losses(losses)
    total.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    norm = torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt()
    return {name: value.item() for name, value in logged.items()}, norm.item()


@torch.no_grad()
def predictions(model, batch):
    model.eval()
    data = model.data_preprocessor(batch, training=False)
    return model(**data, mode='predict')


@pytest.mark.parametrize('name', [*DETECTORS, *SEGMENTORS])
def test_a_training_step(name, build, device):
    model = build(name)
    exact, exact_norm = training_step(copy.deepcopy(model), batch_for(name))
    model.to(device)
    losses, norm = training_step(copy.deepcopy(model), batch_for(name))
    assert losses.keys() == exact.keys()
    for key, value in losses.items():
        if 'mask_rcnn' not in name or 'rpn' in key:
            assert value == pytest.approx(exact[key], rel=1e-3, abs=1e-5), key
    # The second stage trains on proposals, of which rounding may exchange some.
    bound = 0.1 if 'mask_rcnn' in name else 1e-2
    assert losses['loss'] == pytest.approx(exact['loss'], rel=bound)
    assert norm == pytest.approx(exact_norm, rel=bound)
    bounds = {torch.bfloat16: 0.1, torch.float16: 0.05}
    if device.type == 'cpu':
        del bounds[torch.float16]  # takes minutes
    for dtype, bound in bounds.items():
        losses, norm = training_step(copy.deepcopy(model), batch_for(name), dtype=dtype)
        assert np.isfinite(norm)
        assert losses['loss'] == pytest.approx(exact['loss'], rel=bound)


@pytest.mark.parametrize('name', DETECTORS)
def test_detections(name, build, device):
    model = build(name)
    for cfg in (model.test_cfg, model.test_cfg.get('rcnn', {})):
        if 'score_thr' in cfg:
            cfg['score_thr'] = 0.0
    expected = predictions(model, detection_batch())
    model.to(device)
    plain = predictions(model, detection_batch())
    deployed = predictions(deploy(copy.deepcopy(model).eval()), detection_batch())
    for results in (plain, deployed):
        for result, other in zip(results, expected, strict=True):
            found, reference = result.pred_instances, other.pred_instances
            assert found.bboxes.device.type == device.type and len(found) == len(reference) > 0
            # Of two boxes with nearly equal scores, either may be kept.
            torch.testing.assert_close(found.scores.sort().values.cpu(),
                                       reference.scores.sort().values, rtol=1e-2, atol=1e-3)
            assert found.bboxes.isfinite().all()
            if 'masks' in reference:
                assert found.masks.shape == reference.masks.shape


@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentations(name, build, device):
    model = build(name)
    expected = predictions(model, segmentation_batch())
    model.to(device)
    for one in (model, deploy(copy.deepcopy(model).eval())):
        for result, other in zip(predictions(one, segmentation_batch()), expected, strict=True):
            logits, reference = result.seg_logits.data.cpu(), other.seg_logits.data
            assert (logits - reference).abs().max() < 1e-3 * reference.abs().max()
            same = result.pred_sem_seg.data.cpu() == other.pred_sem_seg.data
            assert same.float().mean() > 0.99


def test_bfloat16_of_a_test(build, device):
    """What `--bf16` does to a detector: bfloat16 inside, float32 outside."""
    model = build(DETECTORS[0]).to(device).eval()
    image = torch.randn(1, 3, HEIGHT, WIDTH, device=device)
    with torch.no_grad():
        expected = model(image)
        deploy(model)
        heads = set(parts(model, 'head'))
        for part in parts(model, 'backbone', 'neck', 'head'):
            compute_in_bfloat16(part, device.type, round_weights=True,
                                keep_last_layers=part in heads)
        for _ in range(2):  # the first call finds the last layers
            for kind, levels in zip(model(image), expected, strict=True):
                for level, reference in zip(kind, levels, strict=True):
                    assert level.dtype == torch.float32
                    assert (level - reference).norm() < 0.05 * reference.norm()
