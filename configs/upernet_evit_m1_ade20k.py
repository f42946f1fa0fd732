"""UperNet on EfficientViT-M1, ADE20K, 160k iterations."""

_base_ = './upernet_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m1',
        init_cfg=dict(checkpoint='evit://efficientvit_m1')),
    decode_head=dict(in_channels=[64, 128, 144, 192]),
    auxiliary_head=dict(in_channels=128))
