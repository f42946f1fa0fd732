"""Cascade Mask R-CNN on EfficientViT-M4, COCO, 12 epochs."""

_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './_base_/schedule_1x_adamw.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientViT',
        arch='m4',
        norm_eval=True,  # keep pretrained BN statistics; --from-scratch sets False
        init_cfg=dict(type='Pretrained', checkpoint='evit://efficientvit_m4')),
    neck=dict(
        _delete_=True,
        type='EfficientViTFPN',
        in_channels=[128, 256, 384],
        out_channels=256,
        num_extra_trans_convs=2,  # strides 8 and 4
        num_outs=5))  # strides 4 to 64
