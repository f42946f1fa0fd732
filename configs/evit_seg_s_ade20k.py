"""Light segmentor on EfficientViT-M0: SegFormer's head of 64 channels, ADE20K, 160k iterations."""

_base_ = './segformer_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m0',
        init_cfg=dict(checkpoint='evit://efficientvit_m0')),
    decode_head=dict(in_channels=[32, 64, 128, 192], channels=64))
