"""Light segmentor on EfficientViT-M1: SegFormer's head of 96 channels, ADE20K, 160k iterations."""

_base_ = './segformer_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m1',
        init_cfg=dict(checkpoint='evit://efficientvit_m1')),
    decode_head=dict(in_channels=[64, 128, 144, 192], channels=96))
