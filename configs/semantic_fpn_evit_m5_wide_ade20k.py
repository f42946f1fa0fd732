"""Semantic FPN on EfficientViT-M5 as papers on light backbones compare it."""

_base_ = './semantic_fpn_evit_m4_wide_ade20k.py'

model = dict(
    backbone=dict(
        arch='m5',
        init_cfg=dict(checkpoint='evit://efficientvit_m5')),
    neck=dict(in_channels=[48, 96, 192, 288, 384]))
