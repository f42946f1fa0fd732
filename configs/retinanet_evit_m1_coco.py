"""RetinaNet on EfficientViT-M1, COCO, 12 epochs."""

_base_ = './retinanet_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m1',
        init_cfg=dict(checkpoint='evit://efficientvit_m1')),
    neck=dict(in_channels=[128, 144, 192]))
