"""Light segmentor on EfficientViT-M4: SegFormer's head of 128 channels, ADE20K, 160k iterations."""

_base_ = './segformer_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m4',
        init_cfg=dict(checkpoint='evit://efficientvit_m4')),
    decode_head=dict(in_channels=[64, 128, 256, 384], channels=128))
