"""Mask R-CNN on EfficientViT-M0, COCO, 12 epochs."""

_base_ = './mask_rcnn_evit_m4_coco.py'

model = dict(
    backbone=dict(
        arch='m0',
        init_cfg=dict(
            checkpoint='https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/'
            'download/v1.0/efficientvit_m0.pth')),
    neck=dict(in_channels=[64, 128, 192]))
