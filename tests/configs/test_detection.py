"""Every detection config of the project builds, computes losses and predicts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

from evit_mm.checkpoint import address
from evit_mm.models import ARCHS

CONFIGS = sorted(path for path in (Path(__file__).resolve().parents[2] / 'configs').glob('*.py')
                 if path.name.startswith(('retinanet_', 'mask_rcnn_')))
# The other variants differ only in their backbones, which have their own tests.
SOME_SLOW = [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * any(
    f'_{arch}_' in path.stem for arch in ('m1', 'm2', 'm3', 'm4', 'm5')))
             for path in CONFIGS]
ZOO = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'


def detection_batch(num_classes, height=96, width=128):
    """Return two images with two objects each, and masks."""
    samples = []
    for i in range(2):
        boxes = torch.tensor([[8.0, 8, 60, 70], [40, 20, 120, 90]])
        masks = np.zeros((2, height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        sample = DetDataSample(metainfo=dict(
            img_id=i, img_shape=(height, width), ori_shape=(height, width),
            pad_shape=(height, width), batch_input_shape=(height, width), scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.tensor([0, num_classes - 1]),
            masks=BitmapMasks(masks, height, width))
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long(),
            masks=BitmapMasks(np.zeros((0, height, width), np.uint8), height, width))
        samples.append(sample)
    return dict(inputs=[torch.randint(0, 256, (3, height, width), dtype=torch.uint8)] * 2,
                data_samples=samples)


def test_all_variants_have_configs():
    names = {path.stem for path in CONFIGS}
    assert {f'{detector}_evit_{arch}_coco' for detector in ('retinanet', 'mask_rcnn')
            for arch in ARCHS} <= names


@pytest.mark.parametrize('path', SOME_SLOW)
def test_config_builds_learns_and_predicts(path):
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    if path.stem.endswith('_coco'):
        arch = path.stem.split('_')[-2]
        assert config.model.backbone.arch == arch
        assert address(config.model.backbone.init_cfg.checkpoint) == \
            f'{ZOO}efficientvit_{arch}.pth'
        assert config.model.backbone.norm_eval
        config.model.backbone.init_cfg = None
        # The published protocol.
        assert config.optim_wrapper.optimizer == dict(
            type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
        assert config.optim_wrapper.paramwise_cfg.custom_keys.attention_biases.decay_mult == 0
        assert 'clip_grad' not in config.optim_wrapper
        warm_up, steps = config.param_scheduler
        assert (warm_up.start_factor, warm_up.end) == (0.001, 500)
        assert (steps.milestones, config.train_cfg.max_epochs) == ([8, 11], 12)
        assert config.train_dataloader.batch_size == 2
        assert config.auto_scale_lr.base_batch_size == 16
        assert config.train_dataloader.dataset.pipeline[2].scale == (1333, 800)
    if path.stem.startswith('mask_rcnn'):  # 1000 proposals of these small images take ten seconds
        config.model.train_cfg.rpn_proposal.max_per_img = 50
        config.model.test_cfg.rpn.max_per_img = 50
    model = MODELS.build(config.model)
    model.init_weights()
    heads = model.roi_head.bbox_head if hasattr(model, 'roi_head') else model.bbox_head
    batch = detection_batch(heads.num_classes)

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


def test_the_config_of_the_readme_builds(repository, tmp_path):
    text = (repository / 'README.md').read_text()
    (tmp_path / 'own.py').write_text(text.split('```python\n')[1].split('```')[0])
    config = Config.fromfile(tmp_path / 'own.py')
    init_default_scope(config.default_scope)
    assert config.model.backbone.pop('init_cfg').checkpoint == 'efficientvit_m4.pth'
    assert MODELS.build(config.model).neck.out_strides == (8, 16, 32, 64, 128)
