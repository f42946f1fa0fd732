"""Light detector on EfficientViT-M4, 128 channels, COCO, 300 epochs."""

_base_ = './_base_/evit_det_coco.py'

model = dict(
    backbone=dict(
        arch='m4',
        init_cfg=dict(type='Pretrained', checkpoint='evit://efficientvit_m4')),
    neck=dict(in_channels=[64, 128, 256, 384], out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128))
