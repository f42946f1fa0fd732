"""UperNet on EfficientViT-M4, tuned for mIoU alone: five levels from stride 4, 256 channels.

The head takes 42 times the multiply-adds of the backbone; docs/segmentation.md compares them.
"""

_base_ = './upernet_evit_m4_ade20k.py'

model = dict(
    backbone=dict(stem_strides=(4, 8)),
    decode_head=dict(
        in_channels=[32, 64, 128, 256, 384], in_index=[0, 1, 2, 3, 4], channels=256),
    auxiliary_head=dict(in_index=2, channels=128))
