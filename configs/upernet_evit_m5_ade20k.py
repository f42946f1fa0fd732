"""UperNet on EfficientViT-M5, ADE20K, 160k iterations."""

_base_ = './upernet_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m5',
        init_cfg=dict(checkpoint='evit://efficientvit_m5')),
    decode_head=dict(in_channels=[96, 192, 288, 384]),
    auxiliary_head=dict(in_channels=192))
