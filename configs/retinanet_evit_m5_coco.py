"""RetinaNet on EfficientViT-M5, COCO, 12 epochs."""

_base_ = './retinanet_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m5',
        init_cfg=dict(checkpoint='evit://efficientvit_m5')),
    neck=dict(in_channels=[192, 288, 384]))
