"""Semantic FPN on EfficientViT-M5, ADE20K, 40k iterations."""

_base_ = './semantic_fpn_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m5',
        init_cfg=dict(checkpoint='evit://efficientvit_m5')),
    neck=dict(in_channels=[96, 192, 288, 384]))
