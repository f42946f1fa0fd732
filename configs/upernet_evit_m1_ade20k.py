"""UperNet on EfficientViT-M1, ADE20K, 160k iterations."""

_base_ = './upernet_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m1',
        init_cfg=dict(
            checkpoint='https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/'
            'download/v1.0/efficientvit_m1.pth')),
    decode_head=dict(in_channels=[64, 128, 144, 192]),
    auxiliary_head=dict(in_channels=128))
