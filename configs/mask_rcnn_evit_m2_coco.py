"""Mask R-CNN on EfficientViT-M2, COCO, 12 epochs."""

_base_ = './mask_rcnn_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m2',
        init_cfg=dict(checkpoint='evit://efficientvit_m2')),
    neck=dict(in_channels=[128, 192, 224]))
