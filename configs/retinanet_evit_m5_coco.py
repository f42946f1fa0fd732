"""RetinaNet on EfficientViT-M5, COCO, 12 epochs."""

_base_ = './retinanet_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m5',
        init_cfg=dict(
            checkpoint='https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/'
            'download/v1.0/efficientvit_m5.pth')),
    neck=dict(in_channels=[192, 288, 384]))
