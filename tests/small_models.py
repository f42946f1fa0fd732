"""Small forms of the ready configs, with random weights, whose export takes seconds."""

from typing import Any

import torch
from mmengine.config import Config
from random_models import SMALLEST, randomize
from torch import nn

from evit_mm.engine.config import load_config
from evit_mm.predict import TorchModel, load_model

CHANNELS = 16
DENSE = ('retinanet', 'fcos', 'atss', 'gfl', 'tood', 'rtmdet', 'evit_det', 'yolox')
TWO_STAGE = ('faster_rcnn', 'mask_rcnn', 'cascade_mask_rcnn')
DETECTORS = (*DENSE, *TWO_STAGE)
SEGMENTORS = ('upernet', 'semantic_fpn', 'segformer', 'deeplabv3plus', 'evit_seg')
_LIGHT = {'evit_det': 'evit_det_m', 'yolox': 'evit_det_m', 'evit_seg': 'evit_seg_m'}


def small_config(name: str) -> Config:
    """Return the config of a detector or segmentor with narrow and short parts."""
    dataset = 'ade20k' if name in SEGMENTORS else 'coco'
    config = load_config(f'{_LIGHT.get(name, f"{name}_evit_m4")}_{dataset}')
    model = config.model
    model.backbone.update(arch=SMALLEST, init_cfg=None)
    stages = list(SMALLEST['embed_dims'])
    maps = [stages[0] // 2, *stages]  # with the stem's at stride 8
    if name in SEGMENTORS:
        _shrink_segmentor(name, model, stages, maps)
    else:
        _shrink_detector(name, model, stages, maps)
    # Small images, so that a run takes no time.
    for step in config.test_dataloader.dataset.pipeline:
        if step['type'] == 'Resize':
            step['scale'] = (160, 96) if step.get('keep_ratio') else (128, 96)
        elif step['type'] == 'Pad' and 'size' in step:
            step['size'] = (192, 192)
    return config


def _shrink_detector(name: str, model: Any, stages: list[int], maps: list[int]) -> None:
    if name in ('rtmdet', 'evit_det', 'yolox'):
        model.neck.update(in_channels=maps, out_channels=CHANNELS)
        if name == 'rtmdet':
            model.neck.num_csp_blocks = 1
        model.bbox_head.update(in_channels=CHANNELS, feat_channels=CHANNELS, num_classes=5)
        model.test_cfg.update(nms_pre=200, max_per_img=20)
        return
    model.neck.update(in_channels=stages, out_channels=CHANNELS)
    if name in TWO_STAGE:
        model.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
        roi = model.roi_head
        roi.bbox_roi_extractor.out_channels = CHANNELS
        heads = roi.bbox_head if isinstance(roi.bbox_head, list) else [roi.bbox_head]
        for head in heads:
            head.update(in_channels=CHANNELS, fc_out_channels=32, num_classes=5)
        if 'mask_head' in roi:
            roi.mask_roi_extractor.out_channels = CHANNELS
            roi.mask_head.update(in_channels=CHANNELS, conv_out_channels=CHANNELS, num_convs=1,
                                 num_classes=5)
        model.test_cfg.rpn.update(nms_pre=100, max_per_img=60)
        model.test_cfg.rcnn.update(max_per_img=20, score_thr=0.15)
        return
    norm = {} if name == 'retinanet' else dict(
        norm_cfg=dict(type='GN', num_groups=4, requires_grad=True))
    model.bbox_head.update(in_channels=CHANNELS, feat_channels=CHANNELS, num_classes=5,
                           stacked_convs=2 if name == 'tood' else 1, **norm)
    model.test_cfg.update(nms_pre=100, max_per_img=20)


def _shrink_segmentor(name: str, model: Any, stages: list[int], maps: list[int]) -> None:
    model.auxiliary_head = None
    head = model.decode_head
    if name == 'semantic_fpn':
        model.neck.update(in_channels=maps, out_channels=CHANNELS)
        head.in_channels = [CHANNELS] * len(head.in_channels)
    elif name == 'deeplabv3plus':
        head.update(in_channels=stages, c1_in_channels=maps[0], c1_channels=8)
    else:
        head.in_channels = maps
    head.update(channels=CHANNELS, num_classes=7)


def small_model(name: str, config: Config | None = None) -> TorchModel:
    """Build a small model whose predictions are spread over scores, places and classes."""
    config = config or small_config(name)
    predictor = load_model(config, check=False)
    assert isinstance(predictor, TorchModel)
    # Heads on top of others magnify the rounding of those below, and more so with large weights.
    # With sums in the neck, these would lead to scores that all are 1.
    sharpen(predictor.module, gain=1.0 if name in (*TWO_STAGE, 'evit_det', 'yolox') else 1.5)
    return predictor


def sharpen(model: nn.Module, gain: float = 1.5) -> None:
    """Give a model weights with which its heads predict something, in place.

    Args:
        model: The model.
        gain: Spread of the weights before the last layers; a large one magnifies rounding.
    """
    randomize(model)
    generator = torch.Generator().manual_seed(1)
    for part in ('bbox_head', 'rpn_head', 'roi_head', 'decode_head', 'neck'):
        for name, parameter in getattr(model, part, nn.Module()).named_parameters():
            is_last = any(key in name for key in ('_cls.', 'fc_cls', 'conv_seg', 'rtm_cls',
                                                  'conv_logits', 'retina_cls', 'conv_cls',
                                                  'conv_obj'))
            if name.endswith('weight') and parameter.ndim > 1:
                factor = 0.4 if 'retina' in name else 8.0 if 'conv_seg' in name else 2.0
                # Large offsets would let the steps of a cascade magnify rounding.
                factor = 0.4 if 'fc_reg' in name else factor if is_last else gain
                spread = factor / parameter[0].numel() ** 0.5
                nn.init.normal_(parameter, 0, spread, generator=generator)
            elif is_last:
                nn.init.normal_(parameter, -1, 0.01 if 'seg' in name else 0.3,
                                generator=generator)
