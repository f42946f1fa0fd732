"""UperNet on EfficientViT-M2, ADE20K, 160k iterations."""

_base_ = './upernet_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m2',
        init_cfg=dict(checkpoint='evit://efficientvit_m2')),
    decode_head=dict(in_channels=[64, 128, 192, 224]),
    auxiliary_head=dict(in_channels=128))
