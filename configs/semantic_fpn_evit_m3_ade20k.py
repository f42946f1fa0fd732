"""Semantic FPN on EfficientViT-M3, ADE20K, 40k iterations."""

_base_ = './semantic_fpn_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m3',
        init_cfg=dict(checkpoint='evit://efficientvit_m3')),
    neck=dict(in_channels=[64, 128, 240, 320]))
