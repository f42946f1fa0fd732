"""The detectors of the ablation: the smallest light detector with parts replaced, and peers."""

from typing import Any

import light.nanodet  # noqa: F401  (registers GhostPAN)

# isort: split
import torch
from mmcv.cnn import DepthwiseSeparableConvModule, Scale
from mmdet.models.dense_heads import GFLHead, RTMDetSepBNHead
from mmdet.models.task_modules.assigners import AssignResult, ATSSAssigner
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from torch import nn

from evit_mm.engine.config import load_config

__all__ = ['PEERS', 'SIZES', 'VARIANTS', 'ATSSOfPoints', 'OneTowerHead', 'SeparableGFLHead',
           'UnevenTowersHead', 'variant_config']

_WIDTH = 64
_STRIDES = [8, 16, 32, 64]
_LAYERS = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='HSwish'))
_GFL = dict(
    reg_max=7,
    anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=5,
                          scales_per_octave=1, strides=_STRIDES),
    loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
    loss_bbox=dict(type='GIoULoss', loss_weight=2.0))
_HEAD = dict(num_classes=80, in_channels=_WIDTH, feat_channels=_WIDTH, stacked_convs=2)

_CONCATENATED = dict(neck=dict(merge='concat'))
_SOFT_LABELS = dict(assigner=dict(_delete_=True, type='DynamicSoftLabelAssigner', topk=13))


VARIANTS: dict[str, dict[str, Any]] = {
    'as configured': {},
    'neck: concatenation': _CONCATENATED,
    'assigner: dynamic soft labels': dict(train_cfg=_SOFT_LABELS),
    'assigner: ATSS': dict(train_cfg=dict(assigner=dict(_delete_=True, type='ATSSOfPoints'))),
    'assigner: one to one': dict(
        train_cfg=dict(assigner=dict(topk=1)),
        test_cfg=dict(nms=dict(iou_threshold=1.0))),  # nothing is suppressed
    'head: towers of one convolution': dict(bbox_head=dict(stacked_convs=1)),
    'head: class tower of one convolution': dict(
        bbox_head=dict(type='UnevenTowersHead', class_convs=1)),
    'head: box tower of one convolution': dict(
        bbox_head=dict(type='UnevenTowersHead', box_convs=1)),
    'head: one tower': dict(bbox_head=dict(type='OneTowerHead')),
    'head: objectness': dict(bbox_head=dict(with_objectness=True)),
    'head: group normalisation': dict(
        bbox_head=dict(norm_cfg=dict(_delete_=True, type='GN', num_groups=16))),
    'head: GFL with ATSS': dict(
        type='GFL',
        bbox_head=dict(_delete_=True, type='SeparableGFLHead',
                       norm_cfg=dict(type='GN', num_groups=16), **_GFL, **_HEAD),
        train_cfg=dict(assigner=dict(_delete_=True, type='ATSSAssigner', topk=9))),
    'head: GFL with ATSS, BN': dict(
        type='GFL',
        bbox_head=dict(_delete_=True, type='SeparableGFLHead', norm_cfg=dict(type='BN'), **_GFL,
                       **_HEAD),
        train_cfg=dict(assigner=dict(_delete_=True, type='ATSSAssigner', topk=9))),
    'head: NanoDet-Plus with ATSS': dict(
        type='GFL',
        bbox_head=dict(_delete_=True, type='NanoDetPlusHead', init_cfg=None, **_GFL, **_HEAD),
        train_cfg=dict(assigner=dict(_delete_=True, type='ATSSAssigner', topk=9))),
    'head: YOLOX with SimOTA': dict(
        type='YOLOX',
        bbox_head=dict(_delete_=True, type='YOLOXHead', use_depthwise=True, strides=_STRIDES,
                       **_HEAD, **_LAYERS),
        train_cfg=dict(
            assigner=dict(_delete_=True, type='SimOTAAssigner', center_radius=2.5))),
    'plain distances, soft labels': dict(
        train_cfg=_SOFT_LABELS, bbox_head=dict(exp_on_reg=False)),
    'neck: CSP-PAN': dict(neck=dict(
        _delete_=True, type='CSPNeXtPAFPN', in_channels=[32, 64, 128, 192], out_channels=_WIDTH,
        num_csp_blocks=1, use_depthwise=True, **_LAYERS)),
    'neck: GhostPAN': dict(neck=dict(type='GhostPAN', act_cfg=dict(type='HSwish'))),
    'neck: kernels of 3x3': dict(neck=dict(kernel_size=3)),
    'levels: 8 to 32': dict(
        backbone=dict(out_indices=(0, 1)),
        neck=dict(in_channels=[32, 64, 128]),
        bbox_head=dict(anchor_generator=dict(strides=[8, 16, 32]))),
    'levels: 8 to 128': dict(
        neck=dict(num_outs=5),
        bbox_head=dict(anchor_generator=dict(strides=[8, 16, 32, 64, 128]))),
    'levels: 16 to 128': dict(
        backbone=dict(stem_strides=()),
        neck=dict(in_channels=[64, 128, 192], in_strides=[16, 32, 64], num_outs=4),
        bbox_head=dict(anchor_generator=dict(strides=[16, 32, 64, 128]))),
}
"""The changes of the smallest light detector's config, by name.

All but the first have a neck that concatenates maps, unless they replace it.
"""

