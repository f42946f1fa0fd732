"""Semantic FPN on EfficientViT-M4 as papers on light backbones compare it.

256 channels from stride 4 and AdamW for 40k iterations of 32 crops of 512x512, as in the papers of
PoolFormer, RepViT and LSNet; docs/segmentation.md says what is comparable.
"""

_base_ = './semantic_fpn_evit_m4_ade20k.py'

model = dict(
    backbone=dict(stem_strides=(4, 8)),  # strides 4 to 64
    neck=dict(
        _delete_=True,
        type='FPN',
        in_channels=[32, 64, 128, 256, 384],
        out_channels=256,
        num_outs=5),
    decode_head=dict(
        in_channels=[256, 256, 256, 256, 256],
        in_index=[0, 1, 2, 3, 4],
        feature_strides=[4, 8, 16, 32, 64],
        channels=128))

param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=1e-6, by_epoch=False, begin=0, end=40000),
]
