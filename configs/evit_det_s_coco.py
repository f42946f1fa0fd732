"""Light detector on EfficientViT-M0, 64 channels, COCO, 300 epochs."""

_base_ = './_base_/evit_det_coco.py'

model = dict(
    backbone=dict(
        arch='m0',
        init_cfg=dict(type='Pretrained', checkpoint='evit://efficientvit_m0')),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64))