SIZES = {'evit_det_m': 'evit_det_m_coco', 'evit_det_l': 'evit_det_l_coco'}
PEERS = {'YOLOX-nano': 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py',
         'RTMDet-tiny': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
         'RTMDet-tiny, exponentials': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'}


def variant_config(name: str, classes: int = 80) -> ConfigDict:
    """Return the config of the model of a variant, size or peer, which loads no weights."""
    if name not in {**VARIANTS, **SIZES, **PEERS}:
        raise ValueError(f'{name!r} is none of the variants, sizes and peers')
    config = get_config(PEERS[name]) if name in PEERS else load_config(
        SIZES.get(name, 'evit_det_s_coco'))
    model: Any = config.model
    model.backbone.init_cfg = None
    model.pop('use_syncbn', None)
    model.data_preprocessor.pop('batch_augments', None)
    if VARIANTS.get(name):
        model.merge(_CONCATENATED)
        model.merge(VARIANTS[name])
    elif name.endswith('exponentials'):
        model.bbox_head.exp_on_reg = True
    model.bbox_head.num_classes = classes
    for part in (model.backbone, model.neck, model.bbox_head):
        if part.get('norm_cfg', {}).get('type') == 'SyncBN':
            part.norm_cfg.type = 'BN'
    return model


@MODELS.register_module()
class SeparableGFLHead(GFLHead):
    """GFL's head with depthwise-separable towers and pointwise predictions."""

    def _init_layers(self) -> None:
        def tower() -> nn.ModuleList:
            return nn.ModuleList(
                DepthwiseSeparableConvModule(
                    self.feat_channels if index else self.in_channels, self.feat_channels, 3,
                    padding=1, norm_cfg=self.norm_cfg, act_cfg=dict(type='HSwish'))
                for index in range(self.stacked_convs))

        self.cls_convs, self.reg_convs = tower(), tower()
        self.gfl_cls = nn.Conv2d(self.feat_channels, self.cls_out_channels, 1)
        self.gfl_reg = nn.Conv2d(self.feat_channels, 4 * (self.reg_max + 1), 1)
        self.scales = nn.ModuleList(Scale(1.0) for _ in self.prior_generator.strides)


@MODELS.register_module()
class OneTowerHead(RTMDetSepBNHead):
    """RTMDet's head whose classes and boxes are predicted from the same maps."""

    def _init_layers(self) -> None:
        super()._init_layers()
        del self.reg_convs

    def forward(self, feats: Any) -> tuple[Any, Any]:
        """Map features to scores and to distances in pixels, for each level."""
        scores, distances = [], []
        for level, x in enumerate(feats):
            for layer in self.cls_convs[level]:
                x = layer(x)
            scores.append(self.rtm_cls[level](x))
            distances.append(self.rtm_reg[level](x).exp() *
                             self.prior_generator.strides[level][0])
        return tuple(scores), tuple(distances)


@MODELS.register_module()
class UnevenTowersHead(RTMDetSepBNHead):
    """RTMDet's head with towers of different lengths for classes and boxes."""

    def __init__(self, *arguments: Any, class_convs: int = 2, box_convs: int = 2,
                 **options: Any) -> None:
        self.lengths = class_convs, box_convs
        super().__init__(*arguments, **options)

    def _init_layers(self) -> None:
        super()._init_layers()
        for towers, length in zip((self.cls_convs, self.reg_convs), self.lengths, strict=True):
            for tower in towers:
                assert length <= len(tower), f'{length} is more than stacked_convs={len(tower)}'
                del tower[length:]


@TASK_UTILS.register_module()
class ATSSOfPoints(ATSSAssigner):
    """ATSS for RTMDet's head: points as squares of five strides, labels as soft as overlaps."""

    def __init__(self) -> None:
        super().__init__(topk=9)

    def assign(self, predictions: Any, truth: Any, ignored: Any = None) -> AssignResult:
        """Assign objects to points (x, y, stride, stride), which are sorted by their strides."""
        points, strides = predictions.priors[:, :2], predictions.priors[:, 2:]
        squares = predictions.new(priors=torch.cat(
            (points - 2.5 * strides, points + 2.5 * strides), dim=1))
        counts = torch.unique_consecutive(strides[:, 0], return_counts=True)[1].tolist()
        result = super().assign(squares, counts, truth, ignored)
        chosen = result.gt_inds > 0
        result.max_overlaps = predictions.bboxes.new_zeros(len(points))
        result.max_overlaps[chosen] = self.iou_calculator(
            predictions.bboxes[chosen], truth.bboxes[result.gt_inds[chosen] - 1], is_aligned=True)
        return result
