"""UperNet on EfficientViT-M0, ADE20K, 160k iterations."""

_base_ = './upernet_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m0',
        init_cfg=dict(checkpoint='evit://efficientvit_m0')),
    decode_head=dict(in_channels=[32, 64, 128, 192]),
    auxiliary_head=dict(in_channels=64))
