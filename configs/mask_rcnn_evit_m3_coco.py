"""Mask R-CNN on EfficientViT-M3, COCO, 12 epochs."""

_base_ = './mask_rcnn_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m3',
        init_cfg=dict(checkpoint='evit://efficientvit_m3')),
    neck=dict(in_channels=[128, 240, 320]))
