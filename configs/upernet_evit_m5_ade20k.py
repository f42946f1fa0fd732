"""UperNet on EfficientViT-M5, ADE20K, 160k iterations."""

_base_ = './upernet_evit_m4_ade20k.py'

model = dict(
    backbone=dict(
        arch='m5',
        init_cfg=dict(
            checkpoint='https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/'
            'download/v1.0/efficientvit_m5.pth')),
    decode_head=dict(in_channels=[96, 192, 288, 384]),
    auxiliary_head=dict(in_channels=192))
