"""UperNet on EfficientViT-M4 for mIoU above all: five levels from stride 4, 256 wide.

The head costs 42 times the backbone's multiply-adds; docs/segmentation.md has the comparison.
"""

_base_ = './upernet_evit_m4_ade20k.py'

model = dict(
    backbone=dict(stem_strides=(4, 8)),
    decode_head=dict(
        in_channels=[32, 64, 128, 256, 384], in_index=[0, 1, 2, 3, 4], channels=256),
    auxiliary_head=dict(in_index=2, channels=128))
