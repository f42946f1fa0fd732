"""MMDetection's YOLOv3 and Mask2Former train and predict with this backbone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from mmengine.utils import get_installed_path

from evit_mm.engine.preflight.model import check_model

HEIGHT, WIDTH, NUM_CLASSES = 96, 128, 3


def stock_config(name):
    init_default_scope('mmdet')
    return Config.fromfile(Path(get_installed_path('mmdet')) / '.mim' / 'configs' / name).model


def yolov3():
    """Return a YOLOv3 whose neck lists its inputs from coarse to fine."""
    model = stock_config('yolo/yolov3_d53_8xb8-320-273e_coco.py')
    model.data_preprocessor.pad_size_divisor = 64  # the neck needs maps that exactly double
    model.backbone = dict(type='EfficientViT', arch='m0')
    model.neck.update(in_channels=[192, 128, 64], out_channels=[64, 32, 16])
    model.bbox_head.update(in_channels=[64, 32, 16], out_channels=[32, 32, 16],
                           featmap_strides=[64, 32, 16], num_classes=NUM_CLASSES)
    model.bbox_head.anchor_generator.strides = [64, 32, 16]
    return model


def mask2former():
    """Return a Mask2Former whose head receives the backbone's maps without a neck."""
    model = stock_config('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py')
    model.backbone = dict(type='EfficientViT', arch='m0', stem_strides=[8])
    head = model.panoptic_head
    head.update(in_channels=[32, 64, 128, 192], strides=[8, 16, 32, 64],
                num_things_classes=NUM_CLASSES, num_queries=20)
    head.loss_cls.class_weight = [1.0] * NUM_CLASSES + [0.1]
    head.pixel_decoder.encoder.num_layers = 1
    head.transformer_decoder.num_layers = 2
    model.panoptic_fusion_head.num_things_classes = NUM_CLASSES
    model.train_cfg.num_points = 64
    model.test_cfg.max_per_image = 10
    return model


def batch():
    samples = []
    for _ in range(2):
        sample = DetDataSample(metainfo=dict(
            img_shape=(HEIGHT, WIDTH), ori_shape=(HEIGHT, WIDTH), scale_factor=(1.0, 1.0)))
        masks = np.zeros((2, HEIGHT, WIDTH), np.uint8)
        masks[0, 10:50, 8:60] = masks[1, 40:90, 70:120] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8., 10., 60., 50.], [70., 40., 120., 90.]]),
            labels=torch.tensor([0, NUM_CLASSES - 1]), masks=BitmapMasks(masks, HEIGHT, WIDTH))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('config', [yolov3, mask2former])
def test_detector_learns_and_predicts(config):
    model = MODELS.build(config())
    model.init_weights()
    check_model(model)

    model.train()
    losses = model(**model.data_preprocessor(batch(), training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    assert total.isfinite()
    total.backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name

    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(batch(), training=False)
        results = model(**data, mode='predict')
    assert len(results) == 2
    for result in results:
        assert result.pred_instances.bboxes.isfinite().all()
        assert result.pred_instances.labels.lt(NUM_CLASSES).all()
