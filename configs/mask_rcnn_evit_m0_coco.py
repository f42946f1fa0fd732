"""Mask R-CNN on EfficientViT-M0, COCO, 12 epochs."""

_base_ = './mask_rcnn_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m0',
        init_cfg=dict(checkpoint='evit://efficientvit_m0')),
    neck=dict(in_channels=[64, 128, 192]))
