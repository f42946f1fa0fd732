"""UperNet on EfficientViT-M3, ADE20K, 160k iterations."""

_base_ = './upernet_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m3',
        init_cfg=dict(checkpoint='evit://efficientvit_m3')),
    decode_head=dict(in_channels=[64, 128, 240, 320]),
    auxiliary_head=dict(in_channels=128))
