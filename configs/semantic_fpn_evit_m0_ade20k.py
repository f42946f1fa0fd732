"""Semantic FPN on EfficientViT-M0, ADE20K, 40k iterations."""

_base_ = './semantic_fpn_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m0',
        init_cfg=dict(checkpoint='evit://efficientvit_m0')),
    neck=dict(in_channels=[32, 64, 128, 192]))
