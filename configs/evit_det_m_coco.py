"""Light detector on EfficientViT-M1, 96 channels, COCO, 300 epochs."""

_base_ = './_base_/evit_det_coco.py'

model = dict(
    backbone=dict(
        arch='m1',
        init_cfg=dict(type='Pretrained', checkpoint='evit://efficientvit_m1')),
    neck=dict(in_channels=[64, 128, 144, 192], out_channels=96),
    bbox_head=dict(in_channels=96, feat_channels=96))
